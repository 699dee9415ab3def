import asyncio
from collections import Counter
from typing import Any

import pytest

from smartrag.choices import Teacher
from smartrag.config import Warmup
from smartrag.data.rows import DataError
from smartrag.episode import run_episode
from smartrag.types import Episode, EpisodeFailed, EpisodeRequest, Gate, Question, Trajectory
from smartrag.warmup import batches, mined, practice, samples
from tests import toys

TWO_HOPS = Question("q", "Capital of the country of Oslo?", ("Norway",), {"queries": ["Oslo", "Bergen"]})


def _samples(
    share: tuple[float, float, float], question: Question, shelf: toys.Shelf | None = None
) -> list[Trajectory]:
    shelf = shelf or toys.Shelf(toys.OSLO, toys.BERGEN)
    return asyncio.run(samples([question], _warmup(*share), toys.prompt(), shelf, quotas=[2], k=1, seed=0))


def _warmup(direct: float, search: float, read: float, **fields: Any) -> Warmup:
    usual = {"teacher": Teacher.gold, "steps": 10, "batch": 6, "learning_rate": 1e-3, "self_knowledge": 0.0}
    usual |= {"samples": 2, "knows": 0.5, "share": None, "endpoint": None}
    return Warmup(direct=direct, search=search, read=read, **{**usual, **fields})


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
    warmup = _warmup(0.5, 0.5, 0, steps=5, batch=4, self_knowledge=1.0)
    shelf, prompt = toys.Shelf(toys.OSLO), toys.prompt()
    one_hop = Question("q", "Where is Oslo?", ("Norway",), {"queries": ["Oslo"]})
    for own, wanted in (("Norway", "[Answer] Norway<|end|>"), ("Peru", "[Search] Oslo<|end|>")):
        made = asyncio.run(samples([one_hop], warmup, prompt, shelf, quotas=[1], k=1, seed=0, own={"q": own}))
        assert {_wanted(sample) for sample in made} == {wanted}


def test_direct_samples_show_the_form_and_teach_no_facts_to_a_policy_whose_answers_are_known() -> None:
    """A blind first move may be an answer to what the policy does not know: then it is the policy's own wrong one."""
    warmup, shelf = _warmup(1, 0, 0, self_knowledge=0.0), toys.Shelf(toys.OSLO)
    made = asyncio.run(
        samples([TWO_HOPS], warmup, toys.prompt(), shelf, quotas=[2], k=1, seed=0, own={TWO_HOPS.id: "Peru"})
    )
    assert {_wanted(sample) for sample in made} == {"[Answer] Peru<|end|>"}


def test_a_sample_is_told_a_quota_that_allows_its_searches() -> None:
    prompt, shelf = toys.prompt(instruction="At most {quota}."), toys.Shelf(toys.OSLO, toys.BERGEN)

    def told(*share: float) -> Counter[str]:
        made = asyncio.run(samples([TWO_HOPS], _warmup(*share), prompt, shelf, quotas=[0, 1, 2], k=1, seed=0))
        return Counter(_context(s)[len("<|user|>At most ")] for s in made)

    assert set(told(1, 0, 0)) == {"0", "1", "2"}
    assert set(told(0, 1, 0)) == {"1", "2"}
    assert set(told(0, 0, 1)) == {"2"}


# ---- the policy as its own teacher


def _question(id: str) -> Question:
    return Question(id, f"Where is {id}?", ("Norway",))


def _episode(id: str, gate: Gate, *texts: str, quota: int = 1) -> Episode:
    """What the policy did when it wrote `texts` one after the other, the forced tags before them aside."""
    prompt = toys.prompt()
    request = EpisodeRequest(f"{id}/{gate}/{texts}", _question(id), quota, 1, gate)
    shelf = toys.Shelf(toys.OSLO, toys.BERGEN)
    return asyncio.run(run_episode(request, toys.ScriptedPolicy(prompt, *texts), shelf, prompt, temperature=1.0))


