"""What training changed: the same test question before and after, counted and shown."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from smartrag.score import contains

Row = Mapping[str, Any]  # of evaluation-<system>.jsonl, as evaluate.describe makes it

BEHAVIOURS = ("direct, right", "direct, wrong", "searched, right", "searched, wrong")
CHANGES: dict[str, Callable[[Row, Row], bool]] = {
    "direct → search": lambda b, a: not searched(b) and searched(a),
    "search → direct": lambda b, a: searched(b) and not searched(a),
    "wrong → right": lambda b, a: not right(b) and right(a),
    "right → wrong": lambda b, a: right(b) and not right(a),
}
_LONGEST = 600  # characters of a passage, a question, a query or an answer that are shown


@dataclass(frozen=True, slots=True)
class Passage:
    title: str
    text: str
    gold: bool  # a gold answer stands in it


@dataclass(frozen=True, slots=True)
class Move:
    """One turn, to be read."""

    action: str  # search, answer, malformed, cut
    text: str
    forced: bool
    passages: tuple[Passage, ...] | None  # None: no search


@dataclass(frozen=True, slots=True)
class Shown:
    """One episode, to be read."""

    question: str
    gold: tuple[str, ...]
    moves: tuple[Move, ...]
    end: str  # answered, format_error, truncated
    right: bool
    reward: float | None
    step: int | None  # of training; None: a test question


@dataclass(frozen=True, slots=True)
class Kind:
    """Test questions whose episode changed in the same way."""

    changes: tuple[str, ...]  # of CHANGES; empty: same decision, same outcome
    count: int
    pairs: list[tuple[Shown, Shown]]  # some of them, before and after


def searched(row: Row) -> bool:
    return bool(row.get("retrievals_per_question"))


def right(row: Row) -> bool:
    """An exact match with a gold answer."""
    return row.get("em") == 1


def matched(one: Sequence[Row], other: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Rows of the same question, in order; empty unless both sides were asked the same."""
    same = [r.get("question_id") for r in one] == [r.get("question_id") for r in other]
    return list(zip(one, other, strict=True)) if same else []


def behaviour(row: Row) -> str:
    """One of BEHAVIOURS."""
    return BEHAVIOURS[2 * searched(row) + (not right(row))]


def transitions(before: Sequence[Row], after: Sequence[Row]) -> Counter[tuple[str, str]]:
    """How many questions went from which behaviour to which."""
    return Counter((behaviour(b), behaviour(a)) for b, a in matched(before, after))


def kinds(before: Sequence[Row], after: Sequence[Row], each: int = 2) -> list[Kind]:
    """The kinds of change that occurred, each with some of its questions; what did not change comes last.

    Shown questions stand evenly spread over their kind, so the choice is repeatable.
    """
    found: dict[tuple[str, ...], list[tuple[Row, Row]]] = {}
    for b, a in matched(before, after):
        found.setdefault(tuple(name for name, holds in CHANGES.items() if holds(b, a)), []).append((b, a))
    made = {
        changed: Kind(changed, len(members), [(shown(b), shown(a)) for b, a in _spread(members, each)])
        for changed, members in found.items()
    }
    return [made[changed] for changed in sorted(made, key=lambda changed: (not changed, changed))]


def shown(row: Row) -> Shown:
    """An episode of evaluation-<system>.jsonl or episodes.jsonl; long texts are cut."""
    gold = tuple(str(g) for g in row.get("gold") or ())
    return Shown(
        question=_cut(row.get("question")),
        gold=tuple(_cut(g) for g in gold),
        moves=tuple(_move(turn, gold) for turn in row.get("turns") or ()),
        end=str(row.get("end", "")),
        right=right(row),
        reward=row.get("reward"),
        step=row.get("step"),
    )


def _move(turn: Row, gold: Sequence[str]) -> Move:
    found = turn.get("passages")
    passages = None if found is None else tuple(_passage(str(contents), gold) for contents in found)
    return Move(str(turn.get("action")), _cut(turn.get("text")), bool(turn.get("forced")), passages)


def _passage(contents: str, gold: Sequence[str]) -> Passage:
    title, _, text = contents.partition("\n")
    return Passage(_cut(title), _cut(text), contains(contents, gold))


def _cut(text: Any) -> str:
    text = str(text or "")
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} … ({len(text):,} characters in all)"


def _spread(found: Sequence[Any], number: int) -> list[Any]:
    """At most `number` of them, evenly spaced."""
    count = min(number, len(found))
    return [found[(2 * i + 1) * len(found) // (2 * count)] for i in range(count)]
