"""What an ablation compares, what it refuses, and the figures of its table."""

from pathlib import Path

import numpy as np
import pytest

from smartrag.choices import Role
from smartrag.compose import ConfigError, different
from smartrag.experiments.ablation import ROWS, Outcome, as_json, as_text, load, picture, row_run
from smartrag.log import COLUMNS

QUICK = ("+experiment=quickstart",)


def test_the_rows_are_every_subset_of_the_roles() -> None:
    assert {frozenset(trains) for trains in ROWS.values()} == {
        frozenset(role for i, role in enumerate(Role) if number >> i & 1) for number in range(1, 8)
    }
    settings, run = load([*QUICK, "train.steps=7"])
    assert (settings.seeds, settings.rows) == ([0, 1, 2], [*ROWS, "composed"])
    assert run.train.steps == 7


def test_a_row_differs_from_the_run_in_nothing_but_where_it_starts_and_what_it_trains() -> None:
    _, run = load(QUICK)
    row = row_run(run, "query+answer", 4, Path("/policy"), Path("/rows"))
    assert {*different(run, row)} == {
        *("name", "runs", "seed", "model.path", "algorithm.trains", "warmup.steps", "train.gates")
    }
    assert (row.seed, row.model.path, row.warmup.steps) == (4, "/policy", 0)
    assert row.algorithm.frozen == [Role.decision]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            "rows=[decision,querry]",
            "rows: there is no row 'querry'; there are: decision, query, answer, decision+query",
        ),
        ("rows=[all,composed]", "rows: composed puts single rows together; add some of decision, query, answer"),
        ("rows=[]", "rows must name one or more, each once"),
        ("seeds=[1,1]", "seeds must name one or more, each once, got [1,1]"),
        ("seeds=[-1]", "seed must be between 0 and"),
        ("seeds=many", "seeds=many"),
        ("seed=3", "write seeds=[...]"),
        ("algorithm.trains=[query] warmup.steps=0", "here the rows say what is trained"),
        ("algorithm.quota=0", "row decision, seed 0: algorithm.trains=[decision] learns nothing where"),
        ("trian.steps=3", "did you mean 'train.steps'?"),
    ],
)
def test_a_mistake_is_refused_with_what_to_do(arguments: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load([*QUICK, *arguments.split()])
    assert message in str(caught.value)


def _outcome(row: str, seed: int, rewards: list[float], episodes: int = 100) -> Outcome:
    columns = {name: np.array(rewards) for name in COLUMNS}
    return Outcome(row, seed, f"/{row}/{seed}", episodes, {"n": len(rewards)}, columns)


def test_differences_are_paired_by_question_and_pooled_over_seeds() -> None:
    """By hand: all beats decision by (1, 0) with seed 0 and by (0, 1) with seed 1: by 1/2 on either question."""
    outcomes = [
        *(_outcome("warm-up", 0, [0.0, 0.0], 0), _outcome("decision", 0, [0.0, 2.0]), _outcome("all", 0, [1.0, 2.0])),
        *(_outcome("decision", 1, [1.0, 1.0]), _outcome("all", 1, [1.0, 2.0]), _outcome("composed", 1, [0, 0], 300)),
    ]
    told = as_json(outcomes, 100, {0: "/w0", 1: "/w1"})
    assert [row["trained"] for row in told["rows"][:3]] == [[], ["decision"], ["decision", "query", "answer"]]
    assert told["rows"][-1]["trained"] == "composed"
    found = {(d["all_minus"], d["seed"]): d["reward"] for d in told["differences"]}
    assert {*found} == {
        (r, s) for r, seeds in (("warm-up", [0]), ("decision", [0, 1]), ("composed", [1])) for s in [*seeds, None]
    }
    assert found["decision", 0]["mean"] == found["decision", 1]["mean"] == 0.5
    assert found["decision", None] == {"mean": 0.5, "low": 0.5, "high": 0.5}  # no spread is left over questions
    assert found["decision", 0]["low"] < 0.5
    assert found["composed", None]["mean"] == 1.5
    text = as_text(outcomes, 100)
    assert "2 test questions, 2 seed(s), 100 episodes a training" in text
    assert "reward, all minus decision, by seed: +0.500 +0.500" in text
    assert "composed is 3 of the single rows' policies" in text
    assert all(row in text for row in ("warm-up", "decision", "all", "composed", "0.500 [0.500, 0.500]"))


def test_without_the_joint_row_there_is_a_table_and_no_difference(tmp_path: Path) -> None:
    outcomes = [_outcome("decision", 0, [0.0, 2.0]), _outcome("answer", 0, [1.0, 2.0])]
    assert as_json(outcomes, 100, {})["differences"] == []
    assert "minus answer" not in as_text(outcomes, 100)
    picture(outcomes, tmp_path / "ablation.png")
    assert (tmp_path / "ablation.png").stat().st_size > 5000
