"""Micro-batches: trajectories laid end to end in rows, so that hardly a token of a forward pass is padding.

    row    a₀ a₁ a₂ a₃ b₀ b₁ b₂ ·        positions  0 1 2 3 0 1 2 3

Positions begin anew with each trajectory, and attention does not cross from one to the next: transformers reads the
trajectories' bounds off the positions. Padding at a row's end counts on, so a row of one trajectory stays an ordinary
causal sequence and keeps the fast kernels.

Shapes: B trajectories of T tokens at most; R rows of L tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from smartrag.types import Batch


@dataclass(frozen=True, slots=True)
class Packed:
    """Some trajectories of a `Batch`, packed. All on the CPU."""

    token_ids: Tensor  # [R, L]
    positions: Tensor  # [R, L] within the trajectory
    mask: Tensor  # [R, L] policy tokens
    places: Tensor  # [R, L] where the token stands in the batch's flattened [B, T]; -1 for padding

    def lay(self, x: Tensor) -> Tensor:
        """A field of the batch in this packing, zero off the mask: [B, T] -> [R, L]."""
        return torch.where(self.mask, x.reshape(-1)[self.places.clamp(min=0)], 0.0)

    def spread(self, packed: Tensor, into: Tensor) -> None:
        """The way back: [R, L] -> places of `into`, [B, T]. Tokens of other trajectories stay as they are."""
        real = self.places >= 0
        into.view(-1)[self.places[real]] = packed.to(into)[real]


def pack(batch: Batch, rows: Sequence[Sequence[int]]) -> Packed:
    """`rows`: which trajectories stand in each row, in their order.

    No rows: two tokens that nothing is learned from, for a rank that has run out and must still take part.
    """
    if not rows:
        nowhere = torch.full((1, 2), -1)
        return Packed(batch.token_ids[:1, :2], torch.arange(2)[None], torch.zeros(1, 2, dtype=torch.bool), nowhere)
    sizes, width = lengths(batch), batch.token_ids.shape[1]
    longest = max(sum(sizes[i] for i in row) for row in rows)
    places = torch.full((len(rows), longest), -1)
    positions = torch.arange(longest).repeat(len(rows), 1)
    for r, row in enumerate(rows):
        end = 0
        for i in row:
            start, end = end, end + sizes[i]
            places[r, start:end] = i * width + torch.arange(sizes[i])
            positions[r, start:] = torch.arange(longest - start)
    real, at = places >= 0, places.clamp(min=0)
    ids = torch.where(real, batch.token_ids.reshape(-1)[at], batch.token_ids[0, 0])
    return Packed(ids, positions, real & batch.mask.reshape(-1)[at], places)


def plan(sizes: Sequence[int], budget: int, chosen: Sequence[int] | None = None) -> list[list[list[int]]]:
    """Micro-batches of rows of trajectories, for `pack`. Each micro-batch's tokens, rows x longest row, stay within
    `budget`; a trajectory above it stands alone. `sizes`: tokens of each trajectory; `chosen`: which are wanted.

    Rows are filled first-fit, the longest trajectory first (Johnson 1973: at most 11/9 of the fewest rows, and 6/9 of
    one), and as wide as leaves least padding: at least the longest trajectory and at most half as much again, as in
    MULTIFIT (Coffman, Garey & Johnson 1978). Example: plan([5, 2, 9, 3], budget=20) -> [[[0, 3, 1], [2]]].
    """
    order = sorted(range(len(sizes)) if chosen is None else chosen, key=lambda i: (-sizes[i], i))
    if not order:
        return []
    longest = sizes[order[0]]
    widths = {longest + longest * i // 16 for i in range(9)}
    tried = [_first_fit(sizes, order, width) for width in sorted(widths) if width <= max(longest, budget)]
    rows = min(tried, key=lambda rows: computed_tokens(sizes, [rows]))
    tokens = [sum(sizes[i] for i in row) for row in rows]
    micro_batches: list[list[list[int]]] = []
    width = 0
    for row, n in sorted(zip(rows, tokens, strict=True), key=lambda pair: -pair[1]):
        if micro_batches and (len(micro_batches[-1]) + 1) * width <= budget:
            micro_batches[-1].append(row)
        else:
            micro_batches.append([row])
            width = n
    return micro_batches


def _first_fit(sizes: Sequence[int], order: Sequence[int], width: int) -> list[list[int]]:
    rows: list[list[int]] = []
    room: list[int] = []
    for i in order:
        fits = next((r for r, free in enumerate(room) if free >= sizes[i]), None)
        if fits is None:
            rows.append([i])
            room.append(width - sizes[i])
        else:
            rows[fits].append(i)
            room[fits] -= sizes[i]
    return rows


def computed_tokens(sizes: Sequence[int], micro_batches: Sequence[Sequence[Sequence[int]]]) -> int:
    """Tokens of the forward passes of a plan, padding included."""
    return sum(len(part) * max(sum(sizes[i] for i in row) for row in part) for part in micro_batches)


def lengths(batch: Batch) -> list[int]:
    """Real tokens of each trajectory, [B]."""
    return batch.attention_mask.sum(1).tolist()
