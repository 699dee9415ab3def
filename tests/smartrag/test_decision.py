"""The decision report against six questions worked out by hand."""

import numpy as np
import pytest

from smartrag.evaluation import decision
from smartrag.evaluation.evaluate import COSTS, MEASURES, Columns
from tests.toys import PAPER

NAN = float("nan")


def _columns(em: list[int], searches: list[int], hits: list[float]) -> Columns:
    right, cost = np.array(em, float), np.array(searches, float)
    same = {name: right for name in (*MEASURES, *COSTS)}
    found = {"retrievals_per_question": cost, "reward": 2 * right - 0.2 * cost, "hit_rate": np.array(hits)}
    return same | found


# question           known, both | known, both | found | found | found | neither
SYSTEMS = {
    "never": _columns([1, 1, 0, 0, 0, 0], [0] * 6, [NAN] * 6),
    "always": _columns([1, 1, 1, 1, 1, 0], [1] * 6, [1, 1, 1, 1, 1, 0]),
    "policy": _columns([1, 1, 1, 0, 0, 0], [0, 1, 1, 0, 1, 1], [NAN, 1, 1, NAN, 1, 0]),
    "gold_first": _columns([1, 1, 1, 0, 0, 1], [0, 1, 1, 0, 1, 1], [NAN, 1, 1, NAN, 1, 1]),
}


def test_rates() -> None:
    found = decision.report(SYSTEMS, PAPER, seed=0)
    assert found["over_search"] == 1 / 2  # the second of the two known ones
    assert found["under_search"] == pytest.approx(1 / 3)  # the fourth question
    assert found["retrievals_for_known"] == 1 / 4
    assert found["retrievals_without_answer"] == 1 / 4  # the last question
    assert found["right_decisions"] == 3 / 5  # the first, the third and the fifth of the five that can be answered
    shares = {(cell["row"], cell["column"]): cell["share"] for cell in found["necessity"]}
    assert shares == {
        ("right closed-book", "right with retrieval"): pytest.approx(2 / 6),
        ("right closed-book", "wrong"): 0.0,
        ("wrong", "right with retrieval"): pytest.approx(3 / 6),
        ("wrong", "wrong"): pytest.approx(1 / 6),
    }
    assert [cell["share"] for cell in found["hit_and_right"]] == [2 / 4, 1 / 4, 0, 1 / 4]


def test_each_perfect_role_and_what_it_gains() -> None:
    found = decision.counterfactuals(SYSTEMS, PAPER, seed=0)
    assert found["decision"]["em"]["mean"] == pytest.approx(5 / 6)
    assert found["decision"]["retrievals_per_question"]["mean"] == 3 / 6
    assert found["retriever"]["gain"]["em"]["mean"] == pytest.approx(1 / 6)
    assert found["answer"]["em"]["mean"] == pytest.approx(4 / 6)  # the fifth: a passage held the answer
    # It had earned -0.2 with its search, and earns 1.8 with the right answer.
    assert found["answer"]["gain"]["reward"]["mean"] == pytest.approx(2 / 6)


def test_a_rate_of_nothing_is_null() -> None:
    nobody = SYSTEMS["never"]
    found = decision.report(dict.fromkeys(SYSTEMS, nobody), PAPER, seed=0)
    assert found["under_search"] is None
    assert found["retrievals_without_answer"] is None
    assert found["hit_and_right"][0]["share"] is None
