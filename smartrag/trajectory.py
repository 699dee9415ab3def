"""An episode as one token sequence with rewards on tokens.

    tokens   <user> q <assistant> | [Search] x <end> | <user> passages <assistant> | [Answer] y <end>
    mask        0   0      0      |    1     1   1   |    0       0         0      |    1     1   1
    rewards     0   0      0      |    0     0  cost |    0       0         0      |    0     0  score

A turn's reward sits on the turn's last generated token, so masking never changes their sum. A forced tag is context:
its mask is 0.

When some roles are played by frozen weights, their tokens are as much part of the environment as the passages. A reward
that falls on one belongs to the last choice before it, the trained token nearest to its left; what the environment did
before the first choice is due to none, and falls on the first. With the decision alone trained:

    mask        0   0      0      |    1     0   0   |    0       0         0      |    1     0   0
    rewards     0   0      0      |  cost    0   0   |    0       0         0      |  score   0   0
"""

from bisect import bisect_right
from collections.abc import Collection, Sequence
from typing import TypeVar

from smartrag.choices import Role
from smartrag.types import End, Episode, Trajectory

T = TypeVar("T")

_NO_VERSION, _NO_ROLE = -1, -1
_PLACES = {role: place for place, role in enumerate(Role)}


def teaches(episode: Episode, trains: Collection[Role]) -> bool:
    """Whether any token of the episode belongs to a trained role."""
    return any(role in trains for turn in episode.turns for role in turn.roles)


def to_trajectory(
    episode: Episode, turn_rewards: Sequence[float], group: int, trains: Collection[Role] = tuple(Role)
) -> Trajectory:
    """[T] sequences of one episode; `turn_rewards` has one number a turn, `group` is `Trajectory.group`.

    ValueError on a turn without generated tokens, or when no token belongs to a role of `trains`: nothing carries the
    reward.
    """
    if not teaches(episode, trains):
        raise ValueError(f"episode {episode.id}: no token of {', '.join(trains)}, so there is nothing to learn from")
    ids: list[int] = []
    mask: list[bool] = []
    logprobs: list[float] = []
    rewards: list[float] = []
    versions: list[int] = []
    roles: list[int] = []
    for turn, reward in zip(episode.turns, turn_rewards, strict=True):
        written = turn.completion
        if not written.token_ids:
            raise ValueError(f"episode {episode.id}: a turn without generated tokens; raise model.context_tokens")
        before, after = len(turn.context_ids), len(written.token_ids)
        ids += [*turn.context_ids, *written.token_ids]
        mask += [False] * before + [role in trains for role in turn.roles]
        logprobs += [0.0] * before + list(written.logprobs)
        rewards += [0.0] * (before + after - 1) + [reward]
        versions += [_NO_VERSION] * before + list(written.weight_versions)
        roles += [_NO_ROLE] * before + [_PLACES[role] for role in turn.roles]

    def kept(values: Sequence[T], blank: T) -> tuple[T, ...]:
        return tuple(x if chosen else blank for x, chosen in zip(values, mask, strict=True))

    return Trajectory(
        id=episode.id,
        token_ids=tuple(ids),
        mask=tuple(mask),
        logprobs=kept(logprobs, 0.0),
        rewards=tuple(_on_choices(rewards, mask)),
        weight_versions=kept(versions, _NO_VERSION),
        truncated=episode.end is End.TRUNCATED,
        group=group,
        roles=kept(roles, _NO_ROLE),
    )


def _on_choices(rewards: Sequence[float], mask: Sequence[bool]) -> list[float]:
    """[T] each reward on the last chosen token at or before it, else on the first; `mask` chooses at least one."""
    chosen = [place for place, is_chosen in enumerate(mask) if is_chosen]
    moved = [0.0] * len(rewards)
    for place, reward in enumerate(rewards):
        moved[chosen[max(0, bisect_right(chosen, place) - 1)]] += reward
    return moved


def imitation(id: str, context_ids: Sequence[int], wanted_ids: Sequence[int]) -> Trajectory:
    """What a policy should write after a context, as a trajectory to imitate: no rewards, no engine behind it."""
    before, after = len(context_ids), len(wanted_ids)
    return Trajectory(
        id=id,
        token_ids=(*context_ids, *wanted_ids),
        mask=(False,) * before + (True,) * after,
        logprobs=(0.0,) * (before + after),
        rewards=(0.0,) * (before + after),
        weight_versions=(_NO_VERSION,) * (before + after),
        truncated=False,
        group=0,
        roles=(_NO_ROLE,) * (before + after),  # imitation does not ask for them
    )
