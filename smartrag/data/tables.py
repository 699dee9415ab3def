"""Rows of questions and of passages, out of whatever they are kept in. What each field must be, rows.py says.

    .jsonl         one JSON object a line
    .csv .tsv      a header, then a row a line; commas or tabs between cells, cells with those, quotes or line breaks in
                   double quotes (RFC 4180); UTF-8, with or without the byte order mark that Excel writes. A cell of
                   `answers` or `queries` is a JSON list, one of `meta` a JSON object: a list with a separator of its
                   own could not hold an answer with that separator in it
    .parquet       one row group in memory at a time
    a folder       that `save_to_disk` of the package `datasets` wrote, a Dataset or a DatasetDict
    hf://OWNER/NAME[/CONFIG]   a data set of the Hugging Face hub, through the same package and its cache

Numbers of rows count from 1: lines of text files (where the row begins), rows of the others.
"""

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from smartrag.data.hub import HubUnreachable
from smartrag.data.rows import MOST_CHARACTERS, Problems, no_constant, rows, show

Row = dict[str, Any]
Numbered = Iterator[tuple[int, Row]]

HUB = "hf://"
SUFFIXES = (".jsonl", ".csv", ".tsv", ".parquet")
FORMATS = f"{', '.join(SUFFIXES)}, a folder that datasets.save_to_disk wrote, or {HUB}OWNER/NAME"
_SAVED = ("dataset_dict.json", "dataset_info.json")  # what marks such a folder
_BATCH = 1024  # rows of Parquet that are Python objects at a time
_AS_JSON = ("answers", "queries", "meta")
_NUMBERS = ("popularity", "subject_popularity", "hops")
_KNOWN = ("queries", "popularity", "subject_popularity", "hops", "type")  # columns that become fields of `meta`


@dataclass(frozen=True, slots=True)
class Columns:
    """What is read of a table; other columns are left alone. Upper and lower case are one."""

    read: tuple[str, ...]
    needed: tuple[tuple[str, ...], ...]  # one of each


QUESTIONS = Columns(
    ("id", "question", "answers", "answer", "split", "meta", *_KNOWN), (("question",), ("answers", "answer"))
)
PASSAGES = Columns(("id", "contents", "title", "text"), (("contents", "text"),))


@dataclass(frozen=True, slots=True)
class Part:
    """Rows of one place."""

    place: str  # as messages name it
    split: str  # of a data set that comes in several: which; else ""
    rows: Callable[[Problems], Numbered]  # what is wrong goes to the problems


