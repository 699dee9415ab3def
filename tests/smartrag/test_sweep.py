"""A command line comes to checked runs, or every mistake is told before anything starts."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from smartrag import compose
from smartrag.compose import ConfigError
from smartrag.experiments.sweep import load

BASE = ["+experiment=quickstart"]


def test_every_value_is_a_run_of_every_seed() -> None:
    plan = load([*BASE, "train.steps=3", "setting=reward.retrieval", "values=[0,-0.4]", "seeds=[1,5]"])
    assert [(t.value, t.seed) for t in plan.trials] == [(0, 1), (-0.4, 1), (0, 5), (-0.4, 5)]
    for trial in plan.trials:
        alone = compose.load([*BASE, "train.steps=3", f"reward.retrieval={trial.value}", f"seed={trial.seed}"])
        assert trial.run == alone
    assert plan.base == compose.load([*BASE, "train.steps=3"])
    assert load(BASE).sweep.setting == "reward.retrieval"


def test_trials_begin_with_the_policy_of_their_seeds_warmup_and_go_on_where_they_are_begun(tmp_path: Path) -> None:
    plan = load([*BASE, "setting=retriever.k", "values=[1,2]", "seeds=[3]"])
    home = tmp_path / "sweeps" / "id"
    warmup = plan.warmup(home, 3)
    assert (warmup.seed, warmup.runs, warmup.name) == (3, str(home / "seed3"), "warm-up")
    assert warmup.warmup == plan.base.warmup
    trial = plan.trials[0]
    run = plan.begun(home, trial, Path("/w/policy"))
    assert (run.runs, run.name, run.resume) == (str(home / "seed3"), "retriever.k_1", None)
    assert (run.model.path, run.warmup.steps, run.retriever.k) == ("/w/policy", 0, 1)
    assert run.log == replace(trial.run.log, group="id", progress=False)
    assert plan.begun(home, trial, None).model == trial.run.model

    (home / "seed3" / "retriever.k_1" / "one" / "checkpoints").mkdir(parents=True)
    (home / "seed3" / "retriever.k_1" / "latest").symlink_to("one")
    assert plan.begun(home, trial, None).resume is None, "nothing to go on from"
    (home / "seed3" / "retriever.k_1" / "one" / "checkpoints" / "step_00000000").mkdir()
    assert plan.begun(home, trial, None).resume == "latest"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("setting=reward.retreival", "no number of a run is called so; did you mean 'reward.retrieval'?"),
        ("setting=reward.gated", "no number of a run is called so"),
        ("setting=train.quotas", "no number of a run is called so"),
        ("setting=warmup.steps", "is the warm-up's, from which all trials of a seed start"),
        ("setting=seed", "is the warm-up's"),
        ("vlaues=[0]", "there is no setting 'vlaues'; did you mean 'values'?"),
        ("trian.steps=3", "did you mean 'train.steps'?"),
        ("values=[]", "values must hold one or more, each once, got []"),
        ("values=[0,-0.1,0]", "values must hold one or more, each once, got [0,-0.1,0]"),
        ("values=[true,cheap]", "values must be numbers, got True, 'cheap'"),
        ("values=3", "values=3: "),
        ("seeds=[a]", "could not be converted to Integer"),
        ("seed=1", "seed=1: a sweep has several; write seeds=[...]"),
        ("gates=/nowhere/evaluation.json", "gates=/nowhere/evaluation.json: "),
        ("setting=retriever.k values=[1,0,200]", "at 0: retriever.k must be between 1 and 100, got 0\nat 200: "),
        ("setting=retriever.k values=[2.5]", "Value '2.5' of type 'float' could not be converted to Integer"),
        ("seeds=[0,-1]", "at 0, seed -1; -0.1, seed -1; -0.2, seed -1; -0.4, seed -1; -0.8, seed -1: seed must be"),
        ("setting=reward.budget.target values=[0.1]", "at 0.1: reward.budget.target=0.1: sets a group that is null"),
        (
            "reward=budget setting=reward.budget.target values=[0.5,5]",
            "at 5: reward.budget.target=5 is above algorithm.quota=2",
        ),
    ],
)
def test_a_mistake_is_refused_with_what_to_do(arguments: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load([*BASE, *arguments.split()])
    assert message in str(caught.value)


def test_an_evaluation_without_gates_is_no_use(tmp_path: Path) -> None:
    path = tmp_path / "evaluation.json"
    path.write_text(json.dumps({"systems": {}}))
    with pytest.raises(ConfigError, match="holds no gates"):
        load([*BASE, f"gates={path}"])
