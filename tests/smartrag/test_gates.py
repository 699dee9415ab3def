"""Gates against values worked out by hand."""

import asyncio
import math

import numpy as np
import pytest

from smartrag.episode import run_episode
from smartrag.evaluation import evaluate, gates
from smartrag.evaluation.evaluate import Columns
from smartrag.evaluation.gates import Asked, Labelled
from smartrag.evaluation.uncertainty import answer_entropy, entropy, search_probability
from smartrag.types import ActionKind, Completion, Episode, EpisodeRequest, Gate, Question, Stop
from tests import toys
from tests.toys import finished

NEVER_EM, SEARCHES = [1, 0, 0, 1], [1, 2, 1, 1]
SCORE = np.array([0.1, 0.9, 0.5, 0.5])


def _columns(em: list[int], searches: list[int]) -> Columns:
    """Rewards at 0.2 a search; one model call more than searches, of 10 tokens each."""
    right, cost = np.array(em, float), np.array(searches, float)
    same = {name: right for name in (*evaluate.MEASURES, *evaluate.COSTS)}
    return same | {
        "retrievals_per_question": cost,
        "reward": 2 * right - 0.2 * cost,
        "model_calls": cost + 1,
        "generated_tokens": 10 * (cost + 1),
    }


NEVER, ALWAYS = _columns(NEVER_EM, [0] * 4), _columns([1, 1, 0, 1], SEARCHES)


def test_a_curve_runs_from_never_to_always_through_every_threshold() -> None:
    points = gates.curve(NEVER, ALWAYS, SCORE, "popularity", 0)
    assert [p["threshold"] for p in points] == [0.9, 0.5, 0.1, None]
    assert [p["retrievals_per_question"] for p in points] == pytest.approx([0, 2 / 4, 4 / 4, 5 / 4])
    assert [p["em"] for p in points] == pytest.approx([0.5, 0.75, 0.75, 0.75])
    # ∫ em over retrievals: (0.5+0.75)/2 * 0.5 + 0.75 * 0.5 + 0.75 * 0.25, over a width of 1.25
    assert gates.area(points, "em") == pytest.approx((0.3125 + 0.375 + 0.1875) / 1.25)


def test_a_score_that_says_nothing_has_the_area_half_way_between_the_ends() -> None:
    points = gates.curve(NEVER, ALWAYS, np.zeros(4), "popularity", 0)
    assert len(points) == 2
    assert gates.area(points, "em") == pytest.approx((0.5 + 0.75) / 2)


def test_drafts_and_samples_are_paid_for() -> None:
    retrieve = np.array([False, True, False, True])
    calls = {
        gate: gates.decided(NEVER, ALWAYS, retrieve, gate, 3)["model_calls"].tolist()
        for gate in ("popularity", "entropy", "consistency")
    }
    assert calls["popularity"] == [1, 3, 1, 2]
    assert calls["entropy"] == [1, 3 + 1, 1, 2 + 1]  # the draft first, then the episode that searches
    assert calls["consistency"] == [1 + 3, 3 + 1 + 3, 1 + 3, 2 + 1 + 3]


def test_the_threshold_is_the_one_that_earns_most_and_of_equals_retrieves_least() -> None:
    assert gates.tuned(NEVER, ALWAYS, SCORE) == 0.5  # only the second question gains by retrieval
    assert gates.tuned(NEVER, NEVER, SCORE) == 0.9  # nothing is gained: never
    assert gates.matched(NEVER, ALWAYS, SCORE, 0.6) == 0.5
    assert gates.matched(NEVER, ALWAYS, SCORE, 9.0) == -math.inf
    assert gates.oracle(NEVER, ALWAYS).tolist() == [False, True, False, False]


