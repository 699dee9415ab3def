"""What people see on the terminal of whatever starts machines: its log, and what it was refused for."""

import logging
import sys

from cluster.checkpoint import Damaged
from cluster.placement import DoesNotFit
from cluster.system import BadInput
from smartrag.compose import ConfigError, Unreadable
from smartrag.exits import BAD_INPUT, DOES_NOT_FIT, NO_JUDGE, NOTHING_TO_RESUME, USAGE_ERROR
from smartrag.judge import JudgeUnavailable

logger = logging.getLogger("smartrag")

REFUSALS = (BadInput, Damaged, DoesNotFit, FileNotFoundError, JudgeUnavailable, Unreadable)


def show_log() -> None:
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logger.setLevel(logging.INFO)
    for chatty in ("ray.rllib", "ray.tune"):  # advice on settings that are not ours
        logging.getLogger(chatty).setLevel(logging.ERROR)


def refused(error: Exception) -> int:
    """Says what a run was refused for; returns the exit code."""
    print(error, file=sys.stderr)
    codes = {
        ConfigError: USAGE_ERROR,
        BadInput: BAD_INPUT,
        Damaged: BAD_INPUT,
        Unreadable: BAD_INPUT,
        DoesNotFit: DOES_NOT_FIT,
        JudgeUnavailable: NO_JUDGE,
    }
    return codes.get(type(error), NOTHING_TO_RESUME)
