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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from smartrag.config import Data
from smartrag.data.hub import NAMES, HubUnreachable, brings_passages, hub_id, write_hub
from smartrag.data.rows import FORM, DataError, Problems, answers_of, identity, meta_of, rows, show, text_of
from smartrag.data.splits import question_hash
from smartrag.data.world import fingerprint, write_world
from smartrag.types import Question

SPLITS = ("train", "dev", "test")
NAMED = ("world", *NAMES)  # sources that need no folder
_HUB_FORM = "v1"  # raise it when hub.py writes anything differently


@dataclass(frozen=True, slots=True)
class Dataset:
    """Checked questions. `corpus` is None where the source brings no passages; a built index must then be named."""

    train: tuple[Question, ...]
    dev: tuple[Question, ...]
    test: tuple[Question, ...]
    corpus: Path | None


def load(data: Data, cache: Path) -> Dataset:
    """The data sets that `data` names, each cut to its limits; `cache` keeps what is made or fetched.

    A limit picks the questions whose ids hash lowest: the same ones on every machine, and a larger limit only adds.
    Raises DataError (all problems at once) or OSError. Warns of questions in train and in dev or test where
    `data.allow_overlap` lets them pass.
    """
    found = Problems()
    if len(data.mix) == 1:
        sets = [_read(data.source, data, cache, found)]
    else:
        sets = [_read(_source(name, data), data, cache, found) for name in data.mix]
    found.raise_if_any()
    return sets[0] if len(sets) == 1 else _joined(dict(zip(data.mix, sets, strict=True)), cache)


def _source(name: str, data: Data) -> str:
    """What a set of several is read from: `folder` is data.source; another its subfolder, where there is one."""
    here = Path(data.source).expanduser() / name
    return data.source if name == "folder" else str(here) if here.is_dir() else name


def _read(source: str, data: Data, cache: Path, found: Problems) -> Dataset:
    """One data set, cut to its limits."""
    folder = _folder(source, cache)
    limits = {"train": data.train_questions, "dev": data.dev_questions, "test": data.test_questions}
    splits = {split: read_questions(folder / f"{split}.jsonl", found) for split in SPLITS}
    _check_overlap(folder, splits, found, allowed=data.allow_overlap)
    corpus = folder / "corpus.jsonl"
    if not corpus.is_file() and source not in NAMES:
        found.add(f"{corpus}: no such file; the passages to search, one {{'id', 'contents'}} a line")
    chosen = {split: _limited(members, limits[split]) for split, members in splits.items()}
    return Dataset(chosen["train"], chosen["dev"], chosen["test"], corpus if corpus.is_file() else None)


def _joined(sets: Mapping[str, Dataset], cache: Path) -> Dataset:
    """Several data sets as one. Ids become "<set>/<id>" and `meta["dataset"]` names the set.

    A train question that another set asks in dev or test is left out, with a warning: no file is wrong, but together
    they would test what was trained. `corpus` is None when a set brings none: part of the questions could not be found.
    """
    train, dev, test = (
        tuple(
            replace(q, id=f"{name}/{q.id}", meta={**q.meta, "dataset": name})
            for name, members in sets.items()
            for q in getattr(members, split)
        )
        for split in SPLITS
    )
    asked_by: dict[str, set[str]] = {}
    for q in (*dev, *test):
        asked_by.setdefault(question_hash(q.text), set()).add(q.meta["dataset"])
    kept = tuple(q for q in train if asked_by.get(question_hash(q.text), set()) <= {q.meta["dataset"]})
    if len(kept) < len(train):
        left_out = len(train) - len(kept)
        warnings.warn(f"{left_out} train question(s) left out that another data set asks in dev or test", stacklevel=3)
    corpora = {name: s.corpus for name, s in sets.items() if s.corpus is not None}
    return Dataset(kept, dev, test, _union(corpora, cache) if len(corpora) == len(sets) else None)


def _union(corpora: Mapping[str, Path], cache: Path) -> Path:
    """One corpus of all passages, equal ones once, in a folder of `cache` that their sha256 names."""
    digest = hashlib.sha256()
    for name, path in corpora.items():
        with path.open("rb") as file:
            digest.update(f"{name} {hashlib.file_digest(file, 'sha256').hexdigest()} ".encode())
    return _made(cache / f"union-{digest.hexdigest()[:16]}", partial(_write_union, corpora)) / "corpus.jsonl"


