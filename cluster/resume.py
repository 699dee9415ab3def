"""A run to go on with: found, and held against what is asked for, before anything is started."""

import json
import logging
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from cluster.checkpoint import Checkpoints, Damaged
from cluster.mirror import fetch
from cluster.objects import Objects
from smartrag.choices import Critic
from smartrag.config import Run
from smartrag.files import is_uri
from smartrag.log import RunFolder, run_and_checkpoint

logger = logging.getLogger("smartrag")

STATE = "learner.json"  # what a learner says of itself, in its part of a checkpoint


def at_hand(run: Run) -> Run:
    """`run`, with a run to resume that is on this machine, or none: what a URI names is fetched into `run.runs`.

    `auto` is the newest run of the name that has a checkpoint here, else that of its copies, else a new one. Raises as
    `mirror.fetch` does.
    """
    if run.resume == "auto":
        return _newest(run)
    if run.resume is None or not is_uri(run.resume):
        return run
    return replace(run, resume=str(fetch(run.resume, Path(run.runs).resolve())))


def _newest(run: Run) -> Run:
    here = Path(run.runs).resolve() / run.name / "latest"
    if Checkpoints(here / "checkpoints", run.train.keep).latest(hashed=False) is not None:
        return replace(run, resume=str(here))
    if run.train.mirror is not None:
        with suppress(FileNotFoundError):
            return at_hand(replace(run, resume=(Objects.at(run.train.mirror) / run.name / "latest").uri))
    logger.info("resume=auto: neither %s nor train.mirror=%s has a checkpoint; a new run", here, run.train.mirror)
    return replace(run, resume=None)


def find(run: Run) -> RunFolder:
    """The folder that `run.resume` means, with a checkpoint from which `run` can go on.

    Of the checkpoint's files names and sizes are compared; `Training.resume` hashes them before it reads them. Raises
    FileNotFoundError when there is nothing to resume, ValueError (Damaged where a file is not what was written) when
    it is of no use to this run.
    """
    assert run.resume is not None
    folder = RunFolder.find(run.runs, run.name, run.resume)
    checkpoint, _ = Checkpoints(folder.checkpoints, run.train.keep).load(named(run), hashed=False)
    check_learner(checkpoint / "learner", run)
    _check_splits(folder.folder / "splits.json")
    return folder


def named(run: Run) -> Path | None:
    """The checkpoint that `run.resume` names; None: the newest is meant."""
    return None if run.resume in (None, "latest") else run_and_checkpoint(Path(str(run.resume)))[1]


def shape(run: Run) -> dict[str, Any]:
    """The settings without which a learner's part of a checkpoint cannot be read."""
    lora = run.model.lora
    return {
        "learner.ranks": run.learner.ranks,
        "learner.zero_stage": run.learner.zero_stage,
        "model.lora": None if lora is None else asdict(lora),
        "algorithm.critic": run.algorithm.critic.value,
    }


def check_learner(folder: Path, run: Run) -> dict[str, Any]:
    """What the learner that wrote `folder` says of itself. Raises ValueError when it was of another kind, Damaged."""
    if not (folder / STATE).is_file():
        raise Damaged(f"{folder} is no learner's part of a checkpoint: it has no {STATE}")
    try:
        state = json.loads((folder / STATE).read_text(encoding="utf-8"))
        theirs = {name: state[name] for name in shape(run)}
    except (ValueError, KeyError, TypeError) as error:
        raise Damaged(f"{folder / STATE} cannot be read ({error})") from error
    if theirs != shape(run):
        wanted = " ".join(f"{name}={json.dumps(value)}".replace('"', "") for name, value in theirs.items())
        raise ValueError(f"{folder} was written with {wanted}; no other learner can resume it; set these")
    separate = run.algorithm.critic is Critic.separate and run.algorithm.advantage.has_critic
    if separate and not (folder / "critic").is_dir():
        raise ValueError(f"{folder} holds no critic, which algorithm.advantage={run.algorithm.advantage} needs")
    return state


def _check_splits(path: Path) -> None:
    so = "so the questions of the run are not known"
    if not path.is_file():
        raise Damaged(f"{path} is missing, {so}")
    try:
        json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise Damaged(f"{path} cannot be read ({error}), {so}") from error
