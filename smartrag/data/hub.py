"""Public QA sets from the Hugging Face hub, turned into the folder form of `data.py`.

One reader a schema: hub row -> (question, paragraphs). A set without paragraphs (nq_open, popqa, ambignq) brings no
corpus; it is asked against an index of Wikipedia that `retriever.index` names.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smartrag.data.splits import bucket, question_hash
from smartrag.types import Question

Row = Mapping[str, Any]
Paragraphs = list[tuple[str, str]]  # (title, text)
Reader = Callable[[Row, str], tuple[Question, Paragraphs]]  # (row, an id for rows that have none)

PASSAGE_WORDS = 100  # of a page cut into passages, as DPR does
_DEV_PERCENT = 5  # of a set that has no third split, taken from train


class HubUnreachable(OSError):
    """The hub or the set on it cannot be had."""


def hotpot_row(row: Row, _: str) -> tuple[Question, Paragraphs]:
    """HotpotQA and 2WikiMultihopQA: `context` holds parallel lists of titles and of sentence lists."""
    context = row["context"]
    pairs = zip(context["title"], context["sentences"], strict=True) if isinstance(context, Mapping) else context
    paragraphs = [(title, " ".join(s.strip() for s in sentences)) for title, sentences in pairs]
    meta = {"hops": 2, "type": row.get("type", ""), "level": row.get("level", "")}
    return Question(
        str(row.get("id") or row["_id"]), row["question"], _distinct([row["answer"]]), _filled(meta)
    ), paragraphs


def musique_row(row: Row, _: str) -> tuple[Question, Paragraphs]:
    """MuSiQue: 20 paragraphs a question; the first part of the id is the number of hops ("2hop__...")."""
    paragraphs = [(p["title"], p["paragraph_text"]) for p in row["paragraphs"]]
    hops = row["id"][0]
    meta = {"hops": int(hops) if hops.isdigit() else None, "type": row["id"].split("__")[0]}
    answers = _distinct([row["answer"], *(row.get("answer_aliases") or [])])
    return Question(row["id"], row["question"], answers, _filled(meta)), paragraphs


def trivia_row(row: Row, _: str) -> tuple[Question, Paragraphs]:
    """TriviaQA (rc.wikipedia): whole Wikipedia pages, cut into passages of PASSAGE_WORDS words."""
    pages = row["entity_pages"]
    paragraphs = []
    for title, text in zip(pages["title"], pages["wiki_context"], strict=True):
        words = text.split()
        for start in range(0, len(words), PASSAGE_WORDS):
            paragraphs.append((title, " ".join(words[start : start + PASSAGE_WORDS])))
    answers = _distinct([row["answer"]["value"], *row["answer"]["aliases"]])
    return Question(row["question_id"], row["question"], answers, {"hops": 1}), paragraphs


def popqa_row(row: Row, _: str) -> tuple[Question, Paragraphs]:
    """PopQA: answers are a JSON list in a string; popularity is the subject's monthly Wikipedia page views."""
    meta = {"hops": 1, "type": row["prop"], "subject": row["subj"], "popularity": row["s_pop"]}
    answers = _distinct(json.loads(row["possible_answers"]))
    return Question(str(row["id"]), row["question"], answers, _filled(meta)), []


def nq_row(row: Row, name: str) -> tuple[Question, Paragraphs]:
    """NQ-open: question and answers, nothing else."""
    return Question(name, row["question"], _distinct(row["answer"]), {"hops": 1}), []


def ambignq_row(row: Row, _: str) -> tuple[Question, Paragraphs]:
    """AmbigNQ (light): an answer to any reading of the question is right. `type` is "singleAnswer" or "multipleQAs"."""
    found = row["annotations"]
    readings = [pair["answer"] for pair in found["qaPairs"]]
    meta = {"hops": 1, "type": found["type"][0] if found["type"] else ""}
    return Question(str(row["id"]), row["question"], _distinct(_leaves([found["answer"], readings])), _filled(meta)), []


@dataclass(frozen=True, slots=True)
class _Source:
    path: str
    config: str | None
    read: Reader
    train: str | None  # name of the hub's split; None: one split, divided by a hash of the question
    test: str
    licence: str  # of the questions, as their publishers state it
    passages: bool = True  # its rows bring them, from Wikipedia (CC BY-SA)


