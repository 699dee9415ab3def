"""Passages on their way to an index: whatever they are kept in, they become one file of lines of JSON,

    {"id": str, "contents": "title\\ntext"}

A file of that form is taken as it is; another is checked, row by row, and written to the cache once. Nothing of a
corpus is held but eight bytes a passage, by which an id that comes twice is found.
"""

import contextlib
import hashlib
import json
import tempfile
from array import array
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from smartrag.data.rows import Problems, contents_of, identity, made_id, rows, text_of
from smartrag.data.tables import HUB, PASSAGES, Part, Row, parts
from smartrag.files import whole_folder

_FORM = "v1"  # raise it when passages are written differently


def check_corpus(path: Path) -> int:
    """The number of passages in the .jsonl file at `path`. Raises DataError when a row would be lost or misread in
    Lucene: no JSON, no text, control characters that Java replaces, or an id twice."""
    found = Problems()
    whole = Part(str(path), "", partial(rows, path))
    count, _ = _check([whole], str(path), found, needs_ids=True)
    found.raise_if_any()
    return count


def as_lines(source: str, cache: Path, found: Problems) -> Path | None:
    """`source` (see tables.py) as a .jsonl file of the form above; what is wrong goes to `found`. Passages without an
    id that are equal are one. Raises HubUnreachable, OSError."""
    path = Path(source).expanduser()
    if path.suffix.lower() == ".jsonl" and path.is_file() and _is_plain(path):
        return path
    # A set of the hub is kept under its name, so that it is fetched once.
    name = source.removeprefix(HUB).strip("/").replace("/", "--") if source.startswith(HUB) else _digest(path)[:16]
    home = cache / f"passages-{name}-{_FORM}"
    if not home.is_dir():
        before = found.count
        some = parts(source, PASSAGES, found)
        twice = _check(some, source, found, needs_ids=False)[1] if some else set()
        if found.count > before:
            return None
        made(home, partial(_write, some, twice))
    return home / "corpus.jsonl"


@contextlib.contextmanager
def lines_of(source: str, beside: Path) -> Iterator[Path]:
    """`as_lines` for as long as it is needed, in a folder below `beside`. Raises DataError, HubUnreachable, OSError."""
    found = Problems()
    beside.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=beside, prefix=".passages.") as scratch:
        path = as_lines(source, Path(scratch), found)
        found.raise_if_any()
        assert path is not None
        yield path


def union(corpora: Mapping[str, Path], cache: Path) -> Path:
    """One corpus of all passages, equal ones once, in a folder of `cache` that their sha256 names. Raises DataError."""
    digest = hashlib.sha256()
    for name, path in corpora.items():
        digest.update(f"{name} {_digest(path)} ".encode())
    return made(cache / f"union-{digest.hexdigest()[:16]}", partial(_write_union, corpora)) / "corpus.jsonl"


def made(folder: Path, write: Callable[[Path], None]) -> Path:
    """`folder`; `write` fills it when it is not there yet. It is whole or absent, whoever else makes it."""
    if not folder.is_dir():
        with whole_folder(folder) as draft:
            write(draft)
    return folder


def _is_plain(path: Path) -> bool:
    """Whether the first row that can be read has id and contents; that the others have, `check_corpus` sees to."""
    return all({"id", "contents"} <= set(row) for _, row in _first(path))


def _first(path: Path) -> Iterator[tuple[int, Row]]:
    for found in rows(path, Problems()):
        yield found
        return


def _check(some: list[Part], source: str, found: Problems, *, needs_ids: bool) -> tuple[int, set[int]]:
    """The number of passages, and short digests of the ids that stand twice."""
    digests, already = array("Q"), found.count
    for part in some:
        for number, row in part.rows(found):
            where = f"{part.place}:{number}"
            contents = text_of(row, "contents", where, found) if needs_ids else contents_of(row, where, found)
            name = text_of(row, "id", where, found) if needs_ids or "id" in row else made_id(contents)
            digests.append(_short(name))
    if not digests and found.count == already:
        found.add(f"{source}: no passages; write one {{'id', 'contents'}} a line")
    values, counts = np.unique(np.frombuffer(digests, dtype=np.uint64), return_counts=True)
    if len(twice := {int(value) for value in values[counts > 1]} - {_short("")}):
        _name_twice(some, twice, found)
    return len(digests), twice


def _name_twice(some: list[Part], twice: set[int], found: Problems) -> None:
    """Tells of ids that stand twice; passages without an id may, since they are then the same."""
    seen: dict[str, str] = {}
    for part in some:
        for number, row in part.rows(Problems()):
            if isinstance(name := row.get("id"), str) and _short(name) in twice:
                identity(row, f"{part.place}:{number}", seen, found, made_of="")


def _write(some: list[Part], twice: set[int], folder: Path) -> None:
    seen: set[str] = set()  # of those that stand twice
    with (folder / "corpus.jsonl").open("w", encoding="utf-8", newline="\n") as out:
        for part in some:
            for _, row in part.rows(Problems()):
                contents = contents_of(row, "", Problems())
                name = row["id"] if "id" in row else made_id(contents)
                if name not in seen:
                    out.write(_line(name, contents))
                if _short(name) in twice:
                    seen.add(name)


def _write_union(corpora: Mapping[str, Path], folder: Path) -> None:
    for path in corpora.values():
        check_corpus(path)
    seen: set[bytes] = set()
    with (folder / "corpus.jsonl").open("w", encoding="utf-8", newline="\n") as out:
        for name, path in corpora.items():
            for _, row in rows(path, Problems()):
                text = hashlib.sha256(row["contents"].encode()).digest()
                if text not in seen:
                    seen.add(text)
                    out.write(_line(f"{name}/{row['id']}", row["contents"]))


def _line(name: str, contents: str) -> str:
    return json.dumps({"id": name, "contents": contents}, ensure_ascii=False) + "\n"


def _short(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "replace")).digest()[:8], "big")


def _digest(path: Path) -> str:
    """sha256 of a file; of a folder, of its files' names and contents."""
    if path.is_dir():
        files = [file for file in sorted(path.rglob("*")) if file.is_file()]
        told = "".join(f"{file.relative_to(path)} {_digest(file)}\n" for file in files)
        return hashlib.sha256(told.encode()).hexdigest()
    if not path.is_file():
        return "absent"
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
