"""The driver's loop, with an algorithm that machines do not stand behind."""

import os
import signal
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.driver import _loop

ROW = {"reward": 1.0, "em": 1.0, "retrievals_per_question": 0.5, "generated_tokens": 8, "seconds_rollout": 1.0}


class Algorithm:
    """Trains three steps; SIGTERM comes in the middle of step `told`."""

    def __init__(self, told: int):
        self.told, self.saved = told, []
        loop = SimpleNamespace(train=SimpleNamespace(steps=3), log=SimpleNamespace(progress=False))
        self.training = SimpleNamespace(
            run=loop, steps_done=0, save=lambda wait: self.saved.append((self.training.steps_done, wait))
        )

    def train(self) -> dict[str, Any]:
        if self.training.steps_done == 3:
            return {"done": True}
        self.training.steps_done += 1
        if self.training.steps_done == self.told:
            os.kill(os.getpid(), signal.SIGTERM)
        return ROW | {"push/canary_gap": 0.0, "done": False}


@pytest.mark.fault("D1", "SIGTERM in a step")
def test_sigterm_ends_the_step_under_way_and_saves() -> None:
    before = signal.getsignal(signal.SIGTERM)
    algorithm = Algorithm(told=2)
    assert not _loop(algorithm)  # type: ignore[arg-type]
    assert algorithm.saved == [(2, True)]
    assert signal.getsignal(signal.SIGTERM) == before


def test_without_it_the_run_goes_to_its_end() -> None:
    algorithm = Algorithm(told=0)
    assert _loop(algorithm)  # type: ignore[arg-type]
    assert (algorithm.training.steps_done, algorithm.saved) == (3, [])