def test_a_gate_is_judged_by_a_threshold_it_did_not_see_the_questions_of() -> None:
    systems = {"never": NEVER, "always": ALWAYS, "policy": gates.decided(NEVER, ALWAYS, SCORE > 0.1, "policy", 0)}
    dev = {"never": _columns([0], [0]), "always": _columns([1], [1])}  # one dev question: retrieve above 0.3
    found = gates.judged("popularity", SCORE, np.array([0.4]), systems, dev, draws=0, seed=0)
    assert found["tuned"]["threshold"] is None  # every score passes: the dev question gained by retrieval
    assert found["tuned"]["retrievals_per_question"]["mean"] == 1.25
    assert found["matched"]["threshold"] == 0.1
    assert found["matched"]["policy_minus_this"]["reward"] == {"mean": 0.0, "low": 0.0, "high": 0.0}


def test_entropy_of_the_best_is_the_whole_entropy_when_they_are_all() -> None:
    p = np.array([0.5, 0.3, 0.2])
    assert entropy(np.log(p).tolist()) == pytest.approx(-(p * np.log(p)).sum())
    assert entropy(np.log(p[:2]).tolist()) == pytest.approx(-(p * np.log(p)).sum())  # a rest of one outcome is exact
    assert entropy([0.0, -math.inf]) == 0.0


def _asked(text: str, gate: Gate, **spread: tuple[float, ...]) -> Episode:
    prompt = toys.prompt()
    question = Question("q", toys.QUESTION, ("Norway",), {"popularity": 7})
    policy = toys.ScriptedPolicy(prompt, text, " Norway")

    async def told(prompt_ids: object, **how: object) -> Completion:
        made = await policy(prompt_ids, **how)  # type: ignore[arg-type]
        return Completion(made.token_ids, made.logprobs, Stop.END, made.weight_versions, **spread)

    return asyncio.run(
        run_episode(EpisodeRequest("e", question, 1, 1, gate), told, toys.Shelf(toys.OSLO), prompt, temperature=1.0)
    )


def test_the_policys_own_probability_of_searching() -> None:
    prompt = toys.prompt()
    tag = math.exp(-0.5)  # one token of log-prob -0.5
    for text, p in (("[Search] Oslo", tag), ("[Answer] Norway", 1 - tag), ("hm", 0.5)):
        assert search_probability(_asked(text, Gate.POLICY).turns[0], prompt) == pytest.approx(p)


def test_the_entropy_of_sampled_answers() -> None:
    said = [finished(0, ActionKind.ANSWER, text) for text in ("Norway", "the norway", "Sweden", "Norway.")]
    assert answer_entropy(said) == pytest.approx(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25)))
    assert answer_entropy(said[:2]) == 0.0


def test_scores_rise_with_doubt() -> None:
    sure = _asked(" Norway", Gate.NEVER, entropies=(0.1, 0.1), margins=(4.0, 4.0))
    unsure = _asked(" Norway", Gate.NEVER, entropies=(0.1, 2.1), margins=(4.0, 0.0))
    free = _asked("[Search] Oslo", Gate.POLICY)
    known, unknown = ["Who wrote Alpha?", "Who wrote Beta?"] * 20, ["Where is Gamma?", "Where is Delta?"] * 20
    labelled = Labelled(known + unknown, np.array([False] * 40 + [True] * 40))
    found = gates.scores(Asked([sure, unsure], [free] * 2, [free] * 2, [[sure, unsure]] * 3), labelled, toys.prompt())
    assert found["entropy"] == pytest.approx([0.1, 1.1])
    assert found["margin"] == pytest.approx([-4.0, -2.0])
    assert found["flare"] == pytest.approx([1 - math.exp(-0.5)] * 2)
    assert found["popularity"].tolist() == [-7, -7]
    for gate in (gates.neighbours, gates.classifier):
        low, high = gate(labelled, ["Who wrote Epsilon?", "Where is Zeta?"])
        assert low < 0.5 < high
    one_label = Labelled(known, np.zeros(40, bool))
    assert {"skr", "adaptive_rag"} & set(
        gates.scores(Asked([sure], [free], [free], []), one_label, toys.prompt())
    ) == set()
