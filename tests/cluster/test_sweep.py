"""A sweep with every real component under Tune; its driver is killed in a trial, and another goes on."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tqdm import tqdm

from cluster import sweep
from cluster.home import find
from cluster.system import BadInput
from smartrag import ROOT
from smartrag.compose import load
from smartrag.evaluation.evaluate import MEASURES
from smartrag.experiments.sweep import load as load_sweep
from smartrag.log import RunFolder
from tests.processes import kill, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SMALL = (
    *("+experiment=quickstart", "train.steps=2", "train.episodes=16", "warmup.steps=2", "warmup.batch=8"),
    *("warmup.self_knowledge=0", "data.train_questions=100", "data.dev_questions=8", "data.test_questions=16"),
    *("log.wandb=disabled", "log.progress=false", "seeds=[0]", "asha=em", "grace=1"),
)
# A millionth of the passages is none: that trial fails once it looks at its inputs.
SHARES = ("setting=retriever.corpus_share", "values=[1.0,0.000001]")
TRIAL = "retriever.corpus_share_1.0"


def _start(folder: Path, *more: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(ROOT / "launch" / "sweep.py"), *SMALL, *SHARES, f"runs={folder}", *more]
    with (folder / "driver.log").open("ab") as log:
        return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)


def test_a_trial_that_fails_is_named_and_stops_no_other(tmp_path: Path) -> None:
    code = _start(tmp_path, "learner.ranks=1").wait(timeout=1200)
    _check(tmp_path, code)


def test_a_sweep_of_another_run_is_not_gone_on_with(tmp_path: Path) -> None:
    """Other machines are no other run."""
    begun = ["+experiment=quickstart", f"runs={tmp_path}"]
    home = find(load(begun), "sweep")
    with pytest.raises(BadInput, match=r"is a sweep of a run with other train\.steps; see its config\.yaml"):
        find(load([*begun, "train.steps=3", "resume=latest"]), "sweep")
    assert find(load([*begun, "retriever.remember=0", "resume=latest"]), "sweep") == home


@pytest.mark.nightly
@pytest.mark.fault("D2", "the driver of a sweep is killed in a trial")
def test_a_sweep_survives_its_driver(tmp_path: Path) -> None:
    """Killed in its trial, after the warm-up; a second driver does the rest."""
    home = tmp_path / "quickstart" / "sweeps" / "latest"
    driver = _start(tmp_path)
    try:
        until(lambda: any(_of(home, TRIAL).glob("checkpoints/step_*")), driver, tmp_path / "driver.log")
        kill(driver)
    finally:
        driver.kill()
    assert json.loads((home / "frontier.json").read_text())["points"] == []
    done, begun = _times(_of(home, "warm-up")), os.readlink(_of(home, TRIAL))
    code = _start(tmp_path, "resume=latest").wait(timeout=1200)
    _check(tmp_path, code)
    assert _times(_of(home, "warm-up")) == done, "what is done is left alone"
    assert os.readlink(_of(home, TRIAL)) == begun, "a trial that is begun goes on where it was"


def test_trials_that_fall_behind_are_stopped_and_not_begun_again(tmp_path: Path) -> None:
    """Rewards 3, 1, 2 and 4, one trial after the other; rungs at 2, 4 and 8 steps. The first has nobody before it; the
    second is below the median (3) at 2 steps; the third reaches that of 3 and 1, and is below 3 at 4 steps."""
    words = ["setting=reward.retrieval", "values=[0,-0.1,-0.2,-0.4]", "seeds=[0]", "asha=reward", "grace=2"]
    plan = load_sweep([*words, "+experiment=quickstart", "train.steps=9", "warmup.steps=0", f"runs={tmp_path}"])
    home = find(plan.base, "sweep")
    scheduler, watch = sweep._scheduler(plan), sweep._Progress(tqdm(disable=True), lambda: None)
    assert scheduler is not None
    controller: Any = None
    for run, reward in zip(list(sweep._trials(plan, home)), (3, 1, 2, 4), strict=True):
        folder = RunFolder.create(run.runs, run.name)
        trial: Any = SimpleNamespace(trial_id=run.name, config={"run": run}, last_result={}, stopping_criterion={})
        scheduler.on_trial_add(controller, trial)
        for step in range(1, 10):
            trial.last_result = {"step": step, "reward": reward}
            if scheduler.on_trial_result(controller, trial, trial.last_result) == scheduler.STOP:
                break
        else:
            question = {"id": "q", "reward": 1.0, "em": 1.0, "f1": 1.0, "retrievals_per_question": 0.0}
            folder.write("evaluation-after.jsonl", json.dumps(question) + "\n")
            folder.write("summary.json", json.dumps({"after": {}}))
        scheduler.on_trial_complete(controller, trial, trial.last_result)
        watch.on_trial_complete(0, [], trial)
    told = sweep._report(plan, home)
    assert [point["value"] for point in told["points"]] == [0, -0.4]
    assert told["stopped"] == [{"value": -0.1, "seed": 0, "step": 2}, {"value": -0.2, "seed": 0, "step": 4}]
    assert list(sweep._trials(plan, home)) == [], "a sweep that is resumed leaves them alone"


def _of(home: Path, name: str) -> Path:
    """The newest run of a warm-up or a trial."""
    return home / "seed0" / name / "latest"


def _times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def _check(folder: Path, code: int) -> None:
    """The first trial is done, and is a point of the frontier; the second is named."""
    home, said = folder / "quickstart" / "sweeps" / "latest", (folder / "driver.log").read_text(errors="replace")
    assert code == 7, said[-4000:]
    assert "seed0/retriever.corpus_share_1e-06 failed: cluster.system.BadInput: retriever.corpus_share=1e-06" in said
    assert "1 trials are not done; the same command with resume=" in said
    assert "after training, by retriever.corpus_share" in said
    trial = _of(home, TRIAL)
    assert [json.loads(line)["step"] for line in (trial / "metrics.jsonl").read_text().splitlines()] == [1, 2]
    assert {"config.yaml", "curves.png", "summary.json", "evaluation-always.jsonl"} <= {p.name for p in trial.iterdir()}
    assert "progress: false" in (trial / "config.yaml").read_text()
    policy = str((_of(home, "warm-up") / "checkpoints/step_00000000/policy").resolve())
    assert policy in (trial / "config.yaml").read_text(), "it began as the policy of the warm-up"

    told, summary = (json.loads(path.read_text()) for path in (home / "frontier.json", trial / "summary.json"))
    (point,) = told["points"]
    assert (told["setting"], told["warmup"]) == ("retriever.corpus_share", {"0": policy})
    assert (point["value"], point["seed"], point["run"]) == (1.0, 0, str(trial.resolve()))
    assert {name: point[name] for name in MEASURES} == {name: summary["after"][name] for name in MEASURES}
    assert point["never"]["retrievals_per_question"]["mean"] == 0
    assert (home / "frontier.png").stat().st_size > 10_000
