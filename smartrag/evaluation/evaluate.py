"""What a set of finished episodes says: measures with 95 % bootstrap intervals, paired differences, means by group.

Training curves, evaluation before and after, fixed gates and thresholds are all summarised here, from episodes alone.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import bootstrap

from smartrag.config import Reward, Run
from smartrag.episode import episode_id
from smartrag.reward import episode_reward
from smartrag.score import contains, exact_match, f1
from smartrag.types import End, Episode, EpisodeRequest, Gate, Hits, Question, Rollout, Turn

# What every step of training shows ...
MEASURES = ("reward", "em", "f1", "retrievals_per_question", "hit_rate", "format_error_rate", "truncation_rate")
# ... and what an evaluation tells besides: the answer contains a gold answer, and what a question costs.
COSTS = ("accuracy", "model_calls", "prompt_tokens", "generated_tokens", "latency_s")
FIFTHS = ("1 (least)", "2", "3", "4", "5 (most)")
_RESAMPLES = 2000

Columns = dict[str, np.ndarray]  # measure -> [n] values, one a question; nan where it is not defined


def requests(
    questions: Sequence[Question], run: Run, phase: str, gate: Gate, *, gold_first: bool = False
) -> list[EpisodeRequest]:
    """One greedy episode a question."""
    name = f"{phase}/{gate}/gold-first" if gold_first else f"{phase}/{gate}"
    seed, quota, k = run.seed, run.algorithm.quota, run.retriever.k
    return [
        EpisodeRequest(episode_id(seed, name, 0, i), q, quota, k, gate, greedy=True, gold_first=gold_first)
        for i, q in enumerate(questions)
    ]


def run_all(rollout: Rollout, wanted: Sequence[EpisodeRequest]) -> list[Episode]:
    """The episodes in the order of their requests, whatever order they finished in."""
    done: dict[str, Episode] = {}
    for episode in rollout(wanted):
        if episode is None:
            continue
        assert episode.id not in done, f"episode {episode.id} came twice"
        done[episode.id] = episode
    return [done[request.id] for request in wanted]


def hit(episode: Episode) -> bool:
    """Whether a retrieved passage holds a gold answer."""
    observed = (turn.retrieved for turn in episode.turns)
    gold = episode.question.answers
    return any(isinstance(o, Hits) and any(contains(p.contents, gold) for p in o.passages) for o in observed)


def measure(episode: Episode, reward: Reward) -> dict[str, float]:
    """The numbers of one episode, keyed as MEASURES and COSTS. `hit_rate` is nan when nothing was retrieved."""
    answer, gold = episode.answer, episode.question.answers
    read, written = tokens(episode.turns)
    return {
        "reward": episode_reward(episode, reward),
        "em": 0.0 if answer is None else exact_match(answer, gold),
        "f1": 0.0 if answer is None else f1(answer, gold),
        "retrievals_per_question": float(episode.retrievals),
        "hit_rate": float(hit(episode)) if episode.retrievals else float("nan"),
        "format_error_rate": float(episode.end is End.FORMAT_ERROR),
        "truncation_rate": float(episode.end is End.TRUNCATED),
        "accuracy": float(answer is not None and contains(answer, gold)),
        "model_calls": float(sum(len(turn.completion.token_ids) > 0 for turn in episode.turns)),
        "prompt_tokens": float(read),
        "generated_tokens": float(written),
        "latency_s": sum(turn.generation_s + turn.retrieval_s for turn in episode.turns),
    }


def tokens(turns: Sequence[Turn]) -> tuple[int, int]:
    """(read, written): tokens that each call of the model reads, its own earlier turns again, which is what an endpoint
    bills; and those that it writes."""
    context, read, written = 0, 0, 0
    for turn in turns:
        context += len(turn.context_ids)
        if new := len(turn.completion.token_ids):  # else the environment wrote this turn
            read, written, context = read + context, written + new, context + new
    return read, written


def table(episodes: Sequence[Episode], reward: Reward) -> Columns:
    """The measures of each episode, in their order."""
    rows = [measure(episode, reward) for episode in episodes]
    return {name: np.array([row[name] for row in rows]) for name in (*MEASURES, *COSTS)}


def means(columns: Mapping[str, np.ndarray], names: Sequence[str] = MEASURES) -> dict[str, float]:
    """Mean of each measure over the episodes it is defined for; left out where it is defined for none."""
    return {name: float(np.nanmean(columns[name])) for name in names if not np.isnan(columns[name]).all()}


def summary(columns: Mapping[str, np.ndarray], seed: int) -> dict[str, Any]:
    """`n` and, for each measure, its mean with the 95 % percentile bootstrap interval over questions.

    `hit_rate` is over the questions that retrieved; null when none did.
    """
    out: dict[str, Any] = {"n": len(columns["reward"])}
    for name, values in columns.items():
        out[name] = interval(values[~np.isnan(values)], seed)
    return out


def differences(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray], seed: int) -> dict[str, Any]:
    """For each measure the mean of ours minus theirs on the same questions with its interval (a paired bootstrap).

    Over the questions where both define it; null where there is none.
    """
    found = {}
    for name, values in ours.items():
        gaps = values - theirs[name]
        found[name] = interval(gaps[~np.isnan(gaps)], seed)
    return found


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


def pooled(columns: Sequence[np.ndarray]) -> dict[str, float] | None:
    """Mean over seeds of each question ([n] values a seed), then its interval over questions: the seeds are these, the
    questions a sample. None without a seed."""
    return interval(np.mean(columns, axis=0), seed=0) if columns else None


def line(columns: Mapping[str, np.ndarray]) -> str:
    """The means in one line, for the terminal."""
    return "  ".join(f"{name} {x:.3f}" for name, x in means(columns).items())


def by_group(columns: Mapping[str, np.ndarray], labels: Sequence[str | None]) -> dict[str, dict[str, float]]:
    """`n` and the means of each group; `labels` names each episode's own, None leaves it out."""
    names = np.array([label or "" for label in labels])
    found = {}
    for name in sorted(set(names) - {""}):
        members = {measure: values[names == name] for measure, values in columns.items()}
        found[str(name)] = {"n": float(len(members["reward"])), **means(members, tuple(members))}
    return found


