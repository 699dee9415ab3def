"""Whole steps of the run, from questions to pushed weights: how long they take, and how long nobody is at work."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from cluster.checkpoint import Checkpoints
from cluster.system import Inputs, System, inputs
from smartrag.config import Run
from smartrag.experiments.bench import Figure, against, median
from smartrag.log import RunFolder
from smartrag.train import Training

_TESTED = 8  # questions, before the first step


def bench(run: Run, path: Path, repeats: int) -> dict[str, Figure]:
    """Seconds of a step, those of them that are orchestration, and how well rollout and update overlap."""
    run = replace(run, train=replace(run.train, steps=repeats + 2, save_every=repeats + 2))
    with begun(run) as (_, _, training):
        training.step()  # to warm up
        rows = [training.step() for _ in range(repeats)]  # the last of the run, with its checkpoint, is left out
    steps = median([row["seconds_step"] for row in rows], "s")
    idle = median([row["seconds_idle"] for row in rows], "s")
    longer = [max(row["seconds_rollout"], row["seconds_feedback"] + row["seconds_update"]) for row in rows]
    return {
        "step_seconds": steps,
        "orchestration": against(idle, "step_seconds", steps),
        "overlap_efficiency": against(median(longer, "s"), "step_seconds", steps),
    }


@contextmanager
def begun(run: Run) -> Iterator[tuple[Inputs, System, Training]]:
    """A run before its first step, without warm-up; its folder is gone afterwards."""
    data, log = replace(run.data, test_questions=_TESTED), replace(run.log, progress=False)
    run = replace(run, data=data, log=log)
    found = inputs(run)
    system = System(run, found).start()
    with tempfile.TemporaryDirectory() as home:
        folder = RunFolder(Path(home))
        store = Checkpoints(folder.checkpoints, keep=1)
        training = Training(run, found.data, system.rollout, system.learner, system.publish, store, folder)
        try:
            training.begin([])
            yield found, system, training
        finally:
            system.close()
