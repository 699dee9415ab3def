"""Policy and critic as an update sees them: two models, each with its optimiser, or one trunk with two heads.

An update asks for log-probs and values of a micro-batch (`score`), hands over losses of both (`learn`, once a
micro-batch) and has the optimisers step (`step`). Which models there are and in what order they work is known here
alone.

Shapes: R rows of L tokens, packed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from smartrag.packing import Packed
from smartrag.ranks import Engine

PolicyLoss = Callable[[Tensor, Tensor], Tensor]  # of log-probs and entropies, [R, L] each, zero off the mask
ValueLoss = Callable[[Tensor], Tensor]  # of V after each token, [R, L]
Reference = Callable[[Tensor, Tensor, float, Tensor], tuple[Tensor, ...]]  # of Rows; log-probs come first


class Rows(NamedTuple):
    """A micro-batch where the models are: what `model.Policy` takes, in its order."""

    token_ids: Tensor  # [R, L]
    mask: Tensor  # [R, L]
    temperature: float
    positions: Tensor  # [R, L]


def rows(part: Packed, temperature: float, device: torch.device) -> Rows:
    return Rows(part.token_ids.to(device), part.mask.to(device), temperature, part.positions.to(device))


@dataclass(frozen=True, slots=True)
class Separate:
    """A policy and, where the estimator wants one, a critic that shares nothing with it."""

    policy: Engine  # of model.Policy
    critic: Engine | None  # of model.Critic
    reference: Reference

    def score(self, x: Rows) -> tuple[Tensor, Tensor | None]:
        """Log-probs, and V after each token if there is a critic, [R, L] each."""
        values = None if self.critic is None else self.critic.forward(x.token_ids, x.positions)
        return self.policy.forward(*x)[0], values

    def learn(self, x: Rows, policy_loss: PolicyLoss | None, value_loss: ValueLoss, *, last: bool) -> None:
        """Adds the losses' gradients to those of this step; `last`: no more will follow. None: the policy stays.

        The critic is done before the policy begins, so that one model's activations are in memory at a time.
        """
        if self.critic is not None:
            self.critic.backward(value_loss(self.critic.forward(x.token_ids, x.positions)), last)
        if policy_loss is not None:
            self.policy.backward(policy_loss(*self.policy.forward(*x)), last)

    def step(self, *, train_policy: bool) -> dict[str, float]:
        """Steps whoever has learned. Returns the norms of their gradients by metric, see `Engine.step`."""
        norms = {} if self.critic is None else {"critic_grad_norm": self.critic.step()}
        return norms | ({"grad_norm": self.policy.step()} if train_policy else {})


@dataclass(frozen=True, slots=True)
class Shared:
    """One forward pass for both; the loss is L_policy + c₁ L_value (Schulman et al. 2017, arXiv 1707.06347, eq. 9)."""

    engine: Engine  # of model.SharedTrunk
    value_coef: float  # c₁
    reference: Reference

    def score(self, x: Rows) -> tuple[Tensor, Tensor]:
        """As `Separate.score`."""
        logp, _, values = self.engine.forward(*x)
        return logp, values

    def learn(self, x: Rows, policy_loss: PolicyLoss | None, value_loss: ValueLoss, *, last: bool) -> None:
        """As `Separate.learn`; when the policy stays, only the head gets a gradient."""
        logp, entropy, values = self.engine.forward(*x, policy_loss is None)
        total = self.value_coef * value_loss(values)
        if policy_loss is not None:
            total = total + policy_loss(logp, entropy)
        self.engine.backward(total, last)

    def step(self, *, train_policy: bool) -> dict[str, float]:
        """One norm, of trunk and heads together, whoever has learned."""
        return {"grad_norm": self.engine.step()}
