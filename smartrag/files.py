"""Folders that are named by the time, folders and files that appear whole, whole lines of files that grow."""

import os
import secrets
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def new_folder(parent: Path) -> Path:
    """A folder in `parent` named by the time and four random hex digits, with `latest` beside it pointing at it."""
    folder = parent / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    folder.mkdir(parents=True)
    point_latest(folder)
    return folder


def point_latest(folder: Path) -> None:
    """Makes `latest` beside `folder` point at it."""
    link = folder.with_name(f".latest-{folder.name}")
    link.symlink_to(folder.name)
    os.replace(link, folder.with_name("latest"))  # atomic: `latest` always points at something


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """`with whole_folder(folder) as draft:` fill `draft`, an empty folder; at the end it becomes `folder`.

    It appears whole or not at all. Where another process was faster, what that made stays.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as scratch:
        draft = Path(scratch, "draft")
        draft.mkdir()
        yield draft
        try:
            draft.rename(folder)
        except OSError as error:
            if not folder.is_dir():
                raise OSError(f"{folder} could not be made; is {folder.parent} writable?") from error


def write_whole(path: Path, text: str) -> None:
    """Replaces the file atomically."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


def whole_lines(path: Path) -> list[str]:
    """Whole lines with their ends; the last may be cut short, by a driver that was killed or a disk that was full.

    JSON may hold characters at which str.splitlines would cut, U+2028 among them."""
    with path.open("rb") as file:
        return [line.decode("utf-8") for line in file if line.endswith(b"\n")]


def is_uri(text: str) -> bool:
    return "://" in text