def _write_union(corpora: Mapping[str, Path], folder: Path) -> None:
    for path in corpora.values():
        check_corpus(path)
    folder.mkdir(parents=True)
    seen: set[bytes] = set()
    with (folder / "corpus.jsonl").open("w", encoding="utf-8", newline="\n") as out:
        for name, path in corpora.items():
            for _, row in rows(path, Problems()):
                text = hashlib.sha256(row["contents"].encode()).digest()
                if text not in seen:
                    seen.add(text)
                    passage = {"id": f"{name}/{row['id']}", "contents": row["contents"]}
                    out.write(json.dumps(passage, ensure_ascii=False) + "\n")


def check_corpus(path: Path) -> int:
    """The number of passages in the corpus at `path`. Raises DataError when a row would be lost or misread in Lucene:
    no JSON, no text, control characters that Java replaces, or an id twice."""
    found = Problems()
    seen: dict[str, int] = {}
    for line, row in rows(path, found):
        where = f"{path}:{line}"
        text_of(row, "contents", where, found)
        identity(row, where, seen, found)
    if not seen and not found:
        found.add(f"{path}: no passages; write one {{'id', 'contents'}} a line")
    found.raise_if_any()
    return len(seen)


def read_questions(path: Path, found: Problems) -> dict[int, Question]:
    """Line number -> question of a split's file; what is wrong goes to `found`."""
    questions: dict[int, Question] = {}
    seen: dict[str, int] = {}
    already = found.count
    for line, row in rows(path, found):
        where, before = f"{path}:{line}", found.count
        text = text_of(row, "question", where, found)
        identity(row, where, seen, found)
        answers = answers_of(row, where, found)
        meta = meta_of(row, where, found)
        if found.count == before:
            questions[line] = Question(row["id"], text.strip(), answers, meta)
    if not questions and found.count == already:
        found.add(f"{path}: the split has no questions; write one {{'id', 'question', 'answers'}} a line")
    return questions


@dataclass(frozen=True, slots=True)
class Place:
    """The folder that holds a data set, and what makes it where it is not there yet. None: it is yours."""

    folder: Path
    make: Callable[[Path], None] | None
    repo: str | None  # on the hub, of which it is made
    passages: bool  # it brings a corpus


def places(data: Data, cache: Path) -> dict[str, Place]:
    """Where `load` reads each data set from; nothing is made or fetched. Raises DataError where there is none."""
    sources = [data.source] if len(data.mix) == 1 else [_source(name, data) for name in data.mix]
    return {source: _place(source, cache) for source in sources}


def _place(source: str, cache: Path) -> Place:
    if source == "world":
        return Place(cache / f"world-{fingerprint()}", write_world, None, True)
    if source in NAMES:
        folder = cache / f"{source}-{_HUB_FORM}"
        return Place(folder, partial(write_hub, source), hub_id(source), brings_passages(source))
    folder = Path(source).expanduser()
    if folder.is_dir():
        return Place(folder, None, None, True)
    kind = "is a file" if folder.exists() else "does not exist"
    raise DataError(f"data.source={source!r} {kind}; give {', '.join(NAMED)}, or {FORM}")


def _folder(source: str, cache: Path) -> Path:
    """The folder that holds `source`, made in `cache` first where it is not a folder itself."""
    place = _place(source, cache)
    try:
        return place.folder if place.make is None else _made(place.folder, place.make)
    except HubUnreachable as error:
        raise DataError(f"{error}; get it where the hub is in reach and give data.source={FORM}") from error


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


def _check_overlap(folder: Path, splits: dict[str, dict[int, Question]], found: Problems, *, allowed: bool) -> None:
    """No question of dev or test may have been trained on; where that is `allowed` it is a warning."""
    trained = {question_hash(q.text): (line, q.id) for line, q in splits["train"].items()}
    for split in ("dev", "test"):
        path = folder / f"{split}.jsonl"
        shared = [(line, q) for line, q in splits[split].items() if question_hash(q.text) in trained]
        if shared and allowed:
            warnings.warn(f"{len(shared)} question(s) of {path} are in train.jsonl as well", stacklevel=4)
            continue
        for line, question in shared:
            other, id = trained[question_hash(question.text)]
            found.add(
                f"{path}:{line}: the same question is in train.jsonl:{other} (ids {show(question.id)} and {show(id)}: "
                f"{show(question.text)}); remove it from one of them, or allow it with data.allow_overlap=true"
            )


def _limited(members: dict[int, Question], limit: int | None) -> tuple[Question, ...]:
    questions: Sequence[Question] = list(members.values())
    if limit is None or limit >= len(questions):
        return tuple(questions)
    lowest = sorted(questions, key=lambda q: hashlib.sha256(q.id.encode()).digest())[:limit]
    kept = {q.id for q in lowest}
    return tuple(q for q in questions if q.id in kept)
