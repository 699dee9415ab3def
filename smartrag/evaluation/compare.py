"""Systems compared on the same questions through the same weights: the policy, fixed gates, thresholds, oracles.

policy      decides itself                    question    searches for the question as it stands, then goes on itself
never       answers closed-book               gold_first  the policy, with a retriever that is told the answers
always      must search first                 oracle      of never and always the one that earns more
"""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from smartrag import arguments as words
from smartrag import compose
from smartrag.arguments import refuse
from smartrag.commands import Evaluation
from smartrag.config import Run
from smartrag.data.load import Dataset
from smartrag.episode import episode_id
from smartrag.evaluation import decision, evaluate, gates
from smartrag.evaluation.evaluate import Columns
from smartrag.evaluation.gates import Asked, Labelled
from smartrag.prompt import Prompt
from smartrag.types import Episode, EpisodeRequest, Gate, Question, Rollout

logger = logging.getLogger("smartrag")

GROUPS = ("dataset", "hops", "type", "popularity")
_FIXED = {"policy": Gate.POLICY, "never": Gate.NEVER, "always": Gate.ALWAYS, "question": Gate.QUESTION}


@dataclass(frozen=True, slots=True)
class Comparison:
    """What came of it: the figures of evaluation.json, and a row for each system and question."""

    figures: dict[str, Any]
    rows: list[dict[str, Any]]


def settings(arguments: Sequence[str]) -> tuple[Evaluation, list[str]]:
    """(settings, overrides of the run) of a command line of launch/evaluate.py. Raises ConfigError."""
    chosen, overrides = compose.beside(Evaluation, "evaluate.yaml", arguments)
    known = [field.name for field in fields(Evaluation)]
    problems = [] if chosen.run else ["run=... must be given: the folder of a run, or a model"]
    if Path(chosen.out).name != chosen.out:
        problems.append(f"out must be a name without slashes, got {chosen.out!r}")
    problems += [
        f"{name} must be at least 1, got {value}"
        for name, value in (("samples", chosen.samples), ("labelled", chosen.labelled))
        if value < 1
    ]
    problems += words.problems(overrides, known).values()
    refuse(problems)
    return chosen, overrides


def compare(run: Run, data: Dataset, prompt: Prompt, rollout: Rollout, effort: Evaluation) -> Comparison:
    """Asks everything and puts it together."""
    asker, seconds = _Asker(run, rollout), {}
    began = time.monotonic()
    episodes = {name: asker.ask(data.test, name, "test", gate) for name, gate in _FIXED.items()}
    episodes["gold_first"] = asker.ask(data.test, "gold_first", "test", Gate.POLICY, gold_first=True)
    seconds["test"] = time.monotonic() - began
    systems = {name: evaluate.table(found, run.reward) for name, found in episodes.items()}
    best = gates.oracle(systems["never"], systems["always"])
    systems["oracle"] = gates.decided(systems["never"], systems["always"], best, "oracle", 0)
    figures: dict[str, Any] = {
        "questions": len(data.test),
        "systems": {name: _figures(columns, data.test, run.seed) for name, columns in systems.items()},
        "differences": {
            f"policy_minus_{name}": evaluate.differences(systems["policy"], columns, run.seed)
            for name, columns in systems.items()
            if name != "policy"
        },
        "decision": decision.report(systems, run.reward, run.seed),
    }
    if effort.gates:
        began = time.monotonic()
        figures["gates"] = _gates(run, data, prompt, asker, effort, episodes, systems)
        seconds["gates"] = time.monotonic() - began
    rows = [row for name, found in episodes.items() for row in _rows(name, found, systems[name])]
    return Comparison(figures | {"seconds": seconds}, rows)


def _gates(
    run: Run,
    data: Dataset,
    prompt: Prompt,
    asker: "_Asker",
    effort: Evaluation,
    episodes: Mapping[str, Sequence[Episode]],
    systems: Mapping[str, Columns],
) -> dict[str, Any]:
    """Every threshold gate on the test questions, its θ tuned on the dev questions."""
    dev = {name: asker.ask(data.dev, name, "dev", _FIXED[name]) for name in ("never", "always", "policy")}
    known = data.train[: effort.labelled]
    wrong = np.array(
        [evaluate.measure(e, run.reward)["em"] == 0 for e in asker.ask(known, "never", "train", Gate.NEVER)]
    )
    labelled = Labelled([q.text for q in known], wrong)
    scores, dev_scores = (
        gates.scores(
            Asked(some["never"], some["always"], some["policy"], asker.sample(questions, part, effort.samples)),
            labelled,
            prompt,
        )
        for some, questions, part in ((episodes, data.test, "test"), (dev, data.dev, "dev"))
    )
    columns = {name: evaluate.table(found, run.reward) for name, found in dev.items()}
    return {
        name: gates.judged(name, scores[name], dev_scores[name], systems, columns, draws=effort.samples, seed=run.seed)
        for name in scores
        if name in dev_scores
    }


class _Asker:
    """Puts questions to the weights as they are. `part` names the questions: it makes the episodes' ids."""

    def __init__(self, run: Run, rollout: Rollout):
        self.run, self.rollout = run, rollout

    def ask(
        self, questions: Sequence[Question], system: str, part: str, gate: Gate, *, gold_first: bool = False
    ) -> list[Episode]:
        """One greedy episode of each question, in their order."""
        wanted = evaluate.requests(questions, self.run, part, gate, gold_first=gold_first)
        episodes = evaluate.run_all(self.rollout, wanted)
        logger.info("%s, %s: %s", part, system, evaluate.line(evaluate.table(episodes, self.run.reward)))
        return episodes

    def sample(self, questions: Sequence[Question], part: str, draws: int) -> list[list[Episode]]:
        """[S][n] closed-book episodes at the run's temperature."""
        n, quota, k = len(questions), self.run.algorithm.quota, self.run.retriever.k
        wanted = [
            EpisodeRequest(episode_id(self.run.seed, f"{part}/samples", draw, i), q, quota, k, Gate.NEVER)
            for draw in range(draws)
            for i, q in enumerate(questions)
        ]
        episodes = evaluate.run_all(self.rollout, wanted)
        return [episodes[start : start + n] for start in range(0, len(episodes), n)]


def _figures(columns: Columns, questions: Sequence[Question], seed: int) -> dict[str, Any]:
    by = {name: evaluate.by_group(columns, evaluate.labels(questions, name)) for name in GROUPS}
    return {**evaluate.summary(columns, seed), "by": {name: groups for name, groups in by.items() if groups}}


def _rows(system: str, episodes: Sequence[Episode], columns: Columns) -> list[dict[str, Any]]:
    """One flat row a question, for questions.parquet."""
    questions = [episode.question for episode in episodes]
    groups = {name: evaluate.labels(questions, name) for name in GROUPS}
    return [
        {
            "system": system,
            "question_id": episode.question.id,
            "question": episode.question.text,
            "gold": list(episode.question.answers),
            "answer": episode.answer,
            "queries": [turn.action.text for turn in episode.turns if turn.retrieved is not None],
            **{name: labels[i] for name, labels in groups.items()},
            **{name: float(values[i]) for name, values in columns.items()},
        }
        for i, episode in enumerate(episodes)
    ]
