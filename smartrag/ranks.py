"""The seam between the update and the machines: optimisation engines, and the processes that learn together."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor


class Engine(Protocol):
    """A model under optimisation. Gradients of several `backward` calls add up, averaged over ranks, until `step`."""

    def forward(self, *inputs: Any) -> Any: ...

    def backward(self, loss: Tensor, last: bool) -> None: ...

    def step(self) -> float:
        """Clips, steps and forgets the gradients. Returns their global norm; no rank stepped if it is not finite."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among those that learn together. Every method is a collective: all ranks call it, in one order."""

    rank: int
    count: int
    device: torch.device
    all_reduce_sum: Callable[[Tensor], Tensor]  # of a tensor on `device`

    def sum(self, x: Tensor) -> Tensor:
        """Elementwise over ranks, as float64 on the CPU."""
        return self.all_reduce_sum(x.detach().to(self.device, torch.float64, copy=True)).cpu()

    def sums(self, named: Mapping[str, float]) -> dict[str, float]:
        names = sorted(named)
        mine = torch.tensor([named[name] for name in names], dtype=torch.float64)
        return dict(zip(names, self.sum(mine).tolist(), strict=True))

    def max(self, x: float) -> float:
        slots = torch.zeros(self.count, dtype=torch.float64)
        slots[self.rank] = x
        return float(self.sum(slots).max())

    def equal_counts(self, plan: list[list[list[int]]]) -> list[list[list[int]]]:
        """`plan` filled up with empty micro-batches: a rank that stops early leaves the others waiting forever."""
        return plan + [[]] * (int(self.max(len(plan))) - len(plan))


def alone(device: str = "cpu") -> Ranks:
    return Ranks(0, 1, torch.device(device), lambda x: x)
