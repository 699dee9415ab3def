"""One writer to a run folder: a lease that is renewed while its holder lives, and that nobody keeps by mistake.

<run>/lease/00000003.json    of the third driver of this run: who it is, and a count that it raises every `BEAT_S`

The highest number holds. To take over is to create the next one, which only one can do. A holder that was thought dead,
because its machine stood still, raises the count in its own file and finds the higher one before it writes to the run.

No two clocks are compared: a lease is silent when its count has not changed for `SILENCE_S` of the watcher's own time.
Where holder and watcher share a machine, the holder's process tells at once whether it is dead. No lock of the file
system is used: on NFS they are not to be relied on.
"""

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from smartrag.files import write_whole

logger = logging.getLogger("smartrag")

BEAT_S = 2.0
SILENCE_S = 30.0  # fifteen beats: file systems over a network show a new file some seconds late
_LOOK_S = 0.5  # between two looks at another's count


class Locked(RuntimeError):
    """Another driver writes to this run."""


class Lease:
    """The right to write to the run in `folder`, until `release`, or until another has taken it."""

    def __init__(self, folder: Path, epoch: int):
        """Creates the lease of `epoch` and keeps it up. Raises FileExistsError when another was faster."""
        self.epoch, self._folder, self._path = epoch, folder, _path(folder, epoch)
        self._told = {**_myself(), "beat": 0, "released": False}
        with self._path.open("x", encoding="utf-8") as file:
            json.dump(self._told, file)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()

    @classmethod
    def claim(
        cls, folder: Path, *, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ) -> "Lease":
        """At once where nobody holds it, or the holder is known to be dead; else once it has been silent for
        `SILENCE_S`. Raises Locked as soon as it is heard of."""
        (folder / "lease").mkdir(parents=True, exist_ok=True)
        epoch = newest(folder)
        if epoch and not _over(held := _read(folder, epoch)):
            logger.info("waiting up to %g s for a sign of %s, which drives %s", SILENCE_S, _named(held), folder)
            silent_at = clock() + SILENCE_S
            while clock() < silent_at:
                sleep(_LOOK_S)
                if _read(folder, epoch).get("beat") != held.get("beat") or newest(folder) != epoch:
                    raise _locked(folder)
        try:
            made = cls(folder, epoch + 1)
        except FileExistsError:
            raise _locked(folder) from None
        for old in range(1, epoch):
            _path(folder, old).unlink(missing_ok=True)
        return made

    def check(self) -> None:
        """Raises Locked when another has taken the run: nothing more may be written to it."""
        if (other := newest(self._folder)) > self.epoch:
            taken = _named(_read(self._folder, other))
            raise Locked(f"{self._folder} was taken over by {taken}, which had not heard of this driver for a while")

    def release(self) -> None:
        """The next driver need not wait."""
        if not self._ended.is_set():
            self._ended.set()
            self._thread.join()
            self._told["released"] = True
            with suppress(OSError):  # the disk may be full; who comes next then has to wait
                self._write()

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_S):
            self._told["beat"] += 1
            with suppress(OSError):  # silence is what it then is taken for
                self._write()

    def _write(self) -> None:
        write_whole(self._path, json.dumps(self._told))


def newest(folder: Path) -> int:
    """The epoch that holds; 0 when there never was one."""
    return max((int(path.stem) for path in (folder / "lease").glob("*.json")), default=0)


def _path(folder: Path, epoch: int) -> Path:
    return folder / "lease" / f"{epoch:08d}.json"


def _read(folder: Path, epoch: int) -> dict[str, Any]:
    """What its holder says; nothing where the file is cut short, or is gone."""
    try:
        told = json.loads(_path(folder, epoch).read_bytes())
    except (OSError, ValueError):
        return {}
    return told if isinstance(told, dict) else {}


def _over(held: dict[str, Any]) -> bool:
    """Whether the holder is known to write no more."""
    if held.get("released"):
        return True
    me = _myself()
    if me["machine"] is None or any(held.get(name) != me[name] for name in ("host", "machine")):
        return False
    try:
        process = psutil.Process(held["pid"])
        return abs(process.create_time() - held["born"]) > 1 or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _myself() -> dict[str, Any]:
    """Who this process is. `machine` is None where its processes cannot be told from those of another."""
    machine = None
    with suppress(OSError):  # Linux alone: this boot of the kernel, and the namespace in which `pid` counts
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
        machine = f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return {
        "host": socket.gethostname(),
        "machine": machine,
        "pid": os.getpid(),
        "born": psutil.Process().create_time(),
    }


def _named(held: dict[str, Any]) -> str:
    return f"process {held.get('pid', '?')} on {held.get('host', 'an unknown machine')}"


def _locked(folder: Path) -> Locked:
    holder = _named(_read(folder, newest(folder)))
    return Locked(f"{folder} is being written by {holder}; wait until it ends, or stop it, or start a run of your own")
