"""Trajectories -> tensors, and how they are cut: minibatches (one optimiser step), shards (one rank).

Shapes: B trajectories, T tokens of the longest.
"""

import random
from collections.abc import Sequence

import torch

from smartrag.types import Batch, Trajectory


def collate(trajectories: Sequence[Trajectory], pad_id: int) -> Batch:
    """Right-padded tensors of at least one trajectory, in the order given."""
    if not trajectories:
        raise ValueError("no trajectories to collate")
    for t in trajectories:
        _check(t)
    width = max(len(t.token_ids) for t in trajectories)

    def padded(name: str, fill: float, dtype: torch.dtype) -> torch.Tensor:  # [B, T]
        rows = [getattr(t, name) for t in trajectories]
        return torch.tensor([[*row, *[fill] * (width - len(row))] for row in rows], dtype=dtype)

    real = torch.tensor([len(t.token_ids) for t in trajectories])[:, None]  # [B, 1]
    return Batch(
        token_ids=padded("token_ids", pad_id, torch.int64),
        attention_mask=torch.arange(width)[None] < real,
        mask=padded("mask", False, torch.bool),
        logprobs=padded("logprobs", 0.0, torch.float32),
        rewards=padded("rewards", 0.0, torch.float32),
        truncated=torch.tensor([t.truncated for t in trajectories]),
        groups=torch.tensor([t.group for t in trajectories]),
        roles=padded("roles", -1, torch.int64),
    )


def nothing(pad_id: int) -> Batch:
    """Two tokens that nobody chose: the batch of a rank that got no trajectory and must still take part."""
    blank = torch.zeros(1, 2)
    return Batch(
        token_ids=torch.full((1, 2), pad_id),
        attention_mask=torch.ones(1, 2, dtype=torch.bool),
        mask=torch.zeros(1, 2, dtype=torch.bool),
        logprobs=blank,
        rewards=blank,
        truncated=torch.zeros(1, dtype=torch.bool),
        groups=torch.zeros(1, dtype=torch.int64),
        roles=torch.full((1, 2), -1),
    )


def _check(t: Trajectory) -> None:
    sizes = {len(t.token_ids), len(t.mask), len(t.logprobs), len(t.rewards), len(t.roles)}
    if len(sizes) != 1:
        raise ValueError(f"trajectory {t.id}: its sequences differ in length: {sorted(sizes)}")
    if not any(t.mask) or t.mask[0]:
        raise ValueError(f"trajectory {t.id}: needs a first token that is given and at least one the policy chose")
    if any(reward and not chosen for reward, chosen in zip(t.rewards, t.mask, strict=True)):
        raise ValueError(f"trajectory {t.id}: a reward on a token the policy did not choose would be lost")


def minibatches(trajectories: Sequence[Trajectory], parts: int, seed: int) -> list[list[Trajectory]]:
    """A partition into `parts` minibatches of equal size (to within one), drawn by `seed`, not by arrival order."""
    order = sorted(trajectories, key=lambda t: t.id)
    random.Random(f"minibatches/{seed}").shuffle(order)
    return [order[i::parts] for i in range(parts)]


def shards(trajectories: Sequence[Trajectory], ranks: int) -> list[list[Trajectory]]:
    """One share a rank, equal in count (to within one) and nearly in tokens: dealt out by length, back and forth."""
    order = sorted(trajectories, key=lambda t: (-len(t.token_ids), t.id))
    deal = [*range(ranks), *reversed(range(ranks))]
    return [[t for i, t in enumerate(order) if deal[i % len(deal)] == rank] for rank in range(ranks)]