def parts(source: str, columns: Columns, found: Problems) -> list[Part]:
    """The parts of `source`, a path or an hf:// address; none, and a problem, where it cannot be read."""
    if source.startswith(HUB):
        return _of_datasets(source, columns, found)
    path = Path(source).expanduser()
    if path.is_dir() and is_saved(path):
        return _of_datasets(str(path), columns, found)
    readers: dict[str, Callable[[Problems], Numbered]] = {
        ".jsonl": partial(rows, path),
        ".csv": partial(_separated, path, ",", columns),
        ".tsv": partial(_separated, path, "\t", columns),
        ".parquet": partial(_parquet, path, columns),
    }
    if not path.exists():
        found.add(f"{path}: no such file; give {FORMATS}")
    elif path.is_dir() or path.suffix.lower() not in readers:
        kind = (
            "a folder that datasets.save_to_disk did not write" if path.is_dir() else f"a {path.suffix or 'bare'} file"
        )
        found.add(f"{path}: is {kind}; give {FORMATS}")
    else:
        return [Part(str(path), "", readers[path.suffix.lower()])]
    return []


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` wrote it."""
    return any((folder / name).is_file() for name in _SAVED)


def named(folder: Path, name: str) -> list[Path]:
    """What in `folder` may be read under that name: train.csv, train.parquet, a saved data set train/."""
    found = [folder / f"{name}{suffix}" for suffix in SUFFIXES]
    return [path for path in found if path.is_file()] + [folder / name] * is_saved(folder / name)


def _separated(path: Path, delimiter: str, columns: Columns, found: Problems) -> Numbered:
    """A cell that is not closed would swallow the rest, so nothing behind the first error of form is read."""
    csv.field_size_limit(MOST_CHARACTERS)
    header, chosen = 0, None
    with path.open("rb") as stream:
        reader = csv.reader(_decoded(stream, path, found), delimiter=delimiter, strict=True)
        while True:
            where = f"{path}:{reader.line_num + 1}"
            try:
                line, cells = reader.line_num + 1, next(reader)
            except StopIteration:
                break
            except csv.Error as error:
                found.add(f"{where}: not valid CSV ({error}) in the row that begins here; {_cure(error)}")
                return
            if not header:
                header, chosen = len(cells), _understood(cells, columns, where, found)
                if chosen is None:
                    return
            elif cells and len(cells) != header:
                found.add(
                    f"{where}: has {len(cells)} cell(s), the header has {header} (begins {show(cells[0])}); put cells "
                    "that hold a separator or a line break into double quotes"
                )
            elif cells and chosen is not None:
                yield line, _of_text({name: cells[i] for name, i in chosen.items()})
    if not header:
        found.add(f"{path}: is empty; the first line must name the columns")


def _cure(error: csv.Error) -> str:
    if "limit" in str(error):
        return f"close its quotes, or cut the cell to {MOST_CHARACTERS:,} characters"
    return 'double the quotes inside a quoted cell (""), close those around it, and end lines with \\n or \\r\\n'


def _decoded(stream: BinaryIO, path: Path, found: Problems) -> Iterator[str]:
    for line, raw in enumerate(stream, 1):
        if line == 1:
            if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
                found.add(f"{path}:1: is UTF-16; save the file as UTF-8 (in Excel: CSV UTF-8)")
                return
            raw = raw.removeprefix(b"\xef\xbb\xbf")
        try:
            yield raw.decode("utf-8")
        except UnicodeDecodeError as error:
            found.add(f"{path}:{line}: not valid UTF-8 at byte {error.start} of the line; save the file as UTF-8")
            yield raw.decode("utf-8", errors="replace")  # the cells stay where they are


def _parquet(path: Path, columns: Columns, found: Problems) -> Numbered:
    import pyarrow
    from pyarrow import parquet

    number = 0
    try:
        file = parquet.ParquetFile(path, memory_map=True)
        names = file.schema_arrow.names
        if (chosen := _understood(names, columns, str(path), found)) is None:
            return
        wanted = {name: names[i] for name, i in chosen.items()}
        for batch in file.iter_batches(_BATCH, columns=list(wanted.values())):
            for row in batch.to_pylist():
                number += 1
                yield number, _of_types({name: row[its] for name, its in wanted.items()})
    except (pyarrow.ArrowException, OSError) as error:
        said = str(error).splitlines()[0]
        found.add(f"{path}: cannot be read as Parquet behind row {number} ({said}); write the file again")


def _of_datasets(source: str, columns: Columns, found: Problems) -> list[Part]:
    """Of several splits each is a part of its name. Raises HubUnreachable."""
    from datasets import DatasetDict, load_dataset, load_from_disk

    if source.startswith(HUB):
        owner, _, rest = source.removeprefix(HUB).strip("/").partition("/")
        name, _, config = rest.partition("/")
        if not name or "/" in config:
            found.add(f"{source}: is not of the form {HUB}OWNER/NAME or {HUB}OWNER/NAME/CONFIG")
            return []
        try:
            loaded = load_dataset(f"{owner}/{name}", config or None)
        except Exception as error:  # the client raises many kinds, as in hub.py
            said = " ".join(str(error).split())[:300]
            raise HubUnreachable(f"{source} cannot be had from the hub ({type(error).__name__}: {said})") from error
    else:
        try:
            loaded = load_from_disk(source)
        except (OSError, ValueError, KeyError, TypeError) as error:
            said = " ".join(str(error).split())[:300]
            found.add(f"{source}: cannot be read as a saved data set ({said}); save it again")
            return []
    if not isinstance(loaded, DatasetDict):
        return [Part(source, "", partial(_typed, loaded, source, columns))]
    several = len(loaded) > 1
    return [
        Part(f"{source}/{split}", split if several else "", partial(_typed, part, f"{source}/{split}", columns))
        for split, part in loaded.items()
    ]


def _typed(dataset: Any, place: str, columns: Columns, found: Problems) -> Numbered:
    """Rows of a `datasets.Dataset`, which lies in memory-mapped files."""
    if (chosen := _understood(dataset.column_names, columns, place, found)) is None:
        return
    wanted = {name: dataset.column_names[i] for name, i in chosen.items()}
    for number, row in enumerate(dataset.select_columns(list(wanted.values())), 1):
        yield number, _of_types({name: row[its] for name, its in wanted.items()})


def _understood(names: Sequence[str], columns: Columns, where: str, found: Problems) -> dict[str, int] | None:
    """Column that is read -> its place among `names`; None, and a problem, where not all is there."""
    plain = [name.strip().casefold() for name in names]
    problems = [f'column "{n}" stands twice; leave one' for n in columns.read if plain.count(n) > 1]
    for group in columns.needed:
        if not {*group} & {*plain}:
            wanted = " or ".join(f'"{name}"' for name in group)
            problems.append(f"no column {wanted} (found: {', '.join(map(show, names[:8])) or 'none'}); name one so")
    if {"answer", "answers"} <= {*plain}:
        problems.append('columns "answer" and "answers"; leave one')
    if len(names) == 1 and ";" in names[0]:
        problems = ["cells are separated by semicolons; save it with commas, or with tabs as .tsv"]
    for problem in problems:
        found.add(f"{where}: {problem}")
    return None if problems else {name: plain.index(name) for name in columns.read if name in plain}


def _of_text(cells: dict[str, str]) -> Row:
    """A row of CSV: what is no text in other formats is read as JSON; what is none stays text, for the checks."""
    row: Row = {}
    for name, cell in cells.items():
        row[name] = cell
        if name in (*_AS_JSON, *_NUMBERS) and cell.strip():
            try:
                row[name] = json.loads(cell, parse_constant=no_constant)
            except (ValueError, RecursionError):
                row[name] = cell
    return _gathered(row)


def _of_types(row: Row) -> Row:
    """A row of a typed table: a whole number may be an id."""
    if type(row.get("id")) is int:
        row["id"] = str(row["id"])
    return _gathered(row)


def _gathered(row: Row) -> Row:
    """The row in the form of JSON lines: what else is known of a question in `meta`, no title and nothing known that is
    blank."""
    meta = row.pop("meta", None)
    if isinstance(meta, dict):
        meta = {name: value for name, value in meta.items() if value is not None}
    known = {name: row.pop(name) for name in _KNOWN if name in row}
    known = {name: value for name, value in known.items() if value not in (None, "", [])}
    if not _is_blank(meta) and not isinstance(meta, dict):
        row["meta"] = meta
    elif known or meta:
        row["meta"] = {**(meta or {}), **known}
    if "title" in row and _is_blank(row["title"]):
        del row["title"]
    return row


def _is_blank(value: Any) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())
