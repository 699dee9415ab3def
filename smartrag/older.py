"""Settings that came after the first runs, each with the value that means what a run did that had no such setting.

A saved run that lacks one of them is older, and is read as what it was. One that lacks anything else is not whole.
"""

from typing import Any

ADDED: dict[str, Any] = {
    "algorithm.critic": "separate",
    "algorithm.loss_mean": "token",
    "algorithm.trains": ["decision", "query", "answer"],
    "algorithm.value_coef": 1.0,
    "cluster.episode_losses": 4,
    "cluster.learner_restarts": 0,
    "data.corpus": None,
    "data.questions": None,
    "learner.check_every": 0,
    "log.group": None,
    "log.tensorboard": False,
    "log.trace": False,
    "retriever.corpus": "real",
    "retriever.corpus_share": 1.0,
    "retriever.dense": None,
    "retriever.http": None,
    "retriever.remember": 0,
    "retriever.searcher": "bm25",
    "retriever.stemmer": "porter",
    "reward.function": None,
    "train.max_staleness": 0,
    "train.mirror": None,
    "train.set_aside": 0,
}


def completed(saved: dict[str, Any]) -> dict[str, Any]:
    """`saved` with what it lacks of ADDED, where the group that a setting is of is there."""
    whole = dict(saved)
    for name, value in ADDED.items():
        group, _, own = name.partition(".")
        if isinstance(whole.get(group), dict) and own not in whole[group]:
            whole[group] = {**whole[group], own: value}
    return whole
