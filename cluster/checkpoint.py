"""Checkpoints: published whole or not at all, verified before anything in them is deserialised.

checkpoints/.tmp-<step>-<id>/      parts are written here, then fsync
    learner/...  policy/...        whatever the caller writes
    manifest.json                  last: state, bytes and sha256 of every part, sha256 of itself
checkpoints/step_00000012/         by rename, then fsync of the folder

There is no pointer file to fall out of date: the newest is found by reading manifests. One process writes to a folder.
"""

import hashlib
import json
import logging
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

logger = logging.getLogger("smartrag")

MANIFEST = "manifest.json"
_FORMAT = 1
_NAME = re.compile(r"step_(\d{8,})")
_DRAFT, _TRASH = ".tmp-", ".trash-"


class Damaged(ValueError):
    """A checkpoint is not what was written; the message names the file."""


class Checkpoints:
    """Implements `Store`: the checkpoints of one run, of which the `keep` up to the last published stay.

    `fence` raises when this process may not write to the run (any more); it is called before anything is changed.
    """

    def __init__(self, folder: Path, keep: int, fence: Callable[[], None] = lambda: None):
        self.folder, self.keep, self._fence = Path(folder), keep, fence

    @contextmanager
    def publish(self, step: int, state: Mapping[str, Any]) -> Iterator[Path]:
        """`with checkpoints.publish(step, state) as tmp:` write parts into `tmp`; on leaving they become step_<step>.

        When the block raises, nothing is published and what was there before stays.
        """
        self._fence()
        self.folder.mkdir(parents=True, exist_ok=True)
        self._sweep()
        draft = self.folder / f"{_DRAFT}{step}-{uuid.uuid4().hex[:8]}"
        draft.mkdir()
        try:
            yield draft
            _seal(draft, step, state)
            self._fence()
            self._rename(draft, self.folder / f"step_{step:08d}")
        except BaseException:
            shutil.rmtree(draft, ignore_errors=True)
            raise
        self._prune(step)

    def latest(self, *, hashed: bool = True) -> Path | None:
        """The newest checkpoint that is whole; None when there is none. Warns of damaged ones it passes over."""
        for path in self._all():
            try:
                verify(path, hashed=hashed)
            except ValueError as error:
                logger.warning("passing over a damaged checkpoint: %s", error)
            else:
                return path
        return None

    def load(self, path: Path | None = None, *, hashed: bool = True) -> tuple[Path, dict[str, Any]]:
        """(folder, state) of a checkpoint, the newest whole one when None, verified as `verify` does.

        Raises FileNotFoundError when there is none, Damaged when it is not what was written.
        """
        if path is not None:
            return path, verify(path, hashed=hashed)
        newest = self.latest(hashed=hashed)
        if newest is None:
            found = len(self._all())
            raise FileNotFoundError(
                f"no checkpoint in {self.folder}" + (f": all {found} there are damaged, see the log" if found else "")
            )
        return newest, _manifest(newest)["state"]

    def _all(self) -> list[Path]:
        """Newest first."""
        named = [(int(m[1]), p) for p in self.folder.glob("step_*") if (m := _NAME.fullmatch(p.name))]
        return [path for _, path in sorted(named, reverse=True)]

    def _rename(self, draft: Path, target: Path) -> None:
        if target.exists():  # a run that was resumed from before it, or it is damaged
            target.rename(self.folder / f"{_TRASH}{uuid.uuid4().hex[:8]}")
        draft.rename(target)
        _sync(self.folder)

    def _prune(self, newest: int) -> None:
        """Leaves `keep`. Those after `newest` go: the run was resumed from before them, or they were passed over."""
        ours = [path for path in self._all() if int(path.name.removeprefix("step_")) <= newest]
        for path in set(self._all()) - set(ours[: self.keep]):
            path.rename(self.folder / f"{_TRASH}{uuid.uuid4().hex[:8]}")  # never half a checkpoint under a good name
        self._sweep()

    def _sweep(self) -> None:
        for path in self.folder.iterdir():
            if path.name.startswith((_DRAFT, _TRASH)):
                shutil.rmtree(path)


