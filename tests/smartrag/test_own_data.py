"""Questions and passages of one's own: the same comes of every form; who is trained on; how much is held."""

import csv
import json
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartrag.compose import load as compose
from smartrag.data.corpus import as_lines, check_corpus
from smartrag.data.load import DataError, Dataset, load
from smartrag.data.questions import divided
from smartrag.data.rows import Problems
from smartrag.data.splits import bucket, share_out
from smartrag.types import Question

HARD = 'a, "quoted" | piped; \t tabbed\nand\r\nbroken – Ø 東京 \\n'
QUESTIONS = [
    {
        "id": f"q{i}",
        "question": f"Which {HARD} is {i}?",
        "answers": ["A|B", f'the "{i}"', "x, y"][: 1 + i % 3],
        "split": ("train", "train", "validation", "test")[i % 4],
        "queries": [f"look {i}", HARD] if i % 2 else [],
        "popularity": i * 10 if i % 3 else None,
        "hops": 1 + i % 2,
        "type": "odd" if i % 2 else "even",
    }
    for i in range(12)
]
PASSAGES = [{"id": f"p{i}", "title": f"Title {i}" if i else "", "text": f"{HARD} {i}"} for i in range(5)]
WORDS = {"train": "train", "validation": "dev", "test": "test"}


def expected() -> dict[str, list[Question]]:
    """By hand."""
    found: dict[str, list[Question]] = {"train": [], "dev": [], "test": []}
    for row in QUESTIONS:
        known = {name: row[name] for name in ("queries", "popularity", "hops", "type")}
        meta = {name: value for name, value in known.items() if value not in (None, [])}
        found[WORDS[row["split"]]].append(Question(row["id"], row["question"], tuple(row["answers"]), meta))
    return found


def write_csv(path: Path, rows: list[dict[str, Any]], delimiter: str = ",", bom: bool = False) -> Path:
    with path.open("w", encoding="utf-8-sig" if bom else "utf-8", newline="") as out:
        writer = csv.writer(out, delimiter=delimiter)
        writer.writerow([f" {name.upper()}" for name in rows[0]])
        for row in rows:
            cells = [json.dumps(v, ensure_ascii=False) if isinstance(v, list) else v for v in row.values()]
            writer.writerow(["" if cell in (None, "[]") else cell for cell in cells])
    return path


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def as_json(row: dict[str, Any]) -> dict[str, Any]:
    """A question as lines of JSON have it: what else is known stands in meta."""
    known = {name: row[name] for name in ("queries", "popularity", "hops", "type") if row[name] not in (None, [])}
    return {name: row[name] for name in ("id", "question", "answers", "split")} | {"meta": known}


def written(folder: Path, form: str, name: str, rows: list[dict[str, Any]]) -> str:
    match form:
        case "jsonl":
            lines = [as_json(row) for row in rows] if name == "questions" else rows
            return str(write_jsonl(folder / f"{name}.jsonl", lines))
        case "csv" | "excel":
            return str(write_csv(folder / f"{name}.csv", rows, bom=form == "excel"))
        case "tsv":
            return str(write_csv(folder / f"{name}.tsv", rows, delimiter="\t"))
        case "pandas":
            frame = pd.DataFrame(rows)
            for column in {"answers", "queries"} & set(frame):
                frame[column] = frame[column].map(json.dumps)
            frame.to_csv(folder / f"{name}.csv")  # with its index, a column without a name
            return str(folder / f"{name}.csv")
        case "parquet":
            pd.DataFrame(rows).to_parquet(folder / f"{name}.parquet")
            return str(folder / f"{name}.parquet")
        case "saved":
            datasets.Dataset.from_list(rows).save_to_disk(str(folder / name))
            return str(folder / name)
        case _:
            parts = {"train": rows} if name == "corpus" else {s: [r for r in rows if r["split"] == s] for s in WORDS}
            bare = {
                s: datasets.Dataset.from_list([{k: v for k, v in r.items() if k != "split"} for r in part])
                for s, part in parts.items()
            }
            datasets.DatasetDict(bare).save_to_disk(str(folder / name))
            return str(folder / name)


def from_files(folder: Path, questions: str, corpus: str | None = None) -> Dataset:
    given = ["data=files", f"data.questions='{questions}'", *([] if corpus is None else [f"data.corpus='{corpus}'"])]
    return load(compose(given).data, folder / "cache")


FORMS = ["jsonl", "csv", "excel", "tsv", "pandas", "parquet", "saved", "saved in splits"]


@pytest.mark.parametrize("form", FORMS)
def test_the_same_comes_of_every_form(form: str, tmp_path: Path) -> None:
    questions = written(tmp_path, form, "questions", QUESTIONS)
    corpus = written(tmp_path, form, "corpus", PASSAGES)
    found = from_files(tmp_path, questions, corpus)
    assert {split: list(getattr(found, split)) for split in ("train", "dev", "test")} == expected()
    assert found.corpus is not None
    contents = [f"{p['title']}\n{p['text']}" if p["title"] else p["text"] for p in PASSAGES]
    assert [json.loads(line) for line in found.corpus.read_text().splitlines()] == [
        {"id": p["id"], "contents": text} for p, text in zip(PASSAGES, contents, strict=True)
    ]
    stamp = found.corpus.stat().st_mtime_ns
    again = from_files(tmp_path, questions, corpus)
    assert again == found
    assert again.corpus is not None
    assert again.corpus.stat().st_mtime_ns == stamp, "passages are written once"


