"""What somebody should be told of a run while it goes on: judged from its rows alone, said once when it begins."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Rows = Sequence[Mapping[str, Any]]

_LASTING = 3  # rows in a row: one is chance
_NEVER, _ONCE = 0.01, 0.1  # retrievals a question: nobody searches any more; somebody did
_ALWAYS = 0.99
_KL = 10.0  # nats an episode, where no target says what is much
_TIMES_TARGET = 5.0
_ENOUGH = 8  # rows that a usual rate is known from


@dataclass(frozen=True, slots=True)
class Alert:
    title: str  # below 64 characters, W&B's limit
    text: str  # what was seen, and what to do


def alerts(rows: Rows, kl_target: float | None) -> list[Alert]:
    """What has begun with the last of `rows` (of metrics.jsonl, oldest first)."""
    begun = []
    for seen in (_stopped_searching, _always_searching, _far_from_the_reference(kl_target), _slow):
        now = seen(rows)
        if now is not None and seen(rows[:-1]) is None:
            begun.append(now)
    return begun


def _stopped_searching(rows: Rows) -> Alert | None:
    asked = _column(rows, "retrievals_per_question")
    if not _last(asked, lambda n: n < _NEVER) or max(asked[:-_LASTING], default=0.0) < _ONCE:
        return None
    return Alert(
        "the policy has stopped searching",
        f"fewer than {_NEVER:g} retrievals a question in {_LASTING} steps, {max(asked):.2f} at most before; lower the "
        "price (reward.retrieval), or use reward=gated or reward=budget",
    )


def _always_searching(rows: Rows) -> Alert | None:
    asked = _column(rows, "retrievals_per_question")
    if not _last(asked, lambda n: n > _ALWAYS) or min(asked[:-_LASTING], default=_ALWAYS) >= _ALWAYS:
        return None
    return Alert(
        "the policy searches for nearly every question",
        f"more than {_ALWAYS:g} retrievals a question in {_LASTING} steps, {min(asked):.2f} at least before; raise the "
        "price (reward.retrieval), use reward=budget, or warm up with warmup.self_knowledge",
    )


def _far_from_the_reference(target: float | None) -> Callable[[Rows], Alert | None]:
    much = _KL if target is None else _TIMES_TARGET * target

    def seen(rows: Rows) -> Alert | None:
        kl = _column(rows, "kl_ref_episode")
        if not _last(kl, lambda nats: nats > much):
            return None
        return Alert(
            "the policy runs away from its reference",
            f"{kl[-1]:.2f} nats an episode, above {much:g} for {_LASTING} steps; raise algorithm.kl_coef or lower "
            "learner.learning_rate",
        )

    return seen


def _slow(rows: Rows) -> Alert | None:
    rates = [row["generated_tokens"] / row["seconds_step"] for row in rows if row.get("seconds_step")]
    if len(rates) < _ENOUGH + _LASTING:
        return None
    usual = statistics.median(rates[:-_LASTING])
    if not _last(rates, lambda rate: rate < usual / 2):
        return None
    return Alert(
        "steps have become slow",
        f"{rates[-1]:.0f} generated tokens a second of a step, {usual:.0f} is usual; see push/engines for engines that "
        "are away, seconds_* for the part that is slow, and what else runs on the machines",
    )


def _column(rows: Rows, name: str) -> list[float]:
    return [row[name] for row in rows if name in row]


def _last(values: Sequence[float], holds: Callable[[float], bool]) -> bool:
    return len(values) >= _LASTING and all(map(holds, values[-_LASTING:]))
