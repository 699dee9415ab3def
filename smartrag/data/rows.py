"""What a row must be, and lines of JSON: what is wrong is told with file, line and cure, all of it at once."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MOST_CHARACTERS = 1_000_000  # of one text field
_SHOWN = 20  # problems a message lists; the others are counted
FORM = (
    "a folder with train.jsonl, dev.jsonl, test.jsonl (id, question, answers) and corpus.jsonl (id, contents), or the "
    "same as .csv, .tsv, .parquet or saved data sets"
)


class DataError(ValueError):
    """The data cannot be used; the message lists every problem with its file and line and what to do."""


@dataclass
class Problems:
    """Problems as they are found. The first _SHOWN are kept, all are counted."""

    shown: list[str] = field(default_factory=list)
    count: int = 0

    def add(self, problem: str) -> None:
        self.count += 1
        if len(self.shown) < _SHOWN:
            self.shown.append(problem)

    def __bool__(self) -> bool:
        return self.count > 0

    def raise_if_any(self) -> None:
        if self.count:
            raise DataError("\n".join([f"{self.count} problem(s) in the data:", *listed(self.shown, self.count)]))


def listed(problems: Sequence[str], count: int) -> list[str]:
    """The first _SHOWN of `count` problems, and how many more there are."""
    return [*problems[:_SHOWN], *([f"... and {count - _SHOWN} more"] if count > _SHOWN else [])]


def rows(path: Path, found: Problems) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number from 1, object) of every usable line; the others go to `found`."""
    if not path.is_file():
        found.add(f"{path}: no such file; needed is {FORM}")
        return
    with path.open("rb") as lines:
        for line, raw in enumerate(lines, 1):
            where = f"{path}:{line}"
            try:
                text = raw.decode("utf-8")
            except UnicodeDecodeError as error:
                found.add(f"{where}: not valid UTF-8 at byte {error.start} of the line; save the file as UTF-8")
                continue
            if text.startswith("\ufeff"):
                found.add(f"{where}: starts with a byte order mark; save the file as UTF-8 without BOM")
                continue
            if not text.strip():
                continue
            try:
                row = json.loads(text.rstrip("\r\n"), object_pairs_hook=_object, parse_constant=no_constant)
            except (ValueError, RecursionError) as error:
                reason = f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else error
                found.add(f"{where}: not valid JSON ({reason}); a line must be one whole JSON object")
                continue
            if isinstance(row, dict):
                yield line, row
            else:
                found.add(f"{where}: must be a JSON object, got {show(row)}")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Python would take the last of two values in silence, another reader the first."""
    made = dict(pairs)
    if len(made) < len(pairs):
        twice = next(name for i, (name, _) in enumerate(pairs) if name in dict(pairs[:i]))
        raise ValueError(f"field {show(twice)} stands twice")
    return made


def no_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def meta_of(row: dict[str, Any], where: str, found: Problems) -> dict[str, Any]:
    """What else is known of a question, of which two fields are read: searches that lead to the answer, popularity."""
    meta = row.get("meta", {})
    if not isinstance(meta, dict):
        found.add(f'{where}: field "meta" must be an object, got {show(meta)}')
        return {}
    queries = meta.get("queries", [])
    if not isinstance(queries, list) or any(_text_problem(query) for query in queries):
        found.add(f'{where}: field "meta.queries" must be a list of non-blank strings, got {show(queries)}')
    for name in ("popularity", "subject_popularity"):
        known = meta.get(name)
        if isinstance(known, bool) or not isinstance(known, int | float | None):
            found.add(f'{where}: field "meta.{name}" must be a number, got {show(known)}')
    return meta


def text_of(row: dict[str, Any], name: str, where: str, found: Problems) -> str:
    """The text of field `name`, or "" and a problem."""
    if name not in row:
        near = f" (found: {', '.join(map(str, list(row)[:6])) or 'no fields'})"
        found.add(f'{where}: field "{name}" is missing{near}; add it')
        return ""
    problem = _text_problem(row[name])
    if problem:
        found.add(f'{where}: field "{name}" {problem}')
        return ""
    return row[name]


def _text_problem(value: Any) -> str | None:
    if not isinstance(value, str) or not value.strip():
        return f"must be a non-blank string, got {show(value)}"
    if len(value) > MOST_CHARACTERS:
        return f"has {len(value):,} characters, at most {MOST_CHARACTERS:,} are allowed; cut it into passages"
    if "\0" in value:
        return f"holds a NUL character at position {value.index(chr(0))}; remove it"
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        return f"holds half a surrogate pair at position {error.start}, which is no character; remove it"
    return None


def identity(row: dict[str, Any], where: str, seen: dict[str, str], found: Problems, *, made_of: str) -> str:
    """The id of a row, which no other may have; without one it is made of the text `made_of`, the same ever after."""
    name = text_of(row, "id", where, found) if "id" in row else made_id(made_of)
    if not name:
        return ""
    if name in seen and "id" in row:
        other = seen[name].rsplit(":", 1)[1]
        found.add(f'{where}: field "id" {show(name)} is already that of line {other}; ids must be unique')
    elif name in seen:
        found.add(f"{where}: is the same as {seen[name]}; leave one of them, with all answers, or give both an id")
    seen.setdefault(name, where)
    return name


def made_id(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16] if text else ""


def answers_of(row: dict[str, Any], where: str, found: Problems) -> tuple[str, ...]:
    """Gold answers; a blank one among others is a problem too, since nothing can match it."""
    if "answers" not in row and "answer" not in row:
        found.add(f'{where}: field "answers" is missing; add it')
        return ()
    if "answers" in row and "answer" in row:
        found.add(f'{where}: fields "answers" and "answer"; leave one')
        return ()
    if isinstance(answer := row.get("answer"), str):
        if problem := _text_problem(answer):
            found.add(f'{where}: field "answer" {problem}')
        return (answer,)
    name = "answers" if "answers" in row else "answer"
    answers = row[name]
    if not isinstance(answers, list) or not answers:
        found.add(
            f'{where}: field "{name}" must be a list of at least one non-blank string, got {show(answers)}; a single '
            'one may stand in "answer" as it is'
        )
        return ()
    for i, answer in enumerate(answers):
        if problem := _text_problem(answer):
            found.add(f'{where}: field "{name}[{i}]" {problem}')
    return tuple(answers)


def contents_of(row: dict[str, Any], where: str, found: Problems) -> str:
    """What is searched and shown of a passage: `contents`, or `title` in a line of its own above `text`."""
    if "contents" in row or "text" not in row:
        return text_of(row, "contents", where, found)
    text = text_of(row, "text", where, found)
    if row.get("title") is None or row["title"] == "":
        return text
    return f"{' '.join(text_of(row, 'title', where, found).split())}\n{text}"


def show(value: Any) -> str:
    """`value` escaped and cut to 80 characters."""
    text = json.dumps(value, ensure_ascii=True, default=str)
    return text if len(text) <= 80 else text[:77] + "..."