def labels(questions: Sequence[Question], name: str) -> list[str | None]:
    """What the data set knows of each question: `dataset`, `hops`, `type`, or its fifth of `popularity`.

    Fifths are of the questions whose popularity is known, equal ones in the questions' order; with fewer than 5 none.
    """
    if name != "popularity":
        return [str(q.meta[name]) if name in q.meta else None for q in questions]
    known = [(x, i) for i, q in enumerate(questions) if (x := popularity(q)) is not None]
    found: list[str | None] = [None] * len(questions)
    if len(known) < len(FIFTHS):
        return found
    order = [i for _, i in sorted(known, key=lambda pair: pair[0])]
    for fifth, members in zip(FIFTHS, np.array_split(np.array(order), len(FIFTHS)), strict=True):
        for i in members:
            found[int(i)] = fifth
    return found


def popularity(question: Question) -> float | None:
    """How much has been written about the question's subject (population, page views), where the data set knows it."""
    known = question.meta.get("popularity", question.meta.get("subject_popularity"))
    return None if known is None else float(known)


def retrieval_by_popularity(episodes: Sequence[Episode]) -> list[float] | None:
    """Share of questions that retrieved, by fifth of the subject's popularity, least popular first.

    None when the data set does not know popularity or there are fewer than 5 questions.
    """
    fifths = np.array(labels([e.question for e in episodes], "popularity"))
    if not any(fifths):
        return None
    searched = np.array([e.retrievals > 0 for e in episodes])
    return [float(searched[fifths == fifth].mean()) for fifth in FIFTHS]


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
