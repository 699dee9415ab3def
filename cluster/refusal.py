"""What people see on the terminal of whatever starts machines: its log, and what it was refused or given up for."""

import logging
import sys

from cluster.checkpoint import Damaged
from cluster.dispatch import RolloutFailed
from cluster.learner import LearnerLost
from cluster.mirror import MirrorFailed
from cluster.placement import DoesNotFit
from cluster.retrieval import RetrievalUnavailable
from cluster.system import BadInput
from cluster.weights import CanaryFailed, PushFailed
from smartrag.compose import ConfigError, Unreadable
from smartrag.exits import (
    BAD_INPUT,
    DIVERGED,
    DOES_NOT_FIT,
    LOCKED,
    MACHINES_FAILED,
    NO_JUDGE,
    NOTHING_TO_RESUME,
    USAGE_ERROR,
)
from smartrag.judge import JudgeUnavailable
from smartrag.lease import Locked
from smartrag.own_reward import RewardFailed
from smartrag.train import Diverged
from smartrag.types import PoisonQuestion

logger = logging.getLogger("smartrag")

_CODES: dict[type[Exception], int] = {
    ConfigError: USAGE_ERROR,
    **dict.fromkeys((BadInput, Damaged, Unreadable, PoisonQuestion, RewardFailed), BAD_INPUT),
    DoesNotFit: DOES_NOT_FIT,
    FileNotFoundError: NOTHING_TO_RESUME,
    JudgeUnavailable: NO_JUDGE,
    Diverged: DIVERGED,
    Locked: LOCKED,
    **dict.fromkeys((LearnerLost, RolloutFailed, RetrievalUnavailable, PushFailed, CanaryFailed), MACHINES_FAILED),
    MirrorFailed: MACHINES_FAILED,
}
REFUSALS: tuple[type[Exception], ...] = tuple(_CODES)


def show_log() -> None:
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logger.setLevel(logging.INFO)
    for chatty in ("ray.rllib", "ray.tune"):  # advice on settings that are not ours
        logging.getLogger(chatty).setLevel(logging.ERROR)


def refused(error: Exception) -> int:
    """Says what a run was refused or given up for; returns the exit code."""
    print(error, file=sys.stderr)
    return next(code for kind, code in _CODES.items() if isinstance(error, kind))
