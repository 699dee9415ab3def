"""Asynchronous training with stand-ins for the machines: what is begun when, by which weights, and what is learned."""

import asyncio
import json
import threading
from collections.abc import Generator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from smartrag.data.load import Dataset
from smartrag.episode import run_episode
from smartrag.ledger import problems
from smartrag.log import RunFolder
from smartrag.prefetch import staleness
from smartrag.train import Training
from smartrag.trajectory import imitation
from smartrag.types import Episode, EpisodeRequest, PoisonQuestion, Trajectory
from tests import toys
from tests.smartrag.test_train import TEST, TRAIN, Shelf, _to_the_end, small_run
from tests.smartrag.test_train import Machines as Synchronous

STEPS = 6


class Machines(Synchronous):
    """Engines that write with the weights last pushed, and a learner that is only done once the engines have done all
    they may: `begun` are (step, version that was out when it began, updates that were done)."""

    def __init__(self, staleness: int, poison: str = "") -> None:
        super().__init__()
        self.staleness, self.poison = staleness, poison
        self.version, self.closed = -1, 0
        self.begun: list[tuple[int, int, int]] = []
        self.landed = 0
        self.arrived = threading.Condition()

    def __call__(self, requests: Sequence[EpisodeRequest]) -> Generator[Episode | None]:
        training = not requests[0].greedy
        if training:
            self.begun.append((len(self.begun), self.version, len(self.learned)))
        yield None
        try:
            for request in requests:
                if request.question.id == self.poison:
                    raise PoisonQuestion(f"{self.poison} ends workers", self.poison)
                policy = toys.ScriptedPolicy(toys.prompt(), "[Answer] Norway", version=self.version)
                episode = asyncio.run(run_episode(request, policy, toys.Shelf(), toys.prompt(), temperature=1.0))
                if training and request is requests[-1]:
                    with self.arrived:
                        self.landed += 1
                        self.arrived.notify_all()
                yield episode
        finally:
            self.closed += 1

    def update(self, trajectories: Sequence[Trajectory], step: int) -> dict[str, float]:
        may = min(step + 1 + self.staleness, STEPS)
        with self.arrived:
            assert self.arrived.wait_for(lambda: self.landed >= may, timeout=20), "what may be begun is not"
        return super().update(trajectories, step)


def _training(
    folder: Path, machines: Machines, store: Shelf | None = None, *more: str, of: RunFolder | None = None
) -> Training:
    def push(version: int) -> dict[str, float]:
        machines.version = version
        return {"seconds": 0.0, "transfer_seconds": 0.0}

    run = small_run(f"train.steps={STEPS}", f"train.max_staleness={machines.staleness}", "warmup.steps=0", *more)
    data = Dataset(TRAIN, TEST[:2], TEST, None)
    made = of or RunFolder.create(str(folder), "test")
    return Training(run, data, machines, machines, push, store or Shelf(folder), made)


@pytest.mark.parametrize("bound", [0, 1, 2, 5])
def test_steps_are_begun_as_early_as_the_bound_allows_and_no_earlier(tmp_path: Path, bound: int) -> None:
    machines = Machines(bound)
    training = _training(tmp_path, machines)
    training.begin([])
    _to_the_end(training)
    assert machines.begun == [(n, max(0, n - bound), max(0, n - bound)) for n in range(STEPS)]
    rows = training.folder.rows()
    assert [row["staleness_max"] for row in rows] == [min(n, bound) for n in range(STEPS)]
    ledger = [json.loads(line) for line in (training.folder.folder / "ledger.jsonl").read_text().splitlines()]
    assert list(problems(ledger, seed=0, episodes=4, staleness=bound)) == []
    if bound:
        assert len(list(problems(ledger, seed=0, episodes=4, staleness=bound - 1))) == STEPS - bound
    assert machines.closed == STEPS + 1, "nothing was begun twice or for nothing, and the evaluation once"


def test_what_was_begun_ahead_is_given_up_when_a_run_goes_back_to_a_checkpoint(tmp_path: Path) -> None:
    machines, store = Machines(1), Shelf(tmp_path)
    training = _training(tmp_path, machines, store)
    training.begin([])
    for _ in range(3):  # the newest checkpoint is of step 2
        training.step()
    assert [n for n, _, _ in machines.begun] == [0, 1, 2, 3]
    training.resume()
    machines.begun.clear()
    machines.landed, machines.closed = 2, 0
    _to_the_end(training)
    assert machines.begun[0][1:] == (2, 3), "step 2 again, by the weights of the checkpoint"
    ledger = [json.loads(line) for line in (training.folder.folder / "ledger.jsonl").read_text().splitlines()]
    assert list(problems(ledger, seed=0, episodes=4, staleness=1)) == []
    assert machines.closed == len(machines.begun) == STEPS - 2


def test_a_question_that_ends_workers_ahead_of_time_is_set_aside(tmp_path: Path) -> None:
    machines = Machines(1, poison="q3")
    training = _training(tmp_path, machines, None, "train.set_aside=1")
    training.begin([])
    _to_the_end(training)
    assert training.plan.set_aside == ["q3"]
    assert [len(step) for step in machines.learned] == [4] * STEPS
    ledger = [json.loads(line) for line in (training.folder.folder / "ledger.jsonl").read_text().splitlines()]
    assert list(problems(ledger, seed=0, episodes=4, staleness=1)) == []


def test_what_the_engines_or_the_learner_raise_ends_the_step(tmp_path: Path) -> None:
    class Broken(Machines):
        def update(self, trajectories: Sequence[Trajectory], step: int) -> dict[str, float]:
            raise RuntimeError("the learner is gone")

    training = _training(tmp_path / "learner", Broken(1))
    training.begin([])
    with pytest.raises(RuntimeError, match="the learner is gone"):
        training.step()
    training = _training(tmp_path / "engines", Machines(1, poison=TRAIN[0].id))
    training.begin([])
    with pytest.raises(PoisonQuestion, match="ends workers"):
        _to_the_end(training)


def test_staleness_counts_trained_tokens_alone() -> None:
    """Versions 3 and 1 of two trained tokens, learned from in step 4: lags of 1 and 3; the context's -1 is none."""
    made = replace(imitation("a", (1, 2), (3, 4)), weight_versions=(-1, -1, 3, 1))
    assert staleness([made], 4) == {"staleness_mean": 2.0, "staleness_max": 3.0}
    assert staleness([], 4) == {}