CLOSED = [
    *(_episode("known", Gate.NEVER, text) for text in (" Norway", " Norway", " norway", " Chile")),
    *(_episode("half", Gate.NEVER, text) for text in (" Norway", " Chile", " Peru", "...")),
    *(_episode("unknown", Gate.NEVER, " Chile") for _ in range(4)),
]
SEARCHED = [
    _episode("known", Gate.ALWAYS, " Oslo", " Norway"),
    _episode("half", Gate.ALWAYS, " Bergen", " Chile"),
    _episode("unknown", Gate.ALWAYS, " Rome", "[Search] Oslo", " Norway", quota=2),  # hits with the second query
    _episode("unknown", Gate.ALWAYS, " Rome", " Norway"),  # right, but nothing was read
    _episode("lost", Gate.ALWAYS, " Rome", "[Search] Oslo", " Norway", quota=2),
    _episode("unknown", Gate.ALWAYS, " Oslo", "hm", quota=2),
]


def _mined(*share: float, knows: float = 0.5) -> list[Trajectory]:
    return mined(CLOSED, SEARCHED, _warmup(*share, knows=knows), toys.prompt(), seed=0)


def test_direct_samples_are_right_answers_to_known_questions_with_their_tag() -> None:
    made = Counter((_context(s), _wanted(s)) for s in _mined(1, 0, 0))
    opening = "<|user|>Where is known?<|assistant|>"
    assert made == {  # equal ones count once, and each comes as often
        (opening, "[Answer] Norway<|end|>"): 30,
        (opening, "[Answer] norway<|end|>"): 30,
    }
    assert {_context(s) for s in _mined(1, 0, 0, knows=0.25)} == {opening, opening.replace("known", "half")}


def test_search_samples_lead_to_the_hit_of_an_unknown_question_on_the_shortest_way() -> None:
    assert {(_context(s), _wanted(s)) for s in _mined(0, 1, 0)} == {
        ("<|user|>Where is half?<|assistant|>", "[Search] Bergen<|end|>"),
        ("<|user|>Where is unknown?<|assistant|>", "[Search] Oslo<|end|>"),
        ("<|user|>Where is lost?<|assistant|>", "[Search] Rome<|end|>"),
        (
            "<|user|>Where is lost?<|assistant|>[Search] Rome<|end|><|user|>(nothing found)<|assistant|>",
            "[Search] Oslo<|end|>",
        ),
    }


def test_read_samples_are_right_answers_after_a_hit() -> None:
    hit = f"<|user|>{toys.OSLO.contents}<|assistant|>"
    lost = "[Search] Rome<|end|><|user|>(nothing found)<|assistant|>[Search] Oslo<|end|>"
    assert {(_context(s), _wanted(s)) for s in _mined(0, 0, 1)} == {
        (f"<|user|>Where is known?<|assistant|>[Search] Oslo<|end|>{hit}", "[Answer] Norway<|end|>"),
        (f"<|user|>Where is unknown?<|assistant|>{lost}{hit}", "[Answer] Norway<|end|>"),
        (f"<|user|>Where is lost?<|assistant|>{lost}{hit}", "[Answer] Norway<|end|>"),
    }


def test_mined_kinds_come_in_their_shares_and_a_kind_without_samples_is_refused() -> None:
    made = Counter(_wanted(s)[:8] for s in _mined(0.5, 0.5, 0))
    assert sum(made.values()) == 60
    assert 15 <= made["[Answer]"] <= 45
    told = r"4 questions, 0 of them known, gave 0 direct, 5 search, 3 read samples; without direct"
    with pytest.raises(DataError, match=told):
        _mined(0.4, 0.3, 0.3, knows=0.9)
    assert len(_mined(0, 0.5, 0.5, knows=0.9)) == 60  # a kind that nobody wants may be missing


def test_practice_asks_each_question_with_and_without_a_search() -> None:
    few, many = [_question(f"q{i}") for i in range(3)], [_question(f"q{i}") for i in range(100)]
    asked = practice(few, _warmup(1, 0, 0, samples=3), quotas=[0, 2], k=5, seed=0)
    assert Counter((r.question.id, r.gate) for r in asked) == {
        (q.id, gate): 3 for q in few for gate in (Gate.NEVER, Gate.ALWAYS)
    }
    assert Counter(r.quota for r in asked if r.gate is Gate.ALWAYS) == {1: 6, 2: 3}
    assert Counter(r.quota for r in asked if r.gate is Gate.NEVER) == {0: 6, 2: 3}
    assert len({r.id for r in asked}) == len(asked) == 18
    assert {(r.k, r.greedy) for r in asked} == {(5, False)}
    assert len({r.question.id for r in practice(many, _warmup(1, 0, 0), quotas=[1], k=1, seed=0)}) == 60
