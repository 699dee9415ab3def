"""Questions and passages, checked. Whatever the source, it becomes a folder of this form and is read in one way:

    train.jsonl, dev.jsonl, test.jsonl   {"id": str, "question": str, "answers": [str, ...], "meta": {...}}  a line each
    corpus.jsonl                         {"id": str, "contents": "title\\ntext"}                             a line each

`meta` may be left out. Blank lines are skipped. Everything wrong with the files is told at once, as `file:line: ...`.
"""

import contextlib
import hashlib
import json
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from smartrag.config import Data
from smartrag.hub import NAMES, HubUnreachable, write_hub
from smartrag.types import Question
from smartrag.world import fingerprint, write_world

SPLITS = ("train", "dev", "test")
MOST_CHARACTERS = 1_000_000  # of one text field
_HUB_FORM = "v1"  # raise it when hub.py writes anything differently
_SHOWN = 20  # problems a message lists; the others are counted
_FORM = "a folder with train.jsonl, dev.jsonl, test.jsonl (id, question, answers) and corpus.jsonl (id, contents)"


class DataError(ValueError):
    """The data cannot be used; the message lists every problem with its file and line and what to do."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """Checked questions. `corpus` is None where the source brings no passages; a built index must then be named."""

    train: tuple[Question, ...]
    dev: tuple[Question, ...]
    test: tuple[Question, ...]
    corpus: Path | None


def load(data: Data, cache: Path) -> Dataset:
    """The data set that `data` names, cut to its limits; `cache` keeps what is made or fetched.

    A limit picks the questions whose ids hash lowest: the same ones on every machine, and a larger limit only adds.
    Raises DataError (all problems at once) or OSError. Warns when questions of train are in dev as well.
    """
    folder = _folder(data.source, cache)
    found = _Problems()
    limits = {"train": data.train_questions, "dev": data.dev_questions, "test": data.test_questions}
    splits = {split: read_questions(folder / f"{split}.jsonl", found) for split in SPLITS}
    _check_overlap(folder, splits, found)
    corpus = folder / "corpus.jsonl"
    if not corpus.is_file() and data.source not in NAMES:
        found.add(f"{corpus}: no such file; the passages to search, one {{'id', 'contents'}} a line")
    found.raise_if_any()
    chosen = {split: _limited(members, limits[split]) for split, members in splits.items()}
    return Dataset(chosen["train"], chosen["dev"], chosen["test"], corpus if corpus.is_file() else None)


def check_corpus(path: Path) -> int:
    """The number of passages in the corpus at `path`. Raises DataError when a row would be lost or misread in Lucene:
    no JSON, no text, control characters that Java replaces, or an id twice."""
    found = _Problems()
    seen: dict[str, int] = {}
    for line, row in _rows(path, found):
        where = f"{path}:{line}"
        _text(row, "contents", where, found)
        _identity(row, where, seen, found)
    if not seen and not found:
        found.add(f"{path}: no passages; write one {{'id', 'contents'}} a line")
    found.raise_if_any()
    return len(seen)


def read_questions(path: Path, found: "_Problems") -> dict[int, Question]:
    """Line number -> question of a split's file; what is wrong goes to `found`."""
    questions: dict[int, Question] = {}
    seen: dict[str, int] = {}
    already = found.count
    for line, row in _rows(path, found):
        where, before = f"{path}:{line}", found.count
        text = _text(row, "question", where, found)
        _identity(row, where, seen, found)
        answers = _answers(row, where, found)
        meta = row.get("meta", {})
        if not isinstance(meta, dict):
            found.add(f'{where}: field "meta" must be an object, got {_show(meta)}')
        elif found.count == before:
            questions[line] = Question(row["id"], text.strip(), answers, meta)
    if not questions and found.count == already:
        found.add(f"{path}: the split has no questions; write one {{'id', 'question', 'answers'}} a line")
    return questions


@dataclass
class _Problems:
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
            more = [f"... and {self.count - _SHOWN} more"] if self.count > _SHOWN else []
            raise DataError("\n".join([f"{self.count} problem(s) in the data:", *self.shown, *more]))


def _folder(source: str, cache: Path) -> Path:
    """The folder that holds `source`, made in `cache` first where it is not a folder itself."""
    if source == "world":
        return _made(cache / f"world-{fingerprint()}", write_world)
    if source in NAMES:
        try:
            return _made(cache / f"{source}-{_HUB_FORM}", partial(write_hub, source))
        except HubUnreachable as error:
            raise DataError(f"{error}; get it where the hub is in reach and give data.source={_FORM}") from error
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    kind = "is a file" if folder.exists() else "does not exist"
    raise DataError(f'data.source={source!r} {kind}; give "world", one of {", ".join(NAMES)}, or {_FORM}')


