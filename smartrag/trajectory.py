"""An episode as one token sequence with rewards on tokens.

    tokens   <user> q <assistant> | [Search] x <end> | <user> passages <assistant> | [Answer] y <end>
    mask        0   0      0      |    1     1   1   |    0       0         0      |    1     1   1
    rewards     0   0      0      |    0     0  cost |    0       0         0      |    0     0  score

A turn's reward sits on the turn's last generated token, so masking never changes their sum. A forced tag is context:
its mask is 0.
"""

from collections.abc import Sequence

from smartrag.types import End, Episode, Trajectory

_NO_VERSION = -1


def to_trajectory(episode: Episode, turn_rewards: Sequence[float], group: int) -> Trajectory:
    """[T] sequences of one episode; `turn_rewards` has one number a turn, `group` is `Trajectory.group`.

    ValueError on a turn without generated tokens: nothing carries its reward.
    """
    ids: list[int] = []
    mask: list[bool] = []
    logprobs: list[float] = []
    rewards: list[float] = []
    versions: list[int] = []
    for turn, reward in zip(episode.turns, turn_rewards, strict=True):
        written = turn.completion
        if not written.token_ids:
            raise ValueError(f"episode {episode.id}: a turn without generated tokens; raise model.context_tokens")
        before, after = len(turn.context_ids), len(written.token_ids)
        ids += [*turn.context_ids, *written.token_ids]
        mask += [False] * before + [True] * after
        logprobs += [0.0] * before + list(written.logprobs)
        rewards += [0.0] * (before + after - 1) + [reward]
        versions += [_NO_VERSION] * before + list(written.weight_versions)
    return Trajectory(
        id=episode.id,
        token_ids=tuple(ids),
        mask=tuple(mask),
        logprobs=tuple(logprobs),
        rewards=tuple(rewards),
        weight_versions=tuple(versions),
        truncated=episode.end is End.TRUNCATED,
        group=group,
    )


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
    )
