"""A trained run answers questions, through the same episodes as in training."""

import sys
from collections.abc import Sequence
from pathlib import Path

from cluster.checkpoint import Checkpoints
from cluster.driver import BAD_INPUT, NOTHING_TO_RESUME
from cluster.system import BadInput, System, inputs
from smartrag import evaluate, report
from smartrag.compose import from_yaml
from smartrag.episode import episode_id
from smartrag.log import run_and_checkpoint
from smartrag.types import EpisodeRequest, Question


def ask(folder: Path, questions: Sequence[str]) -> int:
    """Prints one greedy episode a question, with the newest weights of the run; returns the exit code."""
    home, named = run_and_checkpoint(folder)
    try:
        run = from_yaml(home / "config.yaml")
        checkpoint, _ = Checkpoints(home / "checkpoints", run.train.keep).load(named)
        found = inputs(run, model=checkpoint / "policy")
    except FileNotFoundError as error:
        print(f"{folder} is not the folder of a run: {error}", file=sys.stderr)
        return NOTHING_TO_RESUME
    except BadInput as error:
        print(error, file=sys.stderr)
        return BAD_INPUT
    system = System(run, found, learn=False).start()
    try:
        requests = [
            EpisodeRequest(
                episode_id(run.seed, "ask", 0, i),
                Question(f"ask-{i}", text, ()),
                run.algorithm.quota,
                run.retriever.k,
                greedy=True,
            )
            for i, text in enumerate(questions)
        ]
        print("\n\n".join(report.conversation(episode) for episode in evaluate.run_all(system.rollout, requests)))
    finally:
        system.close()
    return 0