def verify(path: Path, *, hashed: bool = True) -> dict[str, Any]:
    """The state of the checkpoint in `path`, after comparing every part with the manifest.

    It must be `hashed` before anything of it is read; names and sizes alone are compared in a moment.

    Raises FileNotFoundError, or Damaged naming the file that is missing, altered or foreign.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    manifest = _manifest(path)
    parts, found = manifest["parts"], {p.relative_to(path).as_posix(): p for p in _parts(path)}
    for name in sorted(parts.keys() - found.keys()):
        raise Damaged(f"checkpoint {path}: {name} is missing")
    for name in sorted(found.keys() - parts.keys()):
        raise Damaged(f"checkpoint {path}: {name} was not there when it was written")
    for name, part in sorted(parts.items()):
        size = found[name].stat().st_size
        if size != part["bytes"]:
            raise Damaged(f"checkpoint {path}: {name} has {size} bytes, not the {part['bytes']} that were written")
        if hashed and _sha256(found[name]) != part["sha256"]:
            raise Damaged(f"checkpoint {path}: {name} is damaged (its sha256 is not the one that was written)")
    return manifest["state"]


def step_of(path: Path) -> int:
    """The step after which the checkpoint in `path` was written. Raises Damaged."""
    return int(_manifest(path)["step"])


def copy_part(path: Path, part: str, target: Path) -> dict[str, str]:
    """Copies the folder `part` of the checkpoint in `path` to `target`, which is made: name -> sha256 of every file.

    Raises Damaged when a copy is not what was written; what is copied by then stays.
    """
    written = {name: of["sha256"] for name, of in _manifest(path)["parts"].items() if name.startswith(f"{part}/")}
    for name, digest in written.items():
        copy = target / Path(name).relative_to(part)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path / name, copy)
        if _sha256(copy) != digest:
            raise Damaged(f"checkpoint {path}: the copy of {name} is damaged (its sha256 is not that of the manifest)")
    return {name.removeprefix(f"{part}/"): digest for name, digest in written.items()}


def _manifest(path: Path) -> dict[str, Any]:
    file = path / MANIFEST
    if not file.is_file():
        raise Damaged(f"{path} is not a checkpoint of SmartRAG: it has no {MANIFEST}")
    try:
        outer = json.loads(file.read_bytes())
        manifest, digest = outer["manifest"], outer["sha256"]
        if not isinstance(manifest, dict):
            raise TypeError
    except (ValueError, KeyError, TypeError):
        raise Damaged(f"checkpoint {path}: {MANIFEST} is damaged (not a manifest)") from None
    if hashlib.sha256(_canonical(manifest)).hexdigest() != digest:
        raise Damaged(f"checkpoint {path}: {MANIFEST} is damaged (its sha256 is not the one that was written)")
    if manifest["format"] != _FORMAT:
        raise Damaged(f"checkpoint {path}: has format {manifest['format']}; this version of SmartRAG reads {_FORMAT}")
    return manifest


def _seal(draft: Path, step: int, state: Mapping[str, Any]) -> None:
    """Brings every part to the disk, then writes the manifest, then brings that to the disk."""
    parts = {}
    for file in _parts(draft):
        _sync(file)
        parts[file.relative_to(draft).as_posix()] = {"bytes": file.stat().st_size, "sha256": _sha256(file)}
    if not parts:
        raise ValueError("a checkpoint without a single part; write something into the folder")
    # Through JSON first: the hash must be that of what a reader will see, in which every key is a string.
    manifest = json.loads(json.dumps({"format": _FORMAT, "step": step, "state": dict(state), "parts": parts}))
    outer = {"manifest": manifest, "sha256": hashlib.sha256(_canonical(manifest)).hexdigest()}
    with (draft / MANIFEST).open("w", encoding="utf-8") as f:
        json.dump(outer, f, indent=1)
        f.flush()
        os.fsync(f.fileno())
    for folder in [p for p in draft.rglob("*") if p.is_dir()] + [draft]:
        _sync(folder)


def _canonical(manifest: Mapping[str, Any]) -> bytes:
    return json.dumps(manifest, sort_keys=True, separators=(",", ":")).encode()


def _parts(path: Path) -> list[Path]:
    """Every file but the manifest; symbolic links count as files, so that one cannot bring in foreign bytes unseen."""
    return sorted(p for p in path.rglob("*") if (p.is_symlink() or not p.is_dir()) and p != path / MANIFEST)


def _sha256(file: Path) -> str:
    with file.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
