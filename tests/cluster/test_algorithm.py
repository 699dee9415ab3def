"""A run that is another's is not touched; a lost learner is started again from the newest checkpoint, a bounded number
of times. No machines."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster import algorithm
from cluster.algorithm import SmartRAGConfig, SmartRAGPPO
from cluster.learner import LearnerLost
from cluster.system import BadInput
from smartrag.compose import load
from smartrag.lease import Locked
from smartrag.log import RunFolder


class Algorithm(SmartRAGPPO):
    """Trains five steps, saves every second; `lost`: how often the learner dies in the step after so many."""

    def __init__(self, lost: dict[int, int]):
        self.lost, self.done, self.diary = lost, 0, []
        run = SimpleNamespace(cluster=SimpleNamespace(learner_restarts=2))
        saving = SimpleNamespace(drop=lambda: self.diary.append("drop"))
        self.training: Any = SimpleNamespace(
            run=run, steps_done=0, done=False, step=self._one, resume=self._resume, saving=saving
        )
        self._system: Any = SimpleNamespace(restart_learner=lambda: self.diary.append("restart"))

    def _one(self) -> dict[str, Any]:
        if self.lost.get(self.training.steps_done, 0) > 0:
            self.lost[self.training.steps_done] -= 1
            raise LearnerLost("rank 1 died")
        self.training.steps_done += 1
        self.training.done = self.training.steps_done == 5
        return {"step": self.training.steps_done}

    def _resume(self) -> None:
        self.training.steps_done -= self.training.steps_done % 2
        self.diary.append(f"resume {self.training.steps_done}")

    def steps(self) -> list[int]:
        found = []
        while not self.training.done:
            found.append(self.step()["step"])
        return found


@pytest.mark.fault("L1", "the learner is lost in a step")
def test_it_goes_on_from_the_newest_checkpoint() -> None:
    algorithm = Algorithm({3: 1, 4: 1})
    assert algorithm.steps() == [1, 2, 3, 3, 4, 5]
    assert algorithm.diary == ["drop", "restart", "resume 2", "drop", "restart", "resume 4"]


@pytest.mark.fault("L7", "the learner is lost again and again")
def test_restarts_that_bring_nothing_are_counted_and_bounded() -> None:
    assert Algorithm({1: 2, 3: 2}).steps() == [1, 1, 1, 2, 3, 3, 3, 4, 5]
    with pytest.raises(LearnerLost, match="rank 1 died"):
        Algorithm({3: 3}).steps()


def test_a_run_is_claimed_before_anything_and_let_go_of_where_it_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(run: Any) -> None:
        raise BadInput("no such corpus")

    run = load(["+experiment=quickstart", f"runs={tmp_path}", "resume=latest"])
    held = RunFolder.create(run.runs, run.name)
    held.claim()
    monkeypatch.setattr(algorithm.resume, "find", lambda run: RunFolder(held.folder))
    monkeypatch.setattr(algorithm, "inputs", refuse)
    with pytest.raises(Locked, match="is being written by process"):
        SmartRAGPPO(SmartRAGConfig().smartrag(run))
    held.close()
    for _ in range(2):  # the first has left nothing for which the second would wait
        with pytest.raises(BadInput, match="no such corpus"):
            SmartRAGPPO(SmartRAGConfig().smartrag(run))
