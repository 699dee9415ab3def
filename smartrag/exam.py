"""The policy as it is, asked: on test questions, on dev questions, closed-book, and to practise for warm-up.

Every question goes through the same rollout as in training.
"""

import logging
from collections.abc import Sequence
from typing import Any

from smartrag.config import Run
from smartrag.data.load import Dataset
from smartrag.evaluation import evaluate
from smartrag.log import RunFolder
from smartrag.types import Episode, EpisodeRequest, Gate, Question, Rollout
from smartrag.warmup import practice

logger = logging.getLogger("smartrag")


class Exam:
    """Asks and files what came of it. `step` names when: it makes the episodes' ids."""

    def __init__(self, run: Run, data: Dataset, rollout: Rollout, folder: RunFolder):
        self.run, self.data, self.rollout, self.folder = run, data, rollout, folder

    def test(self, name: str, step: int, gate: Gate) -> dict[str, Any]:
        """Every test question once, greedily; also files them as evaluation-<name>.jsonl. Returns the summary."""
        episodes = self._ask(self.data.test, name, step, gate)
        reward = self.run.reward
        columns = evaluate.table(episodes, reward)
        self.folder.write_evaluation(name, [evaluate.describe(e, reward) for e in episodes])
        logger.info("%s: %s", name, evaluate.line(columns))
        return {
            **evaluate.summary(columns, self.run.seed),
            "retrieval_rate_by_popularity_fifth": evaluate.retrieval_by_popularity(episodes),
            "by_hops": evaluate.by_group(columns, evaluate.labels(self.data.test, "hops")),
            "by_dataset": evaluate.by_group(columns, evaluate.labels(self.data.test, "dataset")),
        }

    def dev(self, step: int) -> dict[str, float]:
        """Means over the dev questions, for a row of metrics."""
        scores = self.means(self._ask(self.data.dev, "dev", step, Gate.POLICY))
        return {f"dev/{name}": x for name, x in scores.items()}

    def means(self, episodes: Sequence[Episode], requests: Sequence[EpisodeRequest] = ()) -> dict[str, float]:
        """Means over all episodes; by data set and by quota (of `requests`) where there are several."""
        columns = evaluate.table(episodes, self.run.reward)
        found = evaluate.means(columns)
        if len(self.run.data.mix) > 1:
            found |= _flat(columns, evaluate.labels([e.question for e in episodes], "dataset"))
        if requests and len(set(self.run.train.quotas)) > 1:
            found |= _flat(columns, [f"quota_{request.quota}" for request in requests])
        return found

    def closed_book(self, questions: Sequence[Question]) -> dict[str, str]:
        """By question id, what the policy answers without retrieving; nothing where it gives no answer."""
        episodes = self._ask(questions, "closed-book", 0, Gate.NEVER)
        right = sum(evaluate.measure(e, self.run.reward)["em"] for e in episodes)
        logger.info("closed-book, the policy answers %.0f of %d warm-up questions right", right, len(episodes))
        return {e.question.id: e.answer for e in episodes if e.answer is not None}

    def practise(self, questions: Sequence[Question]) -> tuple[list[Episode], list[Episode]]:
        """(closed-book, searched): sampled episodes on warm-up questions, for `warmup.mined`."""
        run = self.run
        requests = practice(questions, run.warmup, quotas=run.training_quotas, k=run.retriever.k, seed=run.seed)
        pairs = list(zip(requests, evaluate.run_all(self.rollout, requests), strict=True))
        closed_book, searched = ([e for r, e in pairs if r.gate is gate] for gate in (Gate.NEVER, Gate.ALWAYS))
        return closed_book, searched

    def _ask(self, questions: Sequence[Question], phase: str, step: int, gate: Gate) -> list[Episode]:
        return evaluate.run_all(self.rollout, evaluate.requests(questions, self.run, f"{phase}/{step}", gate))


def _flat(columns: evaluate.Columns, labels: Sequence[str | None]) -> dict[str, float]:
    """`<group>/reward`, `<group>/em` and `<group>/retrievals_per_question`, for a row of metrics."""
    groups = evaluate.by_group(columns, labels)
    kept = ("reward", "em", "retrievals_per_question")
    return {f"{group}/{name}": figures[name] for group, figures in groups.items() for name in kept}