def _made(folder: Path, write: Callable[[Path], None]) -> Path:
    """`folder`, written aside and renamed when it is not there yet: it is whole or absent, whoever else makes it."""
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
            write(Path(scratch) / "made")
            with contextlib.suppress(OSError):  # another process was faster: its folder is the same
                (Path(scratch) / "made").rename(folder)
        if not folder.is_dir():
            raise OSError(f"{folder} could not be made; is {folder.parent} writable?")
    return folder


def _rows(path: Path, found: _Problems) -> Iterator[tuple[int, dict[str, Any]]]:
    """(line number from 1, object) of every usable line; the others go to `found`."""
    if not path.is_file():
        found.add(f"{path}: no such file; needed is {_FORM}")
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
                row = json.loads(text.rstrip("\r\n"))
            except (ValueError, RecursionError) as error:
                reason = f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else error
                found.add(f"{where}: not valid JSON ({reason}); a line must be one whole JSON object")
                continue
            if isinstance(row, dict):
                yield line, row
            else:
                found.add(f"{where}: must be a JSON object, got {_show(row)}")


def _text(row: dict[str, Any], name: str, where: str, found: _Problems) -> str:
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
        return f"must be a non-blank string, got {_show(value)}"
    if len(value) > MOST_CHARACTERS:
        return f"has {len(value):,} characters, at most {MOST_CHARACTERS:,} are allowed; cut it into passages"
    if "\0" in value:
        return f"holds a NUL character at position {value.index(chr(0))}; remove it"
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        return f"holds half a surrogate pair at position {error.start}, which is no character; remove it"
    return None


def _identity(row: dict[str, Any], where: str, seen: dict[str, int], found: _Problems) -> None:
    name = _text(row, "id", where, found)
    if not name:
        return
    line = int(where.rsplit(":", 1)[1])
    if name in seen:
        found.add(f'{where}: field "id" {_show(name)} is already that of line {seen[name]}; ids must be unique')
    else:
        seen[name] = line


def _answers(row: dict[str, Any], where: str, found: _Problems) -> tuple[str, ...]:
    """Gold answers; a blank one among others is a problem too, since nothing can match it."""
    if "answers" not in row:
        hint = '; write "answers": ["..."]' if "answer" in row else "; add it"
        found.add(f'{where}: field "answers" is missing{hint}')
        return ()
    answers = row["answers"]
    if not isinstance(answers, list) or not answers:
        found.add(f'{where}: field "answers" must be a list of at least one non-blank string, got {_show(answers)}')
        return ()
    for i, answer in enumerate(answers):
        if problem := _text_problem(answer):
            found.add(f'{where}: field "answers[{i}]" {problem}')
    return tuple(answers)


def _check_overlap(folder: Path, splits: dict[str, dict[int, Question]], found: _Problems) -> None:
    """No question of test may have been trained on; sharing with dev only flatters the curves, so it is a warning."""
    trained = {_same(q.text): line for line, q in splits["train"].items()}
    for line, question in splits["test"].items():
        if (other := trained.get(_same(question.text))) is not None:
            found.add(
                f"{folder / 'test.jsonl'}:{line}: the same question is in train.jsonl:{other} "
                f"({_show(question.text)}); remove it from one of them"
            )
    shared = sum(_same(q.text) in trained for q in splits["dev"].values())
    if shared:
        warnings.warn(f"{shared} question(s) of {folder / 'dev.jsonl'} are in train.jsonl as well", stacklevel=3)


def _limited(members: dict[int, Question], limit: int | None) -> tuple[Question, ...]:
    questions: Sequence[Question] = list(members.values())
    if limit is None or limit >= len(questions):
        return tuple(questions)
    lowest = sorted(questions, key=lambda q: hashlib.sha256(q.id.encode()).digest())[:limit]
    kept = {q.id for q in lowest}
    return tuple(q for q in questions if q.id in kept)


def _same(text: str) -> str:
    return " ".join(text.casefold().split())


def _show(value: Any) -> str:
    """`value` escaped and cut to 80 characters."""
    text = json.dumps(value, ensure_ascii=True, default=str)
    return text if len(text) <= 80 else text[:77] + "..."
