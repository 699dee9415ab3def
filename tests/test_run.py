"""One run through every real component: Ray, vLLM, Lucene, DeepSpeed, Hydra, W&B, with the tiny policy.

In its middle a rollout worker and a retrieval replica are killed, then a learner rank; then the driver is, and its disk
is lost; another goes on from the copy in an object store. What comes of it is, to the last bit, what comes of a run
that nobody disturbs.
"""

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import psutil
import pytest

from cluster.checkpoint import MANIFEST
from cluster.mirror import fetch
from cluster.objects import Objects
from smartrag import ROOT
from smartrag.evaluation.evaluate import MEASURES
from smartrag.ledger import problems
from tests.fault_table import Row
from tests.object_store import BUCKET, object_store
from tests.own_files import write_csv, write_package
from tests.processes import kill, titled, until
from tests.whole_run import EXACT, SMALL, check_equal, finished, lines, rows, start

pytestmark = [pytest.mark.slow, pytest.mark.chaos, pytest.mark.timeout(1500)]

STEPS = 4
SHORT = (f"train.steps={STEPS}", *SMALL, "log.wandb=offline")
MIRROR = f"train.mirror=s3://{BUCKET}/runs"


def _kill_all(processes: list[psutil.Process]) -> None:
    assert processes
    for process in processes:
        process.kill()


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, str]]:
    """The environment in which MIRROR is in reach."""
    with object_store() as env:
        yield env


