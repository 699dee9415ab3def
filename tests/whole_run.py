"""A whole run as people start it, made short: started, looked at while it goes on, and held against another."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from cluster.checkpoint import verify
from smartrag import ROOT
from smartrag.ledger import problems

EPISODES = 16
SMALL = (
    *(f"train.episodes={EPISODES}", "train.save_every=1", "warmup.steps=2", "warmup.batch=8"),
    *("data.train_questions=200", "data.dev_questions=8", "data.test_questions=12"),
)
# What a token's log-prob is to the last bit depends on what is computed beside it, and on what of it is cached.
EXACT = (
    "cluster.engine.concurrency=1",
    "+cluster.engine.engine_args.enable_prefix_caching=false",
    "train.evaluate_every=2",
)
TIMES = ("seconds", "push/")  # metrics that differ from one run to the next begin so


def start(runs: Path, *settings: str, given: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """A driver of the quickstart, whose log is driver.log in `runs`. `given`: beside what is in the environment."""
    command = [sys.executable, str(ROOT / "launch" / "train.py"), "+experiment=quickstart", f"runs={runs}", *settings]
    # A W&B service of this test session would outlive the driver we kill, and hold on to its run.
    env = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")} | dict(given or {})
    with (runs / "driver.log").open("ab") as log:
        return subprocess.Popen(
            command, cwd=ROOT, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )


def finished(runs: Path, *settings: str, given: Mapping[str, str] | None = None) -> Path:
    """The folder of a run that went through to its end."""
    runs.mkdir(exist_ok=True)
    code = start(runs, *settings, given=given).wait(timeout=900)
    assert code == 0, (runs / "driver.log").read_text(errors="replace")[-4000:]
    return runs / "quickstart" / "latest"


def rows(runs: Path) -> list[dict]:
    """The metrics of the newest run so far."""
    path = runs / "quickstart" / "latest" / "metrics.jsonl"
    return lines(path) if path.exists() else []


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def check_equal(folder: Path, calm: Path) -> None:
    """Every sampled token, log-prob, metric and weight of the two runs, and what must be true of each ledger."""
    ledgers = [lines(run / "ledger.jsonl") for run in (folder, calm)]
    assert list(problems(ledgers[0], seed=0, episodes=EPISODES)) == []
    assert ledgers[0] == ledgers[1]
    disturbed, undisturbed = (
        [{name: x for name, x in row.items() if not name.startswith(TIMES)} for row in lines(run / "metrics.jsonl")]
        for run in (folder, calm)
    )
    assert disturbed == undisturbed
    steps = len(disturbed)
    checkpoint = f"checkpoints/step_{steps:08d}"
    assert {verify(run / checkpoint)["steps_done"] for run in (folder, calm)} == {steps}
    for part in ("policy/model.safetensors", "learner/reference.safetensors"):
        assert len({(run / checkpoint / part).read_bytes() for run in (folder, calm)}) == 1, part
