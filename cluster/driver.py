"""What `launch/train.py` does with a checked run: drive the algorithm to its end and leave a run folder behind.

Exit codes are those of smartrag/exits.py.
"""

import json
import logging
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from cluster.algorithm import SmartRAGConfig, SmartRAGPPO
from cluster.refusal import REFUSALS, refused, show_log
from smartrag.config import Run
from smartrag.exits import STOPPED
from smartrag.report import terminal

logger = logging.getLogger("smartrag")


def drive(run: Run, *, warmup_only: bool = False) -> int:
    """Train to the end, or only through the warm-up; returns the exit code."""
    show_log()
    algorithm: SmartRAGPPO | None = None
    try:
        algorithm = SmartRAGPPO(SmartRAGConfig().smartrag(run))
        if warmup_only:
            logger.info("the warmed-up policy is in %s", algorithm.training.store.load()[0] / "policy")
            return 0
        if not _loop(algorithm):
            folder = algorithm.folder.folder
            logger.info("told to stop; saved after step %d, resume=%s goes on", algorithm.training.steps_done, folder)
            return STOPPED
        print(terminal.as_text(json.loads((algorithm.folder.folder / "summary.json").read_text(encoding="utf-8"))))
        logger.info("all of it is in %s", algorithm.folder.folder)
    except REFUSALS as error:
        return refused(error)
    finally:
        if algorithm is not None:
            algorithm.stop()
    return 0


def _loop(algorithm: SmartRAGPPO) -> bool:
    """Trains to the end. False when SIGTERM came: the step under way is then ended and saved, if there is time."""
    training = algorithm.training
    bar = tqdm(
        total=training.run.train.steps,
        initial=training.steps_done,
        desc="PPO",
        unit="step",
        disable=not training.run.log.progress,
        mininterval=0.1 if sys.stderr.isatty() else 10,
    )
    with bar, _sigterm() as told_to_stop:
        while not (row := algorithm.train())["done"]:
            bar.set_postfix_str(
                f"reward {row['reward']:.2f}, EM {row['em']:.2f}, retrievals {row['retrievals_per_question']:.2f}, "
                f"{row['generated_tokens'] / row['seconds_rollout']:.0f} tokens/s, canary {row['push/canary_gap']:.0e}"
            )
            bar.update(training.steps_done - bar.n)  # backwards where a learner was lost
            if told_to_stop.is_set():
                training.save(wait=True)
                return False
    return True


@contextmanager
def _sigterm() -> Iterator[threading.Event]:
    """Set when SIGTERM comes: from `ray job stop`, Kubernetes, Slurm. Ray's own handler would exit at once."""
    told = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: told.set())
    try:
        yield told
    finally:
        signal.signal(signal.SIGTERM, before)