@pytest.mark.parametrize("form", ["csv", "tsv", "parquet", "saved"])
def test_a_folder_may_hold_any_of_them(form: str, tmp_path: Path) -> None:
    for split in WORDS:
        rows = [{k: v for k, v in r.items() if k != "split"} for r in QUESTIONS if r["split"] == split]
        written(tmp_path, form, split, rows)
    written(tmp_path, form, "corpus", PASSAGES)
    found = load(compose(["data=folder", f"data.source={tmp_path}"]).data, tmp_path / "cache")
    assert {split: list(getattr(found, split)) for split in ("train", "dev", "test")} == expected()
    assert found.corpus is not None
    assert check_corpus(found.corpus) == len(PASSAGES)


def test_lines_of_json_are_taken_as_they_are(tmp_path: Path) -> None:
    plain = write_jsonl(tmp_path / "p.jsonl", [{"id": "p", "contents": "x\ny", "more": 1}])
    assert as_lines(str(plain), tmp_path / "cache", Problems()) == plain
    assert not (tmp_path / "cache").exists()


def test_ids_are_made_of_what_they_are_of_and_equal_passages_are_one(tmp_path: Path) -> None:
    texts = ["one", "two", "one", "three"]
    path = write_csv(tmp_path / "p.csv", [{"text": text} for text in texts])
    first = as_lines(str(path), tmp_path, Problems())
    assert first is not None
    rows = [json.loads(line) for line in first.read_text().splitlines()]
    assert [row["contents"] for row in rows] == ["one", "two", "three"]
    path = write_csv(tmp_path / "more.csv", [{"text": text} for text in ["zero", *texts]])
    more = as_lines(str(path), tmp_path, Problems())
    assert more is not None
    assert [json.loads(line) for line in more.read_text().splitlines()][1:] == rows


# ---- who is trained on

TEXTS = st.lists(st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1).filter(str.strip), min_size=1)


def split_of(tmp_path: Path, texts: list[str]) -> dict[str, str]:
    """Question in one spelling -> its split."""
    path = write_csv(tmp_path / "q.csv", [{"id": i, "question": t, "answer": "x"} for i, t in enumerate(texts)])
    asked = divided(str(path), Problems())
    found: dict[str, set[str]] = {}
    for split, members in asked.items():
        for question in members.values():
            found.setdefault(" ".join(question.text.casefold().split()), set()).add(split)
    assert all(len(splits) == 1 for splits in found.values()), "one question stands on one side"
    return {text: splits.pop() for text, splits in found.items()}


@given(TEXTS, TEXTS, st.randoms())
def test_a_question_stays_where_it_is(
    tmp_path_factory: pytest.TempPathFactory, one: Any, other: Any, random: Any
) -> None:
    folder = tmp_path_factory.mktemp("q")
    alone = split_of(folder, one)
    mixed = [*one, *other, *(f"  {text.upper()} " for text in one if text.upper().casefold() == text.casefold())]
    random.shuffle(mixed)
    together = split_of(folder, mixed)
    assert {text: together[text] for text in alone} == alone


def test_the_shares_are_80_10_10_and_independent_of_the_warm_ups(tmp_path: Path) -> None:
    texts = [f"Which country is {i} in?" for i in range(8000)]
    found = split_of(tmp_path, texts)
    counts = Counter(found.values())
    assert abs(counts["train"] - 6400) < 4 * (8000 * 0.16) ** 0.5
    for name in ("dev", "test"):
        assert abs(counts[name] - 800) < 4 * (8000 * 0.09) ** 0.5
    assert found["which country is 7 in?"] == ("train" if bucket("Which country is 7 in?") < 80 else "other")
    train = [Question(t, t, ("x",)) for t in texts if found[t.casefold()] == "train"]
    warm, _ = share_out(train, 0.3)
    assert abs(len(warm) / len(train) - 0.3) < 4 * (0.21 / len(train)) ** 0.5


# ---- how much is held


def test_a_corpus_is_not_held(tmp_path: Path) -> None:
    """40 MB of passages; id and text in both spellings."""
    path, text = tmp_path / "p.csv", "word " * 400
    with path.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["id", "title", "text"])
        for i in range(20_000):
            writer.writerow([f"p{i}", f"Title {i}", text])
    tracemalloc.start()
    made = as_lines(str(path), tmp_path / "cache", Problems())
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert made is not None
    assert made.stat().st_size > 40e6
    assert most < 4e6


# ---- the hub


def test_a_set_of_the_hub_is_read_like_a_saved_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def hub(name: str, config: str | None) -> datasets.DatasetDict:
        asked.append((name, config))
        rows = PASSAGES if config == "corpus" else [{k: v for k, v in r.items() if k != "split"} for r in QUESTIONS]
        by = {"train": rows[:6], "validation": rows[6:9], "test": rows[9:]} if config is None else {"corpus": rows}
        return datasets.DatasetDict({split: datasets.Dataset.from_list(part) for split, part in by.items()})

    monkeypatch.setattr(datasets, "load_dataset", hub)
    found = from_files(tmp_path, "hf://owner/set", "hf://owner/set/corpus")
    assert [len(split) for split in (found.train, found.dev, found.test)] == [6, 3, 3]
    assert found.corpus is not None
    assert check_corpus(found.corpus) == len(PASSAGES)
    assert asked == [("owner/set", None), ("owner/set", "corpus")]
    from_files(tmp_path, "hf://owner/set", "hf://owner/set/corpus")
    assert asked[2:] == [("owner/set", None)], "passages are fetched once"


def test_a_hub_out_of_reach_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hub(*_: Any) -> None:
        raise ConnectionError("no way there")

    monkeypatch.setattr(datasets, "load_dataset", hub)
    with pytest.raises(DataError, match=r"hf://owner/set cannot be had from the hub \(ConnectionError: no way there\)"):
        from_files(tmp_path, "hf://owner/set")