@pytest.mark.fault("D2", "a worker, a replica, a rank and the driver are killed in one run, and the disk is lost")
def test_a_run_survives_its_workers_its_learner_its_driver_and_its_disk(
    tmp_path: Path, row: Row, s3: Mapping[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "driver.log"
    driver = start(tmp_path, *SHORT, *EXACT, MIRROR, given=s3)
    try:
        until(lambda: len(rows(tmp_path)) >= 1, driver, log)
        actors = titled(psutil.Process(driver.pid))
        assert len(actors["LearnerRank"]) == 2
        assert len(actors["RolloutWorker"]) == 1
        assert len(actors["RetrievalReplica"]) == 1
        _kill_all(actors["RolloutWorker"])
        _kill_all(actors["RetrievalReplica"])
        row.trial(recovery_s=until(lambda: len(rows(tmp_path)) >= 2, driver, log))
        actors["LearnerRank"][1].kill()
        row.trial(recovery_s=until(lambda: len(rows(tmp_path)) >= 3, driver, log))
        assert "a new one goes on from the newest checkpoint (1 of 3)" in log.read_text(errors="replace")
        kill(driver)
    finally:
        driver.kill()

    for name, value in s3.items():
        monkeypatch.setenv(name, value)
    runs = Objects.at(MIRROR.partition("=")[2])
    copied = max(int(name.split("/")[3][5:]) for name in runs.names() if name.endswith(f"/{MANIFEST}"))
    assert copied >= 1
    shutil.rmtree(tmp_path / "quickstart")
    resumed = start(tmp_path, *SHORT, *EXACT, MIRROR, "resume=auto")
    row.trial(recovery_s=until(lambda: len(rows(tmp_path)) >= STEPS, resumed, log))
    code = resumed.wait(timeout=900)
    assert code == 0, log.read_text(errors="replace")[-4000:]
    assert f"{copied} of {STEPS} steps are done" in log.read_text(errors="replace")
    folder = tmp_path / "quickstart" / "latest"
    _check_folder(folder)
    _check_evaluation(folder)
    check_equal(folder, finished(tmp_path / "calm", *SHORT, *EXACT, "train.gates=false"))
    assert fetch(f"{runs.uri}/quickstart/latest", tmp_path / "from the copy").name == folder.resolve().name
    check_equal(folder, tmp_path / "from the copy" / "quickstart" / "latest")


@dataclass(frozen=True)
class Own:
    """A run of somebody's own: two CSV files, a reward function, rollouts a step ahead, a key in its environment."""

    home: Path  # of all that was written
    session: Path  # Ray's own
    canary: str  # every secret's value
    passages: set[str]  # of the CSV file, as shown

    @property
    def folder(self) -> Path:
        return self.home / "quickstart" / "latest"


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Own]:
    home = tmp_path_factory.mktemp("own")
    write_package(home)
    files, passages = write_csv(home, 400)
    ahead = ("train.max_staleness=1", "train.gates=false", "cluster.engine.concurrency=8")
    reward = ("reward.judge=function", "reward.function=my_package.rewards:contains", f"cache={home / 'cache'}")
    canary, session = f"canary-{secrets.token_hex(16)}", tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    given = dict.fromkeys(("HF_TOKEN", "WANDB_API_KEY", "SMARTRAG_TEACHER_KEY", "SMARTRAG_JUDGE_KEY"), canary)
    given |= {"RAY_TMPDIR": session, "PYTHONPATH": f"{ROOT}:{home}"}
    finished(home, *SHORT, *files, *reward, *ahead, given=given)
    yield Own(home, Path(session), canary, passages)
    shutil.rmtree(session)


def test_engines_and_learner_work_at_the_same_time(own: Own) -> None:
    """Steps are rolled out while the learner works on the one before, and the weights change in their middle."""
    metrics, ledger = rows(own.home), lines(own.folder / "ledger.jsonl")
    assert list(problems(ledger, seed=0, episodes=16, staleness=1)) == []
    assert any(len(row["versions"]) == 2 or row["versions"] == [row["step"] - 2] for row in ledger[1:])
    assert [row["staleness_max"] for row in metrics] == [row["step"] - 1 - row["versions"][0] for row in ledger]
    assert any(row["seconds_waiting"] < 0.9 * row["seconds_rollout"] for row in metrics[1:]), "nothing overlapped"
    assert all(row["push/canary_gap"] < 0.01 and row["skipped_steps"] == 0 for row in metrics)
    assert all(row["first_ratio_deviation"] < 1e-4 for row in metrics), (
        "the ratio is to the policy at the update's start"
    )


def test_no_secret_leaves_the_environment(own: Own) -> None:
    """What the run writes, and what Ray does in its own folder, is looked through for a key."""
    files = [path for folder in (own.home, own.session) for path in folder.rglob("*") if path.is_file()]
    assert any("metrics.jsonl" in path.name for path in files)
    assert any("raylet" in path.name for path in files)
    assert not [path for path in files if own.canary.encode() in path.read_bytes()]


def test_it_was_trained_on_two_csv_files(own: Own) -> None:
    splits = json.loads((own.folder / "splits.json").read_text())
    sizes = {name: split["questions"] for name, split in splits["splits"].items()}
    assert (sizes["ppo"], sizes["dev"], sizes["test"]) == (200, 8, 12)
    assert set(splits["overlaps"][pair] for pair in splits["overlaps"] if "dev" in pair or "test" in pair) == {0}
    assert all(row["voided_episodes"] == 0 for row in rows(own.home))
    assert json.loads((own.folder / "summary.json").read_text())["after"]["n"] == 12
    turns = [turn for episode in lines(own.folder / "episodes.jsonl") for turn in episode["turns"]]
    seen = {text for turn in turns for text in turn.get("passages", [])}
    assert seen
    assert seen <= own.passages


def _check_evaluation(folder: Path) -> None:
    """The trained policy against gates and oracles, with another k, through the real engine and retriever."""
    given = [f"run={folder}", "out=k4", "samples=2", "labelled=16", "retriever.k=4", "data.test_questions=10"]
    subprocess.run([sys.executable, str(ROOT / "launch" / "evaluate.py"), *given], check=True, timeout=900)
    out = folder / "evaluations" / "k4"
    figures = json.loads((out / "evaluation.json").read_text(), parse_constant=_not_json)
    systems = figures["systems"]
    assert set(systems) == {"policy", "never", "always", "question", "gold_first", "oracle"}
    assert systems["never"]["retrievals_per_question"]["mean"] == 0
    assert systems["never"]["model_calls"]["mean"] == 1
    assert systems["question"]["retrievals_per_question"]["mean"] >= 1
    assert all(systems[name]["reward"]["mean"] <= systems["oracle"]["reward"]["mean"] for name in ("never", "always"))
    assert systems["policy"]["latency_s"]["mean"] > 0
    assert {"entropy", "margin", "flare", "consistency", "self_report", "popularity"} <= set(figures["gates"])
    for gate in figures["gates"].values():
        ends = [gate["curve"][i]["retrievals_per_question"] for i in (0, -1)]
        assert ends == [0, systems["always"]["retrievals_per_question"]["mean"]]
    asked = pd.read_parquet(out / "questions.parquet")
    assert len(asked) == 5 * 10
    searched = asked[(asked.system == "always") & (asked.retrievals_per_question > 0)]
    assert all(len(queries) > 0 for queries in searched.queries)
    assert all((out / name).stat().st_size > 10_000 for name in ("frontier.png", "decision.png"))


def _not_json(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


def _check_folder(folder: Path) -> None:
    metrics = lines(folder / "metrics.jsonl")
    assert [row["step"] for row in metrics] == list(range(1, STEPS + 1)), "every step stands once, in order"
    for row in metrics:
        assert row["push/canary_gap"] < 0.01
        assert row["first_ratio_deviation"] < 1e-4
        assert row["engine_gap_max"] < 1e-2
        assert row["skipped_steps"] == 0
    assert any("dev/reward" in row for row in metrics)
    summary = json.loads((folder / "summary.json").read_text())
    for system in ("before", "after", "never", "always"):
        assert summary[system]["n"] == 12
        assert set(MEASURES) <= set(summary[system])
        assert len((folder / f"evaluation-{system}.jsonl").read_text().splitlines()) == 12
    assert summary["never"]["retrievals_per_question"]["mean"] == 0
    assert summary["always"]["retrievals_per_question"]["mean"] >= 1
    assert {"torch", "vllm", "ray", "deepspeed", "pyserini"} <= set(summary["versions"])
    assert (folder / "curves.png").stat().st_size > 10_000
    assert "12 test questions" in (folder / "report.html").read_text(encoding="utf-8")
    episodes = lines(folder / "episodes.jsonl")
    assert {row["step"] for row in episodes} == set(range(1, STEPS + 1))
    assert list(folder.glob("wandb/offline-run-*")), "W&B holds the run, offline"
    assert os.path.islink(folder.parent / "latest")
    newest = folder / "checkpoints" / f"step_{STEPS:08d}" / "policy"
    assert (newest / "model.safetensors").exists()
