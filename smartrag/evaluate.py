"""What a set of finished episodes says: means with 95 % bootstrap intervals, paired differences, rates by popularity.

Training curves, evaluation before and after, and the fixed gates are all summarised here from the same episodes.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import bootstrap

from smartrag.config import Reward
from smartrag.episode import episode_id
from smartrag.reward import episode_reward
from smartrag.score import contains, exact_match, f1
from smartrag.types import End, Episode, EpisodeRequest, Gate, Hits, Question, Rollout

MEASURES = ("reward", "em", "f1", "retrievals_per_question", "hit_rate", "format_error_rate", "truncation_rate")
_RESAMPLES = 2000


def requests(
    questions: Sequence[Question], *, seed: int, phase: str, quota: int, k: int, gate: Gate = Gate.POLICY
) -> list[EpisodeRequest]:
    """One greedy episode a question."""
    return [
        EpisodeRequest(episode_id(seed, f"{phase}/{gate}", 0, i), q, quota, k, gate, greedy=True)
        for i, q in enumerate(questions)
    ]


def run_all(rollout: Rollout, wanted: Sequence[EpisodeRequest]) -> list[Episode]:
    """The episodes in the order of their requests, whatever order they finished in."""
    done = {episode.id: episode for episode in rollout(wanted)}
    return [done[request.id] for request in wanted]


def measure(episode: Episode, reward: Reward) -> dict[str, float]:
    """The numbers of one episode, keyed as MEASURES. `hit_rate` is nan when nothing was retrieved."""
    answer, gold = episode.answer, episode.question.answers
    observed = [turn.retrieved for turn in episode.turns if turn.retrieved is not None]
    hit = any(isinstance(o, Hits) and any(contains(p.contents, gold) for p in o.passages) for o in observed)
    return {
        "reward": episode_reward(episode, reward),
        "em": 0.0 if answer is None else exact_match(answer, gold),
        "f1": 0.0 if answer is None else f1(answer, gold),
        "retrievals_per_question": float(episode.retrievals),
        "hit_rate": float(hit) if observed else float("nan"),
        "format_error_rate": float(episode.end is End.FORMAT_ERROR),
        "truncation_rate": float(episode.end is End.TRUNCATED),
    }


def table(episodes: Sequence[Episode], reward: Reward) -> dict[str, np.ndarray]:
    """MEASURES -> [n] values, one an episode."""
    rows = [measure(episode, reward) for episode in episodes]
    return {name: np.array([row[name] for row in rows]) for name in MEASURES}


def means(columns: dict[str, np.ndarray]) -> dict[str, float]:
    """Mean of each measure over the episodes it is defined for; left out where it is defined for none."""
    return {name: float(np.nanmean(x)) for name, x in columns.items() if not np.isnan(x).all()}


def summary(columns: dict[str, np.ndarray], seed: int) -> dict[str, Any]:
    """`n` and, for each measure, its mean with the 95 % percentile bootstrap interval over questions.

    `hit_rate` is over the questions that retrieved; null when none did.
    """
    out: dict[str, Any] = {"n": len(columns["reward"])}
    for name, values in columns.items():
        out[name] = interval(values[~np.isnan(values)], seed)
    return out


def interval(values: np.ndarray, seed: int) -> dict[str, float] | None:
    """Mean of [n] values and its 95 % percentile bootstrap interval (Efron 1979); None of nothing."""
    if len(values) == 0:
        return None
    mean = float(values.mean())
    if len(values) == 1 or values.std() == 0:
        return {"mean": mean, "low": mean, "high": mean}
    rng = np.random.default_rng(seed)
    found = bootstrap(
        (values,), np.mean, n_resamples=_RESAMPLES, batch=100, method="percentile", rng=rng
    ).confidence_interval
    return {"mean": mean, "low": float(found.low), "high": float(found.high)}


def line(columns: dict[str, np.ndarray]) -> str:
    """The means in one line, for the terminal."""
    found = means(columns)
    return "  ".join(f"{name} {found[name]:.3f}" for name in MEASURES if name in found)


def retrieval_by_popularity(episodes: Sequence[Episode]) -> list[float] | None:
    """Share of questions that retrieved, by fifth of the subject's popularity, least popular first.

    None when the data set does not know popularity or there are fewer than 5 questions.
    """
    known = [(float(e.question.meta["popularity"]), e) for e in episodes if "popularity" in e.question.meta]
    if len(known) < 5:
        return None
    known.sort(key=lambda pair: pair[0])
    fifths = np.array_split(np.array([float(e.retrievals > 0) for _, e in known]), 5)
    return [float(fifth.mean()) for fifth in fifths]


def by_meta(episodes: Sequence[Episode], reward: Reward, name: str) -> dict[str, dict[str, float]]:
    """Means by what the data set knows of a question (`hops`, `dataset`), where it knows it."""
    groups: dict[str, list[Episode]] = {}
    for episode in episodes:
        if name in episode.question.meta:
            groups.setdefault(str(episode.question.meta[name]), []).append(episode)
    return {value: {"n": len(es), **means(table(es, reward))} for value, es in sorted(groups.items())}


def by_group(episodes: Sequence[Episode], groups: Sequence[str], reward: Reward) -> dict[str, float]:
    """`<group>/reward`, `<group>/em`, `<group>/retrievals_per_question`; `groups` names each episode's own."""
    found: dict[str, float] = {}
    for group in sorted(set(groups)):
        members = [episode for episode, own in zip(episodes, groups, strict=True) if own == group]
        columns = means(table(members, reward))
        found |= {f"{group}/{name}": columns[name] for name in ("reward", "em", "retrievals_per_question")}
    return found


def describe(episode: Episode, reward: Reward) -> dict[str, Any]:
    """An episode as JSON, for people to read."""
    turns: list[dict[str, Any]] = []
    for turn in episode.turns:
        row: dict[str, Any] = {"action": str(turn.action.kind), "text": turn.action.text, "forced": turn.forced}
        if turn.retrieved is not None:
            row["passages"] = [p.contents for p in getattr(turn.retrieved, "passages", ())]
        turns.append(row)
    question = episode.question
    return {
        "id": episode.id,
        "question_id": question.id,
        "question": question.text,
        "gold": list(question.answers),
        "turns": turns,
        "end": str(episode.end),
        **{name: value for name, value in measure(episode, reward).items() if value == value},
    }
