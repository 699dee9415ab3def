"""When to retrieve: baselines that go by a threshold on a score, to stand beside the learned policy.

    retrieve  ⟺  score > θ

All ask the same weights with the same quota, k and prompt. A gate only decides which of two greedy episodes counts for
a question: `never` (closed-book) or `always` (the first search forced). So one run of each tells every threshold of
every gate, and nothing but the decision differs between them.

    entropy       mean entropy of the closed-book answer's tokens
    margin        minus the mean margin between its best and second-best tokens   (TARG: margin and entropy of a draft)
    flare         1 − its least likely token's probability                        (FLARE, arXiv 2305.06983)
    consistency   entropy of sampled closed-book answers                          (Kuhn et al. 2023, arXiv 2302.09664)
    self_report   probability the policy itself gives to the search tag first     (Self-RAG, arXiv 2310.11511)
    popularity    minus the popularity of the subject                             (Mallen et al. 2023, arXiv 2212.10511)
    skr           share of unknown ones among the most similar train questions    (SKR-kNN, arXiv 2310.05002)
    adaptive_rag  probability of "unknown" by a classifier of the question        (Adaptive-RAG, arXiv 2403.14403)

The last two differ from their papers in the features: character n-grams, where those had a sentence encoder and T5.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from smartrag.evaluation.evaluate import Columns, differences, means, popularity, summary
from smartrag.evaluation.uncertainty import answer_entropy, search_probability
from smartrag.prompt import Prompt
from smartrag.types import Episode

NEIGHBOURS = 16
POINTS = 101  # of a curve, at most
_COSTS = ("model_calls", "prompt_tokens", "generated_tokens", "latency_s")
_SHOWN = ("retrievals_per_question", "model_calls", "em", "f1", "reward")  # of each point of a curve
DRAFTED = ("entropy", "margin", "flare", "consistency")  # these need the closed-book answer before they can decide


@dataclass(frozen=True, slots=True)
class Asked:
    """The same n questions put to the same weights, in the same order; all but `samples` greedily."""

    never: Sequence[Episode]  # [n]
    always: Sequence[Episode]  # [n]
    policy: Sequence[Episode]  # [n]
    samples: Sequence[Sequence[Episode]]  # [S][n] closed-book, sampled


@dataclass(frozen=True, slots=True)
class Labelled:
    """Train questions, and whether the policy's closed-book answer was wrong."""

    texts: Sequence[str]  # [m]
    unknown: np.ndarray  # [m] bool


def scores(asked: Asked, labelled: Labelled, prompt: Prompt) -> dict[str, np.ndarray]:
    """Gate -> [n] scores, higher for questions in more need of retrieval. A gate that lacks what it needs is left out:
    popularity where the data does not know it, the trained ones where the labels are all the same."""
    drafts = [episode.turns[-1].completion for episode in asked.never]
    found = {
        "entropy": np.array([np.mean(c.entropies) for c in drafts]),
        "margin": np.array([-np.mean(c.margins) for c in drafts]),
        "flare": np.array([1 - math.exp(min(c.logprobs)) for c in drafts]),
        "self_report": np.array([search_probability(e.turns[0], prompt) for e in asked.policy]),
    }
    if asked.samples:
        found["consistency"] = np.array([answer_entropy(of_one) for of_one in zip(*asked.samples, strict=True)])
    questions = [episode.question for episode in asked.never]
    known = [popularity(q) for q in questions]
    if all(x is not None for x in known):
        found["popularity"] = -np.array(known, dtype=float)
    if 0 < labelled.unknown.sum() < len(labelled.unknown):
        texts = [q.text for q in questions]
        found["skr"], found["adaptive_rag"] = neighbours(labelled, texts), classifier(labelled, texts)
    return found


def neighbours(labelled: Labelled, texts: Sequence[str]) -> np.ndarray:
    """[n] share of unknown ones among the NEIGHBOURS labelled questions of the highest cosine similarity."""
    from sklearn.neighbors import NearestNeighbors

    known, asked = _features(labelled.texts, texts)
    count = min(NEIGHBOURS, len(labelled.texts))
    found = NearestNeighbors(n_neighbors=count, metric="cosine").fit(known).kneighbors(asked, return_distance=False)
    return np.asarray(labelled.unknown[found].mean(axis=1))


