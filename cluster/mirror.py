"""Copies of a run behind a URI, in an object store for one: what resumes where the run's own disk is gone.

<train.mirror>/<name>/latest               id of the run whose checkpoint came last
<train.mirror>/<name>/<id>/                the files of the run's folder, as they were at the newest checkpoint
    driver.json                            who copies; whoever goes on with the run from here takes its place
    checkpoints/step_00000012/...          parts first, manifest.json last: without it there is no checkpoint

Training does not wait for a copy. One is under way at a time; the one after it is of what is newest then.
"""

import json
import logging
import os
import shutil
import socket
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster.checkpoint import MANIFEST, Checkpoints, Damaged, verify
from cluster.objects import Objects
from smartrag.files import point_latest, whole_folder
from smartrag.lease import Locked

logger = logging.getLogger("smartrag")

_DRIVER, _LATEST, _CHECKPOINTS = "driver.json", "latest", "checkpoints"


class MirrorFailed(RuntimeError):
    """The place of the copies cannot be written or read. What has been trained is whole in the run's own folder."""


class Mirror:
    """Implements `Store`: the checkpoints of `store`, each of which is copied once it is published.

    A copy that fails is told of and made again after the next checkpoint; `settle` raises when the last one failed.
    """

    def __init__(self, store: Checkpoints, folder: Path, uri: str, name: str):
        """`folder`, the run's, is copied to <uri>/<name>/<its name> from now on. Raises MirrorFailed, ValueError."""
        self._store, self._folder = store, folder
        self.copy = Objects.at(uri) / name / folder.name
        self._me = json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "id": uuid.uuid4().hex}).encode()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="mirror")
        self._copying: Future[None] = Future()
        self._copying.set_result(None)
        try:
            self.copy.write(_DRIVER, self._me)
        except OSError as error:
            raise MirrorFailed(f"train.mirror={uri} cannot be written: {error}") from error

    @contextmanager
    def publish(self, step: int, state: Mapping[str, Any]) -> Iterator[Path]:
        """As `Checkpoints.publish`. Raises Locked when another driver has gone on with the run from its copy."""
        if self._copying.done() and isinstance(failure := self._copying.exception(), Locked):
            raise failure
        with self._store.publish(step, state) as draft:
            yield draft
        self._copying.cancel()  # the one that waits, if any: what it would copy is no longer the newest
        self._copying = self._thread.submit(self._try)

    def load(self, path: Path | None = None) -> tuple[Path, dict[str, Any]]:
        return self._store.load(path)

    def settle(self) -> None:
        """Waits until all is copied as it is now. Raises Locked, MirrorFailed."""
        self._copying = self._thread.submit(self._try)
        try:
            self._copying.result()
        except OSError as error:
            raise MirrorFailed(
                f"the run is whole in {self._folder}, but not copied to {self.copy.uri}: {error}"
            ) from error

    def close(self) -> None:
        """Waits for the copy under way."""
        self._thread.shutdown(wait=True)

    def _try(self) -> None:
        try:
            self._copy()
        except OSError as error:
            logger.warning("not copied to %s (%s); tried again after the next checkpoint", self.copy.uri, error)
            raise

    def _copy(self) -> None:
        """The newest checkpoint, unless it is there, then the run's files; what is no longer here goes there, too."""
        self._check_ours()
        local = {path.name: path for path in self._store.folder.glob("step_*")}
        if local:
            newest = max(local)
            try:
                put_checkpoint(local[newest], self.copy / _CHECKPOINTS / newest)
            except FileNotFoundError:
                if local[newest].exists():
                    raise
                return  # a newer one has taken its place meanwhile, and is to be copied next
            self.copy.parent.write(_LATEST, self._folder.name.encode())
        for path in sorted(self._folder.iterdir()):
            if path.is_file() and not path.name.startswith("."):
                self.copy.put(path, path.name)
        there = {name.split("/")[0] for name in (self.copy / _CHECKPOINTS).names()}
        for gone in there - local.keys():
            _remove_checkpoint(self.copy / _CHECKPOINTS / gone)

    def _check_ours(self) -> None:
        told = self.copy.read(_DRIVER)
        if told != self._me:
            other = json.loads(told or b"{}")
            raise Locked(
                f"process {other.get('pid', '?')} on {other.get('host', 'an unknown machine')} has gone on with this "
                f"run from its copy {self.copy.uri}"
            )


