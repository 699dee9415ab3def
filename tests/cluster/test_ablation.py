"""An ablation goes on where it stopped, and through the real machines frozen roles stay what they were."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from cluster import ablation
from cluster.checkpoint import Checkpoints
from cluster.system import Inputs
from launch.ablate import main
from smartrag.compose import as_yaml
from smartrag.config import Run
from smartrag.evaluation.evaluate import MEASURES
from smartrag.exits import BAD_INPUT, NOTHING_TO_RESUME
from smartrag.log import COLUMNS, RunFolder
from tests.processes import titled


def _evaluate(folder: RunFolder, name: str) -> dict[str, Any]:
    folder.write_evaluation(name, [dict.fromkeys(COLUMNS, 1.0)] * 3)
    return {"n": 3, **{measure: {"mean": 1.0, "low": 1.0, "high": 1.0} for measure in MEASURES}}


@dataclass
class Driver:
    """Stands in for what starts machines, and leaves the folders that they would. `ends`: exit codes to come."""

    ends: list[int] = field(default_factory=list)
    diary: list[str] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)

    def drive(self, run: Run, *, warmup_only: bool = False) -> int:
        self.runs.append(run)
        again = " again" if run.resume else ""
        self.diary.append(f"{run.seed} {run.name}{again}")
        folder = RunFolder.find(run.runs, run.name, "latest") if again else RunFolder.create(run.runs, run.name)
        folder.write("config.yaml", as_yaml(run))
        with Checkpoints(folder.checkpoints, 2).publish(0, {}) as draft:
            (draft / "policy").mkdir()
            (draft / "policy" / "config.json").write_text(run.name)
        code = self.ends.pop(0) if self.ends else 0
        if code == 0 and not warmup_only:
            summary = {name: _evaluate(folder, name) for name in ("before", "after")}
            folder.write("summary.json", json.dumps(summary))
        return code

    def inputs(self, run: Run, model: Path | None = None) -> Any:
        return Inputs(data=None, model=model, prompt=None, index=None, frozen={})  # type: ignore[arg-type]

    def system(self, run: Run, found: Any, *, learn: bool) -> Any:
        assert not learn
        players = {str(role): (path / "config.json").read_text() for role, path in found.frozen.items()}
        self.diary.append(f"{run.seed} composed {(found.model / 'config.json').read_text()} {players}")
        machines = SimpleNamespace(rollout=None, close=lambda: None)
        return SimpleNamespace(start=lambda: machines)


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Driver:
    made = Driver()
    for name, stand_in in (("drive", made.drive), ("inputs", made.inputs), ("System", made.system)):
        monkeypatch.setattr(ablation, name, stand_in)
    monkeypatch.setattr(
        ablation, "Exam", lambda run, data, rollout, folder: SimpleNamespace(test=lambda *_: _evaluate(folder, "after"))
    )
    return made


def _ablate(tmp_path: Path, rows: Sequence[str], seeds: Sequence[int], *more: str) -> int:
    arguments = [f"rows=[{','.join(rows)}]", f"seeds=[{','.join(map(str, seeds))}]", f"runs={tmp_path}", *more]
    return main(["+experiment=quickstart", *arguments])


def test_every_row_starts_from_its_seeds_warm_up(tmp_path: Path, driver: Driver) -> None:
    assert _ablate(tmp_path, ["composed", "all", "answer", "decision"], [3, 4]) == 0
    one = ["warm-up", "decision", "answer", "all", "composed decision {'query': 'warm-up', 'answer': 'answer'}"]
    assert driver.diary == [f"{seed} {what}" for seed in (3, 4) for what in one]
    home = tmp_path / "quickstart" / "ablations" / "latest"
    for run in driver.runs:
        if run.name != "warm-up":
            assert Path(run.model.path, "config.json").read_text() == "warm-up"
            assert f"seed{run.seed}" in run.model.path
    told = json.loads((home / "ablation.json").read_text())
    assert {row["seed"]: row["episodes"] for row in told["rows"] if row["trained"] == "composed"} == {
        3: 2 * told["episodes"],
        4: 2 * told["episodes"],
    }
    assert (home / "ablation.png").exists()


def test_what_is_done_is_not_done_again_and_what_was_begun_goes_on(tmp_path: Path, driver: Driver) -> None:
    driver.ends = [0, 0, 4]
    assert _ablate(tmp_path, ["decision", "answer", "composed"], [0]) == 4
    assert driver.diary == ["0 warm-up", "0 decision", "0 answer"]
    driver.diary.clear()
    assert _ablate(tmp_path, ["decision", "answer", "composed"], [0], "resume=latest") == 0
    assert driver.diary == ["0 answer again", "0 composed decision {'query': 'warm-up', 'answer': 'answer'}"]
    driver.diary.clear()
    assert _ablate(tmp_path, ["decision", "answer", "composed"], [0], "resume=latest") == 0
    assert driver.diary == []
    # A row is added: what was put together is put together anew.
    assert _ablate(tmp_path, ["decision", "query", "answer", "composed"], [0], "resume=latest") == 0
    assert driver.diary == ["0 query", "0 composed decision {'query': 'query', 'answer': 'answer'}"]


def test_another_run_is_not_gone_on_with(tmp_path: Path, driver: Driver, capsys: pytest.CaptureFixture[str]) -> None:
    assert _ablate(tmp_path, ["all"], [0], "resume=latest") == NOTHING_TO_RESUME
    assert "leave out `resume`" in capsys.readouterr().err
    assert _ablate(tmp_path, ["all"], [0], "warmup.steps=0", "model.path=models/tiny") == 0
    assert driver.diary == ["0 all"]
    assert _ablate(tmp_path, ["all"], [0], "resume=latest", "train.steps=3", "log.progress=false") == BAD_INPUT
    assert "other warmup.steps, train.steps;" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.usefixtures("ray_session")
def test_frozen_roles_through_the_real_machines_and_nothing_left_behind(tmp_path: Path) -> None:
    """The policy whose decision alone was trained is the composition of that decision with the weights it began as."""
    small = (
        *("train.steps=1", "train.episodes=16", "warmup.steps=0", "data.test_questions=16", "data.dev_questions=4"),
        *("log.wandb=disabled", "log.progress=false", "learner.ranks=1", "learner.learning_rate=3e-3"),
        "cluster.placement_timeout_s=1200",  # two engines start one after the other, on a machine that may be busy
    )
    assert _ablate(tmp_path, ["decision", "composed"], [0], *small) == 0
    home = tmp_path / "quickstart" / "ablations" / "latest" / "seed0"
    trained, composed = (
        [json.loads(line) for line in (home / row / "latest" / f"evaluation-{name}.jsonl").read_text().splitlines()]
        for row, name in (("decision", "after"), ("composed", "after"))
    )
    assert [row["turns"] for row in trained] == [row["turns"] for row in composed]
    assert [row["id"] for row in trained] == [row["id"] for row in composed]
    (row,) = RunFolder((home / "decision" / "latest").resolve()).rows()
    assert row["first_ratio_deviation"] < 1e-4
    assert row["engine_gap_max"] < 1e-2
    assert row["policy_tokens"] < row["generated_tokens"] / 2  # the tags
    assert row["untrained_episodes"] == 0
    left = titled(psutil.Process())
    assert "EngineCore" not in left, "an engine would hold on to memory that the next run needs"
    ours = [process for name in ("RolloutWorker", "LearnerRank", "RetrievalReplica") for process in left.get(name, [])]
    _, lasting = psutil.wait_procs(ours, timeout=30)
    assert not lasting
