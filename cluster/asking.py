"""`ask`: single questions, each an episode to read."""

from collections.abc import Sequence

from cluster.system import Inputs, System
from cluster.trained import Trained, serve
from smartrag.episode import episode_id
from smartrag.evaluation import evaluate
from smartrag.report import terminal
from smartrag.types import EpisodeRequest, Question


def ask(path: str, questions: Sequence[str]) -> int:
    """Prints one greedy episode a question, with the newest weights of the run; returns the exit code."""

    def use(trained: Trained, found: Inputs, system: System) -> None:
        run = trained.run
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
        print("\n\n".join(terminal.conversation(episode) for episode in evaluate.run_all(system.rollout, requests)))

    return serve(path, (), use)
