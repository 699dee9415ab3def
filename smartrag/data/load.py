"""The questions and passages of a run, checked. A data set is one of

    a folder      train, dev, test (validation will do for dev) and corpus, each in any of the forms of tables.py
    two files     `data.questions`, divided as questions.py says, and `data.corpus`
    a name        `world`, or a public set: made or fetched into a folder of the cache, as lines of JSON

    a question    {"id": str, "question": str, "answers": [str, ...], "meta": {...}}
    a passage     {"id": str, "contents": "title\\ntext"}

`id` and `meta` may be left out, one answer may stand in `answer`, and `title` and `text` in place of `contents`. Blank
lines are skipped. Everything wrong with the files is told at once, as `file:line: ...`.
"""

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from smartrag.config import Data
from smartrag.data.corpus import as_lines, made, union
from smartrag.data.hub import NAMES, HubUnreachable, brings_passages, hub_id, write_hub
from smartrag.data.questions import SPLITS, Asked, divided, read_split
from smartrag.data.rows import FORM, DataError, Problems, show
from smartrag.data.splits import question_hash
from smartrag.data.tables import HUB, is_saved, named
from smartrag.data.world import fingerprint, write_world
from smartrag.types import Question

NAMED = ("world", *NAMES)  # sources that need no folder
FILES = "files"  # the source that data.questions and data.corpus are
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
    sets = [_read(source, data, cache, found) for source in _sources(data)]
    found.raise_if_any()
    return sets[0] if len(sets) == 1 else _joined(dict(zip(data.mix, sets, strict=True)), cache)


def _sources(data: Data) -> list[str]:
    return [data.source] if len(data.mix) == 1 else [_source(name, data) for name in data.mix]


def _source(name: str, data: Data) -> str:
    """What a set of several is read from: `folder` is data.source; another its subfolder, where there is one."""
    here = Path(data.source).expanduser() / name
    return data.source if name == "folder" else str(here) if here.is_dir() else name


def _read(source: str, data: Data, cache: Path, found: Problems) -> Dataset:
    """One data set, cut to its limits."""
    limits = {"train": data.train_questions, "dev": data.dev_questions, "test": data.test_questions}
    try:
        if source == FILES and data.questions is not None:
            splits, corpus = divided(data.questions, found), data.corpus
        else:
            folder = _folder(source, data, cache)
            files = {split: _file(folder, split, found) for split in SPLITS}
            splits = {split: {} if file is None else read_split(file, found) for split, file in files.items()}
            bare = source in NAMES and not brings_passages(source)
            corpus = None if bare else _file(folder, "corpus", found)
        _check_overlap(splits, found, allowed=data.allow_overlap)
        lines = None if corpus is None else as_lines(corpus, cache, found)
    except HubUnreachable as error:
        raise DataError(f"{error}; get it where the hub is in reach and give data.source={FORM}") from error
    chosen = {split: _limited([*asked.values()], limits[split]) for split, asked in splits.items()}
    return Dataset(chosen["train"], chosen["dev"], chosen["test"], lines)


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
    return Dataset(kept, dev, test, union(corpora, cache) if len(corpora) == len(sets) else None)


@dataclass(frozen=True, slots=True)
class Place:
    """The folder that holds a data set, and what makes it where it is not there yet. None: it is yours."""

    folder: Path  # or the file of questions
    make: Callable[[Path], None] | None
    repo: str | None  # on the hub, of which it is made
    passages: bool  # it brings a corpus
    lacks: tuple[str, ...]  # what is not there of one of yours


def places(data: Data, cache: Path) -> dict[str, Place]:
    """Where `load` reads each data set from; nothing is made or fetched. Raises DataError where there is none."""
    return {source: _place(source, data, cache) for source in _sources(data)}


def _place(source: str, data: Data, cache: Path) -> Place:
    if source == FILES and data.questions is not None:
        given = [name for name in (data.questions, data.corpus) if name is not None and not name.startswith(HUB)]
        lacks = tuple(name for name in given if not Path(name).expanduser().exists())
        return Place(Path(data.questions), None, None, data.corpus is not None, lacks)
    if source == "world":
        return Place(cache / f"world-{fingerprint()}", write_world, None, True, ())
    if source in NAMES:
        folder = cache / f"{source}-{_HUB_FORM}"
        return Place(folder, partial(write_hub, source), hub_id(source), brings_passages(source), ())
    folder = Path(source).expanduser()
    if folder.is_dir():
        return Place(folder, None, None, True, tuple(f"{n}.jsonl" for n in SPLITS if not _candidates(folder, n)))
    kind = "is a file" if folder.exists() else "does not exist"
    advice = "; of one file of questions: data=files data.questions=FILE data.corpus=FILE" * folder.is_file()
    raise DataError(f"data.source={source!r} {kind}; give {', '.join(NAMED)}, or {FORM}{advice}")


def _folder(source: str, data: Data, cache: Path) -> Path:
    """The folder that holds `source`, made in `cache` first where it is not a folder itself. Raises HubUnreachable."""
    place = _place(source, data, cache)
    return place.folder if place.make is None else made(place.folder, place.make)


def passages_of(given: str) -> str:
    """The corpus that a folder of data holds; what is no such folder itself. Raises DataError."""
    folder, found = Path(given).expanduser(), Problems()
    if given.startswith(HUB) or not folder.is_dir() or is_saved(folder):
        return given
    path = _file(folder, "corpus", found)
    found.raise_if_any()
    assert path is not None
    return path


def _candidates(folder: Path, name: str) -> list[Path]:
    return [*named(folder, name), *(named(folder, "validation") if name == "dev" else [])]


def _file(folder: Path, name: str, found: Problems) -> str | None:
    """The one file or saved data set of that name; None, and a problem, where there is none or a choice."""
    there = _candidates(folder, name)
    if len(there) == 1:
        return str(there[0])
    if there:
        found.add(f"{folder}: {' and '.join(path.name for path in there)} are the same part; leave one of them")
    elif name == "corpus":
        found.add(f"{folder / 'corpus.jsonl'}: no such file; the passages to search, one {{'id', 'contents'}} a line")
    else:
        found.add(f"{folder / name}.jsonl: no such file; needed is {FORM}")
    return None


def _check_overlap(splits: dict[str, Asked], found: Problems, *, allowed: bool) -> None:
    """No question of dev or test may have been trained on; where that is `allowed` it is a warning."""
    trained = {question_hash(q.text): (where, q.id) for where, q in splits["train"].items()}
    for split in ("dev", "test"):
        shared = [(where, q) for where, q in splits[split].items() if question_hash(q.text) in trained]
        if shared and allowed:
            place, other = (next(iter(splits[s])).rpartition(":")[0] for s in (split, "train"))
            warnings.warn(
                f"{len(shared)} question(s) of {split} in {place} are in {Path(other).name} to be trained on as well",
                stacklevel=4,
            )
            continue
        for where, question in shared:
            other, id = trained[question_hash(question.text)]
            found.add(
                f"{where}: the same question is in {Path(other).name} (ids {show(question.id)} and {show(id)}: "
                f"{show(question.text)}); remove it from one of them, or allow it with data.allow_overlap=true"
            )


def _limited(questions: Sequence[Question], limit: int | None) -> tuple[Question, ...]:
    if limit is None or limit >= len(questions):
        return tuple(questions)
    lowest = sorted(questions, key=lambda q: hashlib.sha256(q.id.encode()).digest())[:limit]
    kept = {q.id for q in lowest}
    return tuple(q for q in questions if q.id in kept)