_SOURCES = {
    "hotpotqa": _Source("hotpotqa/hotpot_qa", "distractor", hotpot_row, "train", "validation", "CC BY-SA 4.0"),
    "2wikimultihopqa": _Source("framolfese/2WikiMultihopQA", None, hotpot_row, "train", "validation", "Apache-2.0"),
    "musique": _Source("dgslibisey/MuSiQue", None, musique_row, "train", "validation", "CC BY 4.0"),
    "triviaqa": _Source("mandarjoshi/trivia_qa", "rc.wikipedia", trivia_row, "train", "validation", "unknown"),
    "nq_open": _Source(
        "google-research-datasets/nq_open", None, nq_row, "train", "validation", "CC BY-SA 3.0", passages=False
    ),
    "ambignq": _Source("sewon/ambig_qa", "light", ambignq_row, "train", "validation", "CC BY-SA 3.0", passages=False),
    "popqa": _Source("akariasai/PopQA", None, popqa_row, None, "test", "MIT", passages=False),
}
NAMES = tuple(_SOURCES)


def hub_id(name: str) -> str:
    return _SOURCES[name].path


def licence(name: str) -> str:
    return _SOURCES[name].licence


def brings_passages(name: str) -> bool:
    return _SOURCES[name].passages


def write_hub(name: str, folder: Path) -> None:
    """Fetch the set `name` and write it to `folder`, which is made. Raises HubUnreachable with the reason."""
    source = _SOURCES[name]
    try:
        from datasets import load_dataset

        wanted = [split for split in (source.train, source.test) if split]
        rows = {split: load_dataset(source.path, source.config, split=split) for split in wanted}
    except Exception as error:  # the client raises many kinds: connection, HTTP, missing set, missing package
        reason = " ".join(str(error).split())[:300]
        raise HubUnreachable(f"{source.path} cannot be had from the hub ({type(error).__name__}: {reason})") from error
    write_rows(name, rows[source.train] if source.train else None, rows[source.test], folder)


def write_rows(name: str, train: Iterable[Row] | None, test: Iterable[Row], folder: Path) -> None:
    """Write the hub's rows of set `name` in the folder form.

    Rows without an answer and repeated ids are left out, and so are train questions that test asks in the same words.
    dev is taken from train by a hash of the question. Without `train`, test is divided: 70 % train, 10 % dev, 20 % test
    """
    read = _SOURCES[name].read
    folder.mkdir(parents=True, exist_ok=True)
    splits: dict[str, dict[str, Question]] = {"train": {}, "dev": {}, "test": {}}
    passages: dict[str, str] = {}
    for part, rows in (("test", test), ("train", train or ())):
        for i, row in enumerate(rows):
            question, paragraphs = read(row, f"{name}-{part}-{i}")
            for title, text in paragraphs:
                if text.strip():
                    contents = f"{title}\n{text.strip()}"
                    passages[f"p{_digest(contents):016x}"] = contents
            if question.answers and question.text.strip():
                splits[_split(question, part, whole=train is not None)].setdefault(question.id, question)
    asked = {question_hash(q.text) for q in splits["test"].values()}
    for split, members in splits.items():
        kept = [q for q in members.values() if split == "test" or question_hash(q.text) not in asked]
        lines = [
            {"id": q.id, "question": q.text, "answers": list(q.answers), "meta": {"dataset": name, **q.meta}}
            for q in kept
        ]
        _write_lines(folder / f"{split}.jsonl", lines)
    if passages:
        _write_lines(folder / "corpus.jsonl", ({"id": key, "contents": text} for key, text in passages.items()))


def _split(question: Question, part: str, *, whole: bool) -> str:
    place = bucket(question.text)
    if part == "train":
        return "dev" if place < _DEV_PERCENT else "train"
    if whole:
        return "test"
    return "train" if place < 70 else "dev" if place < 80 else "test"


def _write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    with path.open("w", encoding="utf-8", newline="\n") as out:
        for row in rows:
            out.write(json.dumps(row, ensure_ascii=False) + "\n")


def _distinct(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(text for text in texts if text and text.strip()))


def _leaves(nested: Any) -> Iterable[str]:
    """The strings in lists of lists, in order: annotators give several spellings of several answers."""
    return [nested] if isinstance(nested, str) else [leaf for part in nested for leaf in _leaves(part)]


def _filled(meta: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in meta.items() if value not in (None, "")}


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")
