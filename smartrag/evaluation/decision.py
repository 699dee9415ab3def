"""What a policy's decisions are worth, from three episodes of each question: closed-book, searching, and its own way.

Necessity and over- and under-search as in the analyses of adaptive retrieval (Moskvoretskii et al. 2025, arXiv
2501.12835); the counterfactuals replace one role at a time by a perfect one and say which of them loses the points.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from smartrag.config import Reward
from smartrag.evaluation.evaluate import Columns, differences, summary
from smartrag.evaluation.gates import oracle
from smartrag.reward import full_score


def report(systems: Mapping[str, Columns], reward: Reward, seed: int) -> dict[str, Any]:
    """`systems`: measures of `never`, `always`, `policy` and `gold_first` (the policy with a retriever that is told the
    answers) on the same questions. Rates are null where there is nothing to take them of."""
    never, always, policy = (systems[name] for name in ("never", "always", "policy"))
    knows, finds, right = (columns["em"] > 0 for columns in (never, always, policy))
    searched, hit = policy["retrievals_per_question"] > 0, policy["hit_rate"] > 0
    return {
        "necessity": _table(knows, finds, ("right closed-book", "wrong"), ("right with retrieval", "wrong")),
        "hit_and_right": _table(hit[searched], right[searched], ("answer in a passage", "in none"), ("right", "wrong")),
        # of the questions that it answers right closed-book, the share that it searches for all the same
        "over_search": _share(searched, of=knows),
        # of those that it answers right only with retrieval, the share that it does not search for
        "under_search": _share(~searched, of=~knows & finds),
        "retrievals_for_known": _share(knows, of=searched),  # wasted: the answer was known ...
        "retrievals_without_answer": _share(~hit, of=searched),  # ... or did not come
        "right_decisions": _share(searched == ~knows, of=knows | finds),
        "counterfactuals": counterfactuals(systems, reward, seed),
    }


def counterfactuals(systems: Mapping[str, Columns], reward: Reward, seed: int) -> dict[str, dict[str, Any]]:
    """Measures of the policy with one role made perfect, and what each gains over it (paired).

    decision    of `never` and `always` the one that earns more, question by question
    retriever   passages that hold a gold answer come first
    answer      right whenever it was right or a passage held a gold answer
    """
    never, always, policy = (systems[name] for name in ("never", "always", "policy"))
    decide = oracle(never, always)
    perfect = {
        "decision": {name: np.where(decide, always[name], never[name]) for name in policy},
        "retriever": systems["gold_first"],
        "answer": _answered(policy, reward),
    }
    kept = ("reward", "em", "f1", "retrievals_per_question")
    found = {}
    for role, columns in perfect.items():
        some = {name: columns[name] for name in kept}
        gain = differences(some, {name: policy[name] for name in kept}, seed)
        found[role] = {**summary(some, seed), "gain": gain}
    return found


def _answered(policy: Columns, reward: Reward) -> Columns:
    """As if every question whose passages held the answer had been answered with it."""
    right = (policy["em"] > 0) | (policy["hit_rate"] > 0)
    earned = full_score(reward) + reward.retrieval * policy["retrievals_per_question"]
    perfect: dict[str, Any] = {"em": 1.0, "f1": 1.0, "reward": earned}
    return policy | {name: np.where(right, x, policy[name]) for name, x in perfect.items()}


def _table(
    rows: np.ndarray, columns: np.ndarray, row_names: tuple[str, str], column_names: tuple[str, str]
) -> list[dict[str, Any]]:
    """The four shares of two yes-or-no facts, [m] each; names of yes and no."""
    everyone = np.ones_like(rows)
    return [
        {"row": row, "column": column, "share": _share((rows == yes) & (columns == too), of=everyone)}
        for row, yes in zip(row_names, (True, False), strict=True)
        for column, too in zip(column_names, (True, False), strict=True)
    ]


def _share(what: np.ndarray, *, of: np.ndarray) -> float | None:
    return float(what[of].mean()) if of.any() else None
