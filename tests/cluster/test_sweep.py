"""A sweep with every real component under Tune: its driver is killed in a trial, and another goes on."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from smartrag import ROOT
from smartrag.evaluation.evaluate import MEASURES
from tests.processes import kill

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

SMALL = (
    *("+experiment=quickstart", "train.steps=1", "train.episodes=16", "warmup.steps=2", "warmup.batch=8"),
    *("warmup.self_knowledge=0", "data.train_questions=100", "data.dev_questions=8", "data.test_questions=16"),
    *("log.wandb=disabled", "log.progress=false", "seeds=[0]"),
)
PRICES = ("setting=reward.retrieval", "values=[-0.1]")


def _command(folder: Path, *more: str) -> list[str]:
    """SMALL, but for what `more` sets otherwise."""
    named = {word.partition("=")[0] for word in more}
    small = [word for word in SMALL if word.partition("=")[0] not in named]
    return [sys.executable, str(ROOT / "launch" / "sweep.py"), *small, f"runs={folder}", *more]


def _start(folder: Path, *more: str) -> subprocess.Popen[bytes]:
    command = _command(folder, *more)
    with (folder / "driver.log").open("ab") as log:
        return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)


def _end(driver: subprocess.Popen[bytes], folder: Path) -> tuple[int, str]:
    code = driver.wait(timeout=1200)
    return code, (folder / "driver.log").read_text(errors="replace")


def _kill_when(path: Path, pattern: str, driver: subprocess.Popen[bytes], folder: Path) -> None:
    """Kills the driver once `path` holds `pattern`."""
    while not any(path.glob(pattern)):
        assert driver.poll() is None, (folder / "driver.log").read_text(errors="replace")[-4000:]
        time.sleep(0.2)
    kill(driver)


def _times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.mark.fault("D2", "the driver of a sweep is killed in a trial")
def test_a_sweep_survives_its_driver(tmp_path: Path) -> None:
    """Killed in its trial, after the warm-up; a second driver does the rest."""
    home = tmp_path / "quickstart" / "sweeps" / "latest"
    trial, warmup = (home / "seed0" / name / "latest" for name in ("reward.retrieval_-0.1", "warm-up"))
    driver = _start(tmp_path, *PRICES)
    try:
        _kill_when(trial / "checkpoints", "step_*", driver, tmp_path)
    finally:
        driver.kill()
    assert json.loads((home / "frontier.json").read_text())["points"] == []
    done, begun = _times(warmup), os.readlink(trial)

    code, said = _end(_start(tmp_path, *PRICES, "resume=latest"), tmp_path)
    assert code == 0, said[-4000:]
    assert _times(warmup) == done, "what is done is left alone"
    assert os.readlink(trial) == begun, "a trial that is begun goes on where it was"
    assert [json.loads(line)["step"] for line in (trial / "metrics.jsonl").read_text().splitlines()] == [1]
    assert {"config.yaml", "curves.png", "summary.json", "evaluation-always.jsonl"} <= {p.name for p in trial.iterdir()}
    assert "progress: false" in (trial / "config.yaml").read_text()
    policy = str((warmup / "checkpoints/step_00000000/policy").resolve())
    assert policy in (trial / "config.yaml").read_text(), "it began as the policy of the warm-up"

    told = json.loads((home / "frontier.json").read_text())
    (point,) = told["points"]
    assert (told["setting"], point["value"], point["seed"], point["run"]) == (
        "reward.retrieval",
        -0.1,
        0,
        str(trial.resolve()),
    )
    summary = json.loads((trial / "summary.json").read_text())
    assert {name: point[name] for name in MEASURES} == {name: summary["after"][name] for name in MEASURES}
    assert point["never"]["retrievals_per_question"]["mean"] == 0
    assert told["warmup"] == {"0": policy}
    assert (home / "frontier.png").stat().st_size > 10_000
    assert "after training, by reward.retrieval" in said


def test_a_trial_that_fails_is_named_and_stops_no_other(tmp_path: Path) -> None:
    """A millionth of the passages is none. Nothing is started but the trials' drivers."""
    more = ("warmup.steps=0", "setting=retriever.corpus_share", "values=[0.000001,0.000002]")
    code, said = _end(_start(tmp_path, *more), tmp_path)
    assert code == 7, said[-4000:]
    for share in ("1e-06", "2e-06"):
        assert (
            f"seed0/retriever.corpus_share_{share} failed: cluster.system.BadInput: retriever.corpus_share={share}"
            in said
        )
    assert "2 trials are not done; the same command with resume=" in said
    assert json.loads((tmp_path / "quickstart/sweeps/latest/frontier.json").read_text())["points"] == []

    refused = subprocess.run(
        _command(tmp_path, *more, "train.steps=2", "resume=latest"),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert refused.returncode == 3, refused.stderr
    assert "is a sweep of a run with other train.steps; see its config.yaml" in refused.stderr
