"""Facts about this machine: disks, GPUs, sockets, Ray's token. Finding them out leaves nothing behind.

What they mean for a run is judged in smartrag/doctor.
"""

import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

from smartrag.config import Run
from smartrag.doctor.machine import Disk, Gpus
from smartrag.doctor.outside import Token

_LIST_GPUS = ["nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"]
_ASK_TORCH = "import torch; print(torch.version.cuda or '', torch.cuda.device_count(), sep='|')"
_LOOPBACK = "127.0.0.2"  # what a run's own Ray binds


def disk(path: Path) -> Disk:
    """The folder at `path`, or the nearest above it where it does not exist yet; tried with what a run does there."""
    path = path.expanduser().absolute()
    there = next(p for p in (path, *path.parents) if os.path.lexists(p))
    if not there.is_dir():
        return Disk(path, 0, "", f"{there} is not a folder")
    return Disk(path, shutil.disk_usage(there).free, _kind(there), _try(there))


def check_places(run: Run) -> None:
    """Raises ValueError when the run could not write where it will have to."""
    problems = []
    for name in ("runs", "cache"):
        found = disk(Path(getattr(run, name)))
        if found.error:
            problems.append(f"{name}={found.path}: {found.error}; set SMARTRAG_{name.upper()} (or {name}=) to a folder")
    if problems:
        raise ValueError("\n".join(problems))


def _try(folder: Path) -> str:
    """What cannot be done in `folder`: a file flushed to disk, a folder renamed, a link replaced. "" when all can."""
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".doctor-") as scratch:
            draft, published = Path(scratch) / "draft", Path(scratch) / "published"
            draft.mkdir()
            with (draft / "file").open("w") as file:
                file.write("x")
                file.flush()
                os.fsync(file.fileno())
            draft.rename(published)  # as a checkpoint is published
            for name in ("a", "b"):
                (Path(scratch) / name).symlink_to(published.name)
            os.replace(Path(scratch) / "a", Path(scratch) / "b")  # as `latest` is
            if draft.exists() or not (Path(scratch) / "b" / "file").is_file():
                return "a renamed folder is not what it was"
    except OSError as error:
        return f"files cannot be written, renamed and linked there ({error.strerror or error})"
    return ""


def _kind(folder: Path) -> str:
    """Type of the file system, such as "ext4", "nfs4" or "fuse.s3fs"."""
    real = folder.resolve()
    mounts = [m for m in psutil.disk_partitions(all=True) if real.is_relative_to(m.mountpoint)]
    return max(mounts, key=lambda m: len(m.mountpoint)).fstype if mounts else ""


def gpus(seconds: float, *, ask_torch: bool) -> Gpus:
    """What nvidia-smi lists within `seconds`, and what torch sees when asked: in a child, it takes long to import."""
    if shutil.which(_LIST_GPUS[0]) is None:
        return Gpus((), 0, "", "", 0)
    with ThreadPoolExecutor() as both:
        told = both.submit(_said, [sys.executable, "-c", _ASK_TORCH], seconds) if ask_torch else None
        listed, _ = _said(_LIST_GPUS, seconds)
    rows = [[cell.strip() for cell in line.split(",")] for line in listed.splitlines() if line.count(",") == 2]
    names, driver = tuple(row[0] for row in rows), rows[0][2] if rows else ""
    memory = min((int(row[1]) << 20 for row in rows if row[1].isdigit()), default=0)
    said, error = told.result() if told is not None else ("|0", "")
    build, bar, count = said.strip().rpartition("|")
    return Gpus(names, memory, driver, build, int(count)) if bar else Gpus(names, memory, driver, "", 0, error)


def _said(command: list[str], seconds: float) -> tuple[str, str]:
    """(what the command printed, the last line of its complaints)."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return "", f"silent for {seconds:g} s"
    return done.stdout, (done.stderr.strip().splitlines() or [""])[-1]


def taken(ports: Iterable[int]) -> list[int]:
    """Those of `ports` on which somebody listens."""
    return [port for port in ports if _bound("127.0.0.1", port)]


def loopback() -> str:
    """What hinders a socket on loopback; "" when nothing does."""
    return _bound(_LOOPBACK, 0)


def _bound(host: str, port: int) -> str:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a closed connection of before does not count
        try:
            probe.bind((host, port))
        except OSError as error:
            return f"{host}: {error.strerror}"
    return ""


def unresolved(name: str) -> str:
    """Why the name does not resolve; "" when it does."""
    try:
        socket.getaddrinfo(name, None)
    except OSError as error:
        return error.strerror or str(error)
    return ""


def token() -> Token:
    """Where Ray looks for its token, and who else could read it. The token itself is not read."""
    file = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token").absolute()
    mode = os.environ.get("RAY_AUTH_MODE", "").lower()
    try:
        found = file.stat()
    except OSError:
        return Token(mode, "RAY_AUTH_TOKEN" in os.environ, file, there=False, bits=0, shielded=False)
    shielded = any(folder.stat().st_mode & 0o011 == 0 for folder in file.parents)
    bits = stat.S_IMODE(found.st_mode)
    return Token(mode, "RAY_AUTH_TOKEN" in os.environ, file, found.st_size > 0, bits, shielded)