def put_checkpoint(local: Path, there: Objects) -> None:
    """Copies a published checkpoint, unless it is there. Whoever looks meanwhile finds none rather than half of one."""
    manifest = (local / MANIFEST).read_bytes()
    if there.read(MANIFEST) == manifest:
        return
    _remove_checkpoint(there)  # of an earlier life of the run, or half of one
    for path in sorted(p for p in local.rglob("*") if p.is_file()):
        if path != local / MANIFEST:
            there.put(path, path.relative_to(local).as_posix())
    there.write(MANIFEST, manifest)


def _remove_checkpoint(there: Objects) -> None:
    there.remove(MANIFEST)
    there.remove_all()


def fetch(uri: str, runs: Path) -> Path:
    """The run, or the checkpoint of it, that `uri` names, in the folder of a run, `runs`/<name>/<id>. To name one:
    <mirror>/<name>/<id>, <mirror>/<name>/latest or <mirror>/<name>/<id>/checkpoints/step_<step>.

    What is here already, and not older, is left as it is. Raises FileNotFoundError when there is no checkpoint,
    Damaged when none is what was written, ValueError, MirrorFailed when it cannot be read.
    """
    try:
        run, wanted = _meant(Objects.at(uri))
        return _fetch(run, wanted, runs / run.parent.name)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise MirrorFailed(f"{uri} cannot be read: {error}") from error


def _meant(there: Objects) -> tuple[Objects, str | None]:
    """(copy of a run, name of the checkpoint that is asked for)."""
    if there.parent.name == _CHECKPOINTS:
        return there.parent.parent, there.name
    if there.name == _LATEST:
        named = there.parent.read(_LATEST)
        if named is None:
            raise FileNotFoundError(f"{there.uri}: no run has been copied there")
        return there.parent / named.decode().strip(), None
    return there, None


def _fetch(run: Objects, wanted: str | None, parent: Path) -> Path:
    files = run.names()
    whole = {name.split("/")[1] for name in files if name.startswith(f"{_CHECKPOINTS}/step_") and _is_manifest(name)}
    steps = sorted(whole & {wanted} if wanted else whole, reverse=True)
    if not steps:
        raise FileNotFoundError(f"no checkpoint of a run at {run.uri}" + (f" named {wanted}" if wanted else ""))
    target = parent / run.name
    meant = target if wanted is None else target / _CHECKPOINTS / steps[0]
    if target.is_dir():
        here = {path.name for path in (target / _CHECKPOINTS).glob("step_*")}
        if steps[0] in here or (here and max(here) > steps[0] and wanted is None):
            logger.info("%s is here already", target)
            return meant
        raise ValueError(f"{target} is here without {steps[0]}, which its copy has; move it away to fetch {run.uri}")
    with whole_folder(target) as draft:
        _newest_whole(run, files, steps, draft)
        for name in files:
            if "/" not in name and name != _DRIVER:
                run.get(name, draft / name)
    point_latest(target)
    return meant


def _newest_whole(run: Objects, files: Mapping[str, int], steps: list[str], draft: Path) -> None:
    """Fetches the first of `steps` that is what was written into `draft`/checkpoints. Raises Damaged."""
    problems = []
    for step in steps:
        parts = {name: size for name, size in files.items() if name.startswith(f"{_CHECKPOINTS}/{step}/")}
        logger.info("fetching %s of %s, %.2f GB", step, run.uri, sum(parts.values()) / 1e9)
        for name in parts:
            run.get(name, draft / name)
        try:
            verify(draft / _CHECKPOINTS / step)
            return
        except Damaged as error:
            problems.append(str(error).replace(str(draft), run.uri))
            logger.warning("passing over a damaged checkpoint: %s", problems[-1])
            shutil.rmtree(draft / _CHECKPOINTS / step)
    raise Damaged("; ".join(problems))


def _is_manifest(name: str) -> bool:
    return name.count("/") == 2 and name.endswith(f"/{MANIFEST}")