def classifier(labelled: Labelled, texts: Sequence[str]) -> np.ndarray:
    """[n] probability of "unknown" by logistic regression."""
    from sklearn.linear_model import LogisticRegression

    known, asked = _features(labelled.texts, texts)
    return np.asarray(LogisticRegression(max_iter=1000).fit(known, labelled.unknown).predict_proba(asked)[:, 1])


def decided(never: Columns, always: Columns, retrieve: np.ndarray, gate: str, draws: int) -> Columns:
    """The measures when `retrieve` ([n] bool) decides, [n] each; a gate's own closed-book drafts count as costs.

    `draws`: S, the answers that `consistency` samples for each question.
    """
    mixed = {name: np.where(retrieve, always[name], never[name]) for name in never}
    drafts = (retrieve if gate in DRAFTED else np.zeros_like(retrieve)) + (draws if gate == "consistency" else 0)
    return mixed | {name: mixed[name] + drafts * never[name] for name in _COSTS}


def curve(never: Columns, always: Columns, score: np.ndarray, gate: str, draws: int) -> list[dict[str, Any]]:
    """Means at every threshold that matters (at most POINTS, evenly spread), from no retrieval to always."""
    thresholds = _thresholds(score)
    if len(thresholds) > POINTS:
        thresholds = thresholds[np.linspace(0, len(thresholds) - 1, POINTS).round().astype(int)]
    return [
        {"threshold": _told(x), **means(decided(never, always, score > x, gate, draws), _SHOWN)} for x in thresholds
    ]


def area(points: Sequence[Mapping[str, float]], measure: str) -> float:
    """Mean height of a curve over retrievals from none to those of `always` (trapezoids): a random gate's is half-way
    between the ends."""
    x, y = (np.array([point[name] for point in points]) for name in ("retrievals_per_question", measure))
    width = x[-1] - x[0]
    return float(np.trapezoid(y, x) / width) if width > 0 else float(y[-1])


def tuned(never: Columns, always: Columns, score: np.ndarray) -> float:
    """The θ of the highest mean reward on these questions, [n]; of equal ones that which retrieves least."""
    thresholds = _thresholds(score)
    rewards = [np.where(score > x, always["reward"], never["reward"]).mean() for x in thresholds]
    return float(thresholds[int(np.argmax(rewards))])


def matched(never: Columns, always: Columns, score: np.ndarray, retrievals: float) -> float:
    """The θ whose retrievals per question are closest to `retrievals`."""
    thresholds = _thresholds(score)
    name = "retrievals_per_question"
    rates = np.array([np.where(score > x, always[name], never[name]).mean() for x in thresholds])
    return float(thresholds[int(np.abs(rates - retrievals).argmin())])


def oracle(never: Columns, always: Columns) -> np.ndarray:
    """[n] bool: retrieve where it earns more. Reads the gold answers."""
    return always["reward"] > never["reward"]


def judged(
    name: str,
    score: np.ndarray,
    dev_score: np.ndarray,
    systems: Mapping[str, Columns],
    dev: Mapping[str, Columns],
    *,
    draws: int,
    seed: int,
) -> dict[str, Any]:
    """All about one gate: its curve and areas on the test questions; the point whose θ was tuned on dev; the point that
    retrieves as often as the policy. Differences are policy minus gate, paired.

    systems, dev: `never`, `always` and `policy` of the two sets of questions.
    """
    never, always, policy = (systems[s] for s in ("never", "always", "policy"))
    points = curve(never, always, score, name, draws)
    best = tuned(dev["never"], dev["always"], dev_score)
    equal = matched(never, always, score, float(policy["retrievals_per_question"].mean()))
    found: dict[str, Any] = {"auc": {m: area(points, m) for m in ("em", "f1", "reward")}, "curve": points}
    for kind, threshold in (("tuned", best), ("matched", equal)):
        columns = decided(never, always, score > threshold, name, draws)
        gap = differences(policy, columns, seed)
        found[kind] = {"threshold": _told(threshold), **summary(columns, seed), "policy_minus_this": gap}
    return found


def _thresholds(score: np.ndarray) -> np.ndarray:
    """Every θ that tells the questions apart, from no retrieval to always."""
    return np.append(np.unique(score)[::-1], -np.inf)


def _told(threshold: float) -> float | None:
    """As JSON has it: null is the threshold that every score passes."""
    return None if threshold == -math.inf else float(threshold)


def _features(known: Sequence[str], asked: Sequence[str]) -> tuple[Any, Any]:
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectors = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True).fit(known)
    return vectors.transform(known), vectors.transform(asked)
