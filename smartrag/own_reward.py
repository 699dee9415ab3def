"""Answers scored by a function of people's own, `reward.function=package.module:name`.

    from smartrag.own_reward import Answered

    def contains(seen: Answered) -> float:
        return float(any(gold.casefold() in seen.answer.casefold() for gold in seen.gold))

It gets one answer and returns its share of a fully right one, a finite number from 0 to 1; True and False will do. It
is called by the driver alone, one answer after the other, for training episodes that end in an answer; all others are
worth 0. Errors in it end the run.
"""

import inspect
import numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from smartrag.dotted import named, told
from smartrag.types import ActionKind, Episode

SETTING = "reward.function"


class RewardFailed(RuntimeError):
    """The function raised an error, or returned what is no share; the message names it and the episode."""


@dataclass(frozen=True, slots=True)
class Answered:
    """What the function is shown of an episode that ends in an answer."""

    question: str
    gold: tuple[str, ...]  # any one of them is right
    answer: str  # as the policy wrote it, behind its tag
    queries: tuple[str, ...]  # searches, in their order
    passages: tuple[str, ...]  # what they brought, in the order shown, each once; as indexed, before any cut


PROBE = Answered(
    question="Which country is Oslo in?",
    gold=("Norway",),
    answer="Norway",
    queries=("Oslo",),
    passages=("Oslo\nOslo is a city in Norway.",),
)


def check(name: str) -> Callable[[Answered], Any]:
    """The function, imported and called on PROBE. Raises ValueError with what is wrong and what to do."""
    function = named(SETTING, name)
    if inspect.iscoroutinefunction(function):
        raise ValueError(f"{SETTING}={name}: must be a plain function, not an async one")
    try:
        inspect.signature(function).bind(PROBE)
    except TypeError as error:
        raise ValueError(f"{SETTING}={name}: must take one argument, an Answered ({error})") from error
    except ValueError:
        pass  # of some built-in functions the signature is not known; the call below tells
    try:
        _share(function(PROBE))
    except _NoShare as error:
        raise ValueError(f"{SETTING}={name}: {error}; shown was {PROBE}") from error
    except Exception as error:
        raise ValueError(f"{SETTING}={name}: failed on {PROBE} ({told(error)}); mend it") from error
    return function


def shares(episodes: Sequence[Episode], name: str) -> list[float]:
    """What the function makes of each episode's answer, in [0, 1]; 0 without an answer. Raises RewardFailed."""
    function = named(SETTING, name)
    found = []
    for episode in episodes:
        if (seen := shown(episode)) is None:
            found.append(0.0)
            continue
        try:
            found.append(_share(function(seen)))
        except Exception as error:
            said = str(error) if isinstance(error, _NoShare) else f"failed ({told(error)})"
            raise RewardFailed(
                f"{SETTING}={name} on episode {episode.id}, question {episode.question.id}: {said}. It was shown "
                f"{str(seen)[:1000]}. Mend it, then go on with resume=latest"
            ) from error
    return found


def shown(episode: Episode) -> Answered | None:
    """None where the episode does not end in an answer."""
    if episode.answer is None:
        return None
    asked = episode.question
    queries = tuple(turn.action.text for turn in episode.turns if turn.action.kind is ActionKind.SEARCH)
    passages = [p.contents for turn in episode.turns for p in getattr(turn.retrieved, "passages", ())]
    return Answered(asked.text, tuple(asked.answers), episode.answer, queries, tuple(dict.fromkeys(passages)))


class _NoShare(ValueError):
    pass


def _share(value: Any) -> float:
    if isinstance(value, numbers.Real) and 0 <= float(value) <= 1:  # not of nan
        return float(value)
    kind = "" if isinstance(value, numbers.Real) else f", a {type(value).__name__}"
    raise _NoShare(f"must return a finite number from 0 to 1, got {value!r:.80}{kind}")
