"""Runs over several nodes, in one of which a node is lost: real `ray start` processes, each with an address of its own
(of loopback), token authentication, and the run as a job."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil
import pytest

from cluster.local_ray import LocalRay
from smartrag import ROOT
from smartrag.ledger import problems
from tests.fault_table import Row
from tests.processes import titled, until
from tests.whole_run import SMALL, finished, rows

pytestmark = [pytest.mark.slow, pytest.mark.nightly, pytest.mark.timeout(1200)]

STEPS = 3
RUN = (
    *("+experiment=quickstart", f"train.steps={STEPS}", *SMALL, "train.gates=false"),
    *("log.wandb=disabled", "log.progress=false"),
    # A node of one CPU holds a rank and an engine; the replica takes a third node, and a fourth is to spare.
    *(
        "learner.ranks=2",
        "learner.cpus=0.6",
        "cluster.engine.workers=2",
        "cluster.engine.cpus=0.4",
        "retriever.cpus=0.7",
    ),
)


@contextmanager
def node(head: LocalRay, ip: str, folder: Path, cpus: int = 1) -> Iterator[subprocess.Popen[bytes]]:
    """A node that has joined."""
    command = ["ray", "start", f"--address={head.address}", f"--node-ip-address={ip}", f"--num-cpus={cpus}"]
    log = folder / f"{ip}.log"
    with log.open("wb") as out:
        started = subprocess.Popen(
            [*command, "--num-gpus=0", "--block", "--disable-usage-stats", "--dashboard-agent-listen-port=0"],
            env=head.env,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        until(lambda: "Ray runtime started" in log.read_text(errors="replace"), started, log)
        yield started
    finally:
        lose(started)


def lose(lost: subprocess.Popen[bytes]) -> None:
    """What a machine that loses its power does to all that ran on it."""
    if lost.poll() is None:
        for process in [*psutil.Process(lost.pid).children(recursive=True), psutil.Process(lost.pid)]:
            try:
                process.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                continue
        lost.wait()


def where(nodes: dict[str, subprocess.Popen[bytes]]) -> dict[str, list[str]]:
    """Name of an actor's class -> addresses of the nodes that hold one, in their order."""
    found: dict[str, list[str]] = {}
    for ip, started in nodes.items():
        for name, processes in titled(psutil.Process(started.pid)).items():
            found.setdefault(name, []).extend([ip] * len(processes))
    return found


def submitted(head: LocalRay, log: Path, *settings: str) -> subprocess.Popen[bytes]:
    """A training job, whose log goes on to `log`."""
    submit = ["ray", "job", "submit", "--working-dir", ".", "--", sys.executable, "launch/train.py"]
    with log.open("wb") as out:
        return subprocess.Popen([*submit, *settings], cwd=ROOT, env=head.env, stdout=out, stderr=subprocess.STDOUT)


def test_two_nodes_learn_what_one_does(tmp_path: Path) -> None:
    """The quickstart of a third its length: a rank and an engine on either node, the replica on one of them."""
    quickstart = ("+experiment=quickstart", "train.steps=30", "learner.final_rate=0.1", "train.gates=false")
    quickstart += ("log.wandb=disabled", "log.progress=false")
    spread = ("learner.ranks=2", "learner.cpus=1.1", "cluster.engine.workers=2", "cluster.engine.cpus=0.6")
    log = tmp_path / "job.log"
    with ExitStack() as stack:
        head = stack.enter_context(LocalRay(num_cpus=0))
        nodes = {ip: stack.enter_context(node(head, ip, tmp_path, cpus=2)) for ip in ("127.0.0.3", "127.0.0.4")}
        job = submitted(head, log, *quickstart, *spread, "retriever.cpus=0.2", f"runs={tmp_path / 'two'}")
        until(lambda: rows(tmp_path / "two"), job, log)
        seats = where(nodes)
        assert [len(set(seats[name])) for name in ("LearnerRank", "RolloutWorker", "RetrievalReplica")] == [2, 2, 1]
        assert job.wait(timeout=900) == 0, log.read_text(errors="replace")[-4000:]
    finished(tmp_path / "one", *quickstart[1:])
    two, one = (
        json.loads((tmp_path / name / "quickstart" / "latest" / "summary.json").read_text())["after"]
        for name in ("two", "one")
    )
    told = {name: (two[name], one[name]) for name in ("reward", "em", "retrievals_per_question")}
    print(told)
    assert two["reward"]["mean"] > 1.5, told
    assert two["reward"]["low"] <= one["reward"]["high"], told
    assert one["reward"]["low"] <= two["reward"]["high"], told


@pytest.mark.fault("N1", "a node is lost, with a rank and an engine on it")
def test_a_run_over_several_nodes_survives_the_loss_of_one(tmp_path: Path, row: Row) -> None:
    log, folder = tmp_path / "job.log", tmp_path / "quickstart" / "latest"

    def lines(name: str) -> list[dict]:
        path = folder / name
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    ips = [f"127.0.0.{n}" for n in (3, 4, 5, 6)]
    with ExitStack() as stack:
        head = stack.enter_context(LocalRay(num_cpus=0))
        nodes = {ip: stack.enter_context(node(head, ip, tmp_path)) for ip in ips}
        job = submitted(head, log, *RUN, f"runs={tmp_path}")
        until(lambda: len(lines("metrics.jsonl")) >= 1, job, log)
        seats = where(nodes)
        assert [len(set(seats[name])) for name in ("LearnerRank", "RolloutWorker", "RetrievalReplica")] == [2, 2, 1]
        lost = seats["LearnerRank"][1]
        assert lost in seats["RolloutWorker"]
        done = len(lines("metrics.jsonl"))
        lose(nodes.pop(lost))
        row.trial(recovery_s=until(lambda: len(lines("metrics.jsonl")) > done, job, log))
        seats = where(nodes)
        assert [len(seats[name]) for name in ("LearnerRank", "RolloutWorker", "RetrievalReplica")] == [2, 2, 1]
        assert job.wait(timeout=600) == 0, log.read_text(errors="replace")[-4000:]
    assert "a new one goes on from the newest checkpoint" in log.read_text(errors="replace")
    assert list(problems(lines("ledger.jsonl"), seed=0, episodes=16)) == []
    rows = lines("metrics.jsonl")
    assert [r["step"] for r in rows] == list(range(1, STEPS + 1))
    assert all(r["push/canary_gap"] < 0.01 for r in rows)
    assert rows[0]["push/engines"] == 2
    assert not [p for p in head.processes() if p != os.getpid()], "something outlived the cluster"
