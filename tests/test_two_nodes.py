"""Runs over several nodes, in one of which a node is lost: real `ray start` processes, each with an address of its own
(of loopback, or of a network of its own), token authentication, and the run as a job."""

import json
import os
import subprocess
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from cluster.local_ray import LocalRay
from smartrag.ledger import problems
from tests.fault_table import Row
from tests.nodes import lose, may_make_networks, network, node, submitted, where
from tests.processes import until
from tests.whole_run import SMALL, finished, lines, rows

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
    with ExitStack() as stack:
        head = stack.enter_context(LocalRay(num_cpus=0))
        nodes = {ip: stack.enter_context(node(head, ip, tmp_path)) for ip in (f"127.0.0.{n}" for n in (3, 4, 5, 6))}
        row.trial(recovery_s=goes_on_without(lambda ip: lose(nodes.pop(ip)), head, nodes, tmp_path))
    assert not [p for p in head.processes() if p != os.getpid()], "something outlived the cluster"


@pytest.mark.fault("N2", "a node falls silent, with a rank and an engine on it, and is back when it is too late")
def test_a_run_over_several_nodes_survives_a_silent_one(tmp_path: Path, row: Row, monkeypatch) -> None:
    """Nothing is refused and nothing closed: packets to one of the nodes and from it are dropped, until the end."""
    if not may_make_networks():
        pytest.skip("network namespaces are for root, with iproute2's `ip`")
    with ExitStack() as stack:
        made = stack.enter_context(network(4))
        monkeypatch.setattr("cluster.local_ray._IP", made.head)
        head = stack.enter_context(LocalRay(num_cpus=0))
        nodes = {ip: stack.enter_context(node(head, ip, tmp_path, inside=made.namespace(ip))) for ip in made.ips}
        cut: dict[str, subprocess.Popen[bytes]] = {}

        def silence(ip: str) -> None:
            made.cut(ip)
            cut[ip] = nodes.pop(ip)

        row.trial(recovery_s=goes_on_without(silence, head, nodes, tmp_path, "cluster.call_timeout_s=45"))
        for ip, back in cut.items():
            made.mend(ip)
            back.wait(timeout=120)  # Ray tells it that it is no more
    assert not [p for p in head.processes() if p != os.getpid()], "something outlived the cluster"


def goes_on_without(
    take: Callable[[str], None],
    head: LocalRay,
    nodes: dict[str, subprocess.Popen[bytes]],
    folder: Path,
    *settings: str,
) -> float:
    """Seconds from the taking of a node, with the second rank and an engine on it, to the next step of the run, which
    ends as one does that nobody disturbed. `take` removes the node from `nodes`."""
    log = folder / "job.log"
    job = submitted(head, log, *RUN, *settings, f"runs={folder}")
    until(lambda: rows(folder), job, log)
    seats = where(nodes)
    assert [len(set(seats[name])) for name in ("LearnerRank", "RolloutWorker", "RetrievalReplica")] == [2, 2, 1]
    lost = seats["LearnerRank"][1]
    assert lost in seats["RolloutWorker"]
    done = len(rows(folder))
    assert rows(folder)[0]["push/engines"] == 2
    take(lost)
    took_s = until(lambda: len(rows(folder)) > done, job, log)
    seats = where(nodes)
    assert [len(seats[name]) for name in ("LearnerRank", "RolloutWorker", "RetrievalReplica")] == [2, 2, 1]
    assert job.wait(timeout=600) == 0, log.read_text(errors="replace")[-4000:]
    assert "a new one goes on from the newest checkpoint" in log.read_text(errors="replace")
    assert list(problems(lines(folder / "quickstart" / "latest" / "ledger.jsonl"), seed=0, episodes=16)) == []
    told = rows(folder)
    assert [r["step"] for r in told] == list(range(1, STEPS + 1))
    assert all(r["push/canary_gap"] < 0.01 for r in told)
    return took_s
