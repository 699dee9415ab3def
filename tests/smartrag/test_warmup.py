import asyncio
from collections import Counter

import pytest

from smartrag.config import Warmup
from smartrag.types import EpisodeFailed, Question, Trajectory
from smartrag.warmup import batches, samples
from tests import toys

TWO_HOPS = Question("q", "Capital of the country of Oslo?", ("Norway",), {"queries": ["Oslo", "Bergen"]})


def _samples(
    share: tuple[float, float, float], question: Question, shelf: toys.Shelf | None = None
) -> list[Trajectory]:
    warmup = Warmup(
        steps=10, batch=6, learning_rate=1e-3, direct=share[0], search=share[1], read=share[2], self_knowledge=0
    )
    shelf = shelf or toys.Shelf(toys.OSLO, toys.BERGEN)
    return asyncio.run(samples([question], warmup, toys.prompt(), shelf, k=1, seed=0))


def _wanted(made: Trajectory) -> str:
    return toys.tokenizer().decode([t for t, chosen in zip(made.token_ids, made.mask, strict=True) if chosen])


def _context(made: Trajectory) -> str:
    return toys.tokenizer().decode([t for t, chosen in zip(made.token_ids, made.mask, strict=True) if not chosen])


def test_the_three_kinds_come_in_their_shares() -> None:
    assert {_wanted(s) for s in _samples((1, 0, 0), TWO_HOPS)} == {"[Answer] Norway<|end|>"}
    queries = Counter(_wanted(s) for s in _samples((0, 1, 0), TWO_HOPS))
    assert set(queries) == {"[Search] Oslo<|end|>", "[Search] Bergen<|end|>"}
    (read,) = {(_context(s), _wanted(s)) for s in _samples((0, 0, 1), TWO_HOPS)}
    assert read == (
        "<|user|>Capital of the country of Oslo?<|assistant|>[Search] Oslo<|end|>"
        "<|user|>Oslo\nOslo is a city in Norway."
        "<|assistant|>[Search] Bergen<|end|><|user|>Bergen\nBergen is a city in Norway.<|assistant|>",
        "[Answer] Norway<|end|>",
    )
    mixed = Counter(_wanted(s)[:8] for s in _samples((0.5, 0.5, 0), TWO_HOPS))
    assert 15 <= mixed["[Answer]"] <= 45
    assert len(_samples((1, 0, 0), TWO_HOPS)) == 60
    assert [len(b) for b in batches(_samples((1, 0, 0), TWO_HOPS), 25)] == [25, 25, 10]


def test_passages_without_the_answer_teach_no_reading() -> None:
    lost = Question("q", "Where is Oslo?", ("Atlantis",))
    assert {_wanted(s) for s in _samples((0, 0, 1), lost)} == {"[Search] Where is Oslo?<|end|>"}


def test_a_failed_retrieval_is_no_sample() -> None:
    with pytest.raises(EpisodeFailed, match="planted"):
        _samples((0, 0, 1), TWO_HOPS, toys.Shelf(toys.OSLO, failures=1))


def test_first_moves_may_follow_what_the_policy_knows() -> None:
    warmup = Warmup(steps=5, batch=4, learning_rate=1e-3, direct=0.5, search=0.5, read=0, self_knowledge=1)
    shelf, prompt = toys.Shelf(toys.OSLO), toys.prompt()
    one_hop = Question("q", "Where is Oslo?", ("Norway",), {"queries": ["Oslo"]})
    for known, wanted in (({"q"}, "[Answer] Norway<|end|>"), (set(), "[Search] Oslo<|end|>")):
        made = asyncio.run(samples([one_hop], warmup, prompt, shelf, k=1, seed=0, known=known))
        assert {_wanted(sample) for sample in made} == {wanted}
