"""A share is the same share everywhere; a useless corpus helps nobody, whatever is asked."""

import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartrag.choices import Corpus, Stemmer
from smartrag.data import world
from smartrag.data.passages import SHOWN, Recipe, dealt, kept, lines
from smartrag.data.rows import DataError
from smartrag.score import contains

NAMES = st.lists(st.text(min_size=1), min_size=2, max_size=60, unique=True)


def recipe(corpus: Corpus = Corpus.real, share: float = 1.0) -> Recipe:
    return Recipe(stemmer=Stemmer.porter, corpus=corpus, share=share)


@given(NAMES, st.randoms())
def test_dealing_is_one_cycle_through_all_passages_in_whatever_order_they_come(names: list[str], random) -> None:  # type: ignore[no-untyped-def]
    shown = dealt(names)
    at, seen = names[0], []
    for _ in names:
        at = shown[at]
        seen.append(at)
    assert sorted(seen) == sorted(names)
    assert at == names[0]
    assert dealt(random.sample(names, len(names))) == shown


def test_a_lone_passage_has_none_to_be_dealt() -> None:
    with pytest.raises(DataError, match=r"retriever\.corpus=useless shows other passages .* there are \['a'\]"):
        dealt(["a"])


@given(NAMES, st.floats(0.01, 1), st.floats(0.01, 1))
def test_a_smaller_share_is_part_of_a_larger_one(names: list[str], one: float, other: float) -> None:
    small, large = sorted((one, other))
    assert {name for name in names if kept(name, small)} <= {name for name in names if kept(name, large)}
    assert all(kept(name, 1.0) for name in names)


def test_a_share_is_what_sha256_says() -> None:
    names = [f"p{i}" for i in range(4000)]
    half = [name for name in names if kept(name, 0.5)]
    assert half == [name for name in names if hashlib.sha256(name.encode()).hexdigest()[0] < "8"]
    assert abs(len(half) - 2000) < 4 * (4000 * 0.25) ** 0.5


def test_lines_of_a_corpus(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    rows = {f"é{i}": f"title {i}\ntext “{i}”" for i in range(40)}
    text = "\n\n".join(
        json.dumps({"id": k, "contents": v, "more": 1}, ensure_ascii=i % 2 == 0)
        for i, (k, v) in enumerate(rows.items())
    )
    path.write_text(text, encoding="utf-8")  # no newline at the end
    assert b"".join(lines(path, recipe())).decode() == text.replace("\n\n", "\n") + "\n"

    half = [json.loads(line) for line in lines(path, recipe(share=0.5))]
    assert half == [{"id": k, "contents": v} for k, v in rows.items() if kept(k, 0.5)]

    useless = [json.loads(line) for line in lines(path, recipe(Corpus.useless, 0.5))]
    shown = dealt([row["id"] for row in half])
    assert useless == [{**row, SHOWN: rows[shown[row["id"]]]} for row in half]

    with pytest.raises(
        DataError, match=r"retriever\.corpus_share=1e-05 leaves no passage of .*corpus\.jsonl; raise it"
    ):
        list(lines(path, recipe(share=1e-5)))


def test_what_the_world_shows_in_place_of_the_right_passage_is_worth_a_blind_draw() -> None:
    """A search that finds the very passage that answers is shown one that answers as often as any passage does."""
    contents = {row["id"]: row["contents"] for row in world.corpus()}
    shown, names = dealt(list(contents)), {}
    for name, text in contents.items():
        names[text.partition("\n")[0]] = name
    asked = [q for q in world.questions()["test"] if q.meta["hops"] == 1]
    found = [names[q.meta["queries"][0]] for q in asked]
    hits = [contains(contents[name], q.answers) for name, q in zip(found, asked, strict=True)]
    useless = [contains(contents[shown[name]], q.answers) for name, q in zip(found, asked, strict=True)]
    few = asked[::10]
    chance = sum(contains(text, q.answers) for q in few for text in contents.values()) / len(few) / len(contents)
    assert sum(hits) == len(asked)
    rate, noise = sum(useless) / len(asked), (chance * (1 - chance) / len(asked)) ** 0.5
    assert abs(rate - chance) < 3 * noise
    assert chance < 0.02
