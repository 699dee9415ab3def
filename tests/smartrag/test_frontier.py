"""Runs of a sweep come to points, a curve over seeds, a picture and a table."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from smartrag.evaluation.evaluate import MEASURES
from smartrag.experiments.frontier import Outcome, as_json, as_text, gate_curves, picture

# By seed, what three test questions retrieved at a value of 0 and of -0.4, and whether each was right.
RETRIEVED = {0: {0: [1, 1, 1], 1: [1, 1, 0]}, -0.4: {0: [0, 0, 1], 1: [0, 0, 0]}}
RIGHT = {0: {0: [1, 1, 1], 1: [1, 0, 1]}, -0.4: {0: [0, 0, 1], 1: [0, 0, 0]}}


def figures(mean: float) -> dict[str, float]:
    return {"mean": mean, "low": mean - 0.1, "high": mean + 0.1}


def system(em: float, retrievals: float) -> dict[str, Any]:
    told = {name: figures(em) for name in MEASURES} | {"retrievals_per_question": figures(retrievals)}
    return {"n": 3, **told, "hit_rate": None, "by_hops": {"1": {"n": 3}}, "retrieval_rate_by_popularity_fifth": None}


def outcome(value: float, seed: int, *, gates: bool = True) -> Outcome:
    retrieved, right = (np.array(of[value][seed], float) for of in (RETRIEVED, RIGHT))
    columns = {"reward": 2 * right + value * retrieved, "em": right, "f1": right, "retrievals_per_question": retrieved}
    summary = {"before": system(0.2, 0), "after": system(right.mean(), retrieved.mean())}
    summary |= {"never": system(0.1, 0), "always": system(0.9, 1)} if gates else {}
    return Outcome(value, seed, f"/runs/{value}/{seed}", summary, columns)


def test_points_are_runs_and_the_curve_is_the_mean_over_seeds_of_each_question() -> None:
    outcomes = [outcome(value, seed) for seed in (0, 1) for value in (0, -0.4)]
    told = json.loads(json.dumps(as_json("reward.retrieval", outcomes, {0: "/w/0", 1: "/w/1"})))
    assert told["setting"] == "reward.retrieval"
    assert told["warmup"] == {"0": "/w/0", "1": "/w/1"}
    assert [(p["value"], p["seed"], p["run"]) for p in told["points"]] == [
        (0, 0, "/runs/0/0"),
        (-0.4, 0, "/runs/-0.4/0"),
        (0, 1, "/runs/0/1"),
        (-0.4, 1, "/runs/-0.4/1"),
    ]
    first = told["points"][0]
    assert set(first) == {"value", "seed", "run", *MEASURES, "before", "never", "always"}
    assert first["em"] == figures(1.0)
    assert set(first["always"]) == set(MEASURES)
    assert first["always"]["retrievals_per_question"] == figures(1)

    cheap, free = told["curve"]
    assert (cheap["value"], cheap["seeds"], free["value"], free["seeds"]) == (-0.4, [0, 1], 0, [0, 1])
    assert free["em"]["mean"] == pytest.approx(np.mean([1, 0.5, 1]))  # the questions' means over the two seeds
    assert free["retrievals_per_question"]["mean"] == pytest.approx(np.mean([1, 1, 0.5]))
    assert cheap["reward"]["mean"] == pytest.approx(np.mean([0, 0, (2 - 0.4) / 2]))
    assert free["em"]["low"] == pytest.approx(0.5)  # three draws of the worst question: 1 resample in 27
    assert free["em"]["high"] == 1


def test_the_table_has_a_row_a_value_and_a_line_a_gate() -> None:
    told = as_json("reward.retrieval", [outcome(value, seed) for seed in (0, 1) for value in (0, -0.4)], {})
    text = as_text(told)
    rows = [line.split() for line in text.splitlines() if line.strip().startswith(("-0.4", "0 "))]
    assert [(row[0], row[1], row[2]) for row in rows] == [("-0.4", "2", "0.167"), ("0", "2", "0.833")]
    assert "always, mean of 4 runs: 1.000 retrievals, em 0.900, f1 0.900" in text
    assert "always" not in as_text(as_json("x", [outcome(0, 0, gates=False)], {}))


GATES = {
    "entropy": [{"threshold": t, "retrievals_per_question": t, "em": t / 2, "f1": t / 2} for t in (0.1, 0.5, 0.9)],
    "alone": [{"threshold": 1, "retrievals_per_question": 0.3, "em": 0.5, "f1": None}],
}


@pytest.mark.parametrize("gates", [{}, GATES])
@pytest.mark.parametrize("fixed", [True, False])
@pytest.mark.parametrize("values", [(0, -0.4), (-0.4,)])
def test_a_picture_of_whatever_is_there(gates: dict, fixed: bool, values: tuple[float, ...], tmp_path: Path) -> None:
    outcomes = [outcome(value, 0, gates=fixed) for value in values]
    picture(as_json("reward.retrieval", outcomes, {}), gates, tmp_path / "frontier.png")
    assert (tmp_path / "frontier.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_gates_of_an_evaluation(tmp_path: Path) -> None:
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps({"gates": {name: {"auc": {}, "curve": curve} for name, curve in GATES.items()}}))
    assert gate_curves(path) == GATES
    for text in ("{}", "[]", '{"gates": {}}'):
        path.write_text(text)
        with pytest.raises(ValueError, match=r"holds no gates; give the evaluation\.json of an evaluation"):
            gate_curves(path)
