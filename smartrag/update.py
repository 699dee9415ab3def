"""One update of policy and critic over a rank's trajectories: PPO (`update`) or imitation (`imitate`).

An estimator without a critic (`algorithm.advantage`) leaves out the critic's half; the surrogate is the same.

Whatever is a mean here is one over ALL ranks: n ranks and one rank take the same steps.

Shapes: B trajectories of this rank, T tokens of the longest.
"""

import hashlib
import math
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from smartrag import advantage, experience, loss, packing
from smartrag.actor_critic import Separate, Shared, rows
from smartrag.batch import collate, nothing
from smartrag.choices import KLIn
from smartrag.config import Algorithm
from smartrag.experience import Experience
from smartrag.packing import Packed
from smartrag.ranks import Engine, Ranks
from smartrag.types import Trajectory


@dataclass(frozen=True, slots=True)
class Setup:
    """What does not change during one update. All but `ranks` is the same on every rank."""

    models: Separate | Shared
    algorithm: Algorithm
    ranks: Ranks
    kl_coef: float  # β of this update
    pad_id: int
    micro_batch_tokens: int
    train_policy: bool  # False: only the critic learns
    seed: int


def update(minibatches: Sequence[Sequence[Trajectory]], setup: Setup) -> dict[str, float]:
    """PPO on this rank's share of each minibatch (Schulman et al. 2017, arXiv 1707.06347, algorithm 1).

    experience -> epochs x minibatches x (micro-batches -> gradient) -> optimiser step.  Returns metrics.

    No minibatch may be empty on all ranks; this rank's share of any, or of all, may be.
    """
    algorithm, ranks = setup.algorithm, setup.ranks
    ours = [t for part in minibatches for t in part]
    exp = experience.gather(
        collate(ours, setup.pad_id) if ours else nothing(setup.pad_id),
        setup.models,
        algorithm,
        ranks,
        kl_coef=setup.kl_coef,
        micro_batch_tokens=setup.micro_batch_tokens,
    )
    metrics = experience.metrics(exp, algorithm, ranks) | {"kl_coef": setup.kl_coef}
    if algorithm.whiten_advantages:
        exp = replace(exp, advantages=experience.whitened_advantages(exp, ranks))
    groups = _rows(minibatches)
    steps = []
    for epoch in range(algorithm.epochs):
        order = random.Random(f"epoch/{setup.seed}/{epoch}").sample(groups, len(groups))
        steps += [optimiser_step(exp, chosen, setup) for chosen in order]
    return metrics | _step_metrics(steps, setup)


def imitate(
    policy: Engine, trajectories: Sequence[Trajectory], ranks: Ranks, *, pad_id: int, micro_batch_tokens: int
) -> dict[str, float]:
    """One optimiser step on the mean cross-entropy of the masked tokens, −(1/n) Σ log π(aₜ | sₜ)."""
    batch = collate(trajectories, pad_id)
    tokens = float(ranks.sum(batch.mask.sum()))
    total = 0.0
    plan = ranks.equal_counts(packing.plan(packing.lengths(batch), micro_batch_tokens))
    for i, some in enumerate(plan):
        x = rows(packing.pack(batch, some), 1.0, ranks.device)
        nll = -loss.masked_sum(policy.forward(*x)[0], x.mask)
        policy.backward(nll * (ranks.count / tokens), last=i == len(plan) - 1)
        total += float(nll.detach())
    norm = policy.step()
    mean = float(ranks.sum(torch.tensor(total))) / tokens
    return {"loss": mean, "grad_norm": norm, "skipped_steps": float(not math.isfinite(norm)), "policy_tokens": tokens}


@dataclass(frozen=True, slots=True)
class Step:
    """What one optimiser step came to on this rank."""

    sums: dict[str, float]  # over policy tokens
    deviation: float  # largest |ratio − 1|
    norms: dict[str, float]  # of gradients, over all ranks, before clipping; of each engine that stepped


def optimiser_step(exp: Experience, chosen: Sequence[int], setup: Setup) -> Step:
    """One step on the trajectories `chosen`, micro-batch by micro-batch."""
    models, ranks = setup.models, setup.ranks
    mine = exp.batch.mask[list(chosen)].sum()
    tokens = float(ranks.sum(mine))
    # Engines average gradients over ranks. Wanted is the sum over ranks, divided by the tokens of all of them.
    losses = Losses(exp, setup, scale=ranks.count / tokens)
    plan = ranks.equal_counts(packing.plan(packing.lengths(exp.batch), setup.micro_batch_tokens, chosen))
    for i, some in enumerate(plan):
        part = packing.pack(exp.batch, some)
        x = rows(part, setup.algorithm.temperature, ranks.device)
        policy_loss = partial(losses.policy, part, x.mask) if setup.train_policy else None
        models.learn(x, policy_loss, partial(losses.value, part, x.mask), last=i == len(plan) - 1)
    norms = models.step(train_policy=setup.train_policy)
    sums = {name: float(x) for name, x in losses.sums.items()} | {"tokens": float(mine)}
    return Step(sums, float(losses.deviation), norms)


class Losses:
    """Policy and value loss of each micro-batch of one optimiser step, and what they come to together.

    Tensors are [R, L]; `mask` is `part.mask` on the ranks' device, where all of it is computed.
    """

    def __init__(self, exp: Experience, setup: Setup, scale: float):
        self._exp, self._setup, self._scale, self._device = exp, setup, scale, setup.ranks.device
        nothing = torch.zeros((), dtype=torch.float64, device=self._device)
        self.sums: defaultdict[str, Tensor] = defaultdict(nothing.clone)  # over policy tokens
        self.deviation = nothing  # largest |ratio − 1|

    def value(self, part: Packed, mask: Tensor, after: Tensor) -> Tensor:
        """½ Σ (V − R̂)²; `after` is V after each token."""
        values, returns = self._laid(part, self._exp.values, self._exp.returns)
        total = loss.value_loss(advantage.state_values(after), values, returns, mask, self._setup.algorithm.value_clip)
        self.sums["value_loss"] += total.detach()
        return total * self._scale

    def policy(self, part: Packed, mask: Tensor, logp: Tensor, entropy: Tensor) -> Tensor:
        """Surrogate, less the entropy bonus, plus the KL to the reference where that is a term of the loss."""
        exp, algorithm = self._exp, self._setup.algorithm
        old, advantages, weights = self._laid(part, exp.old, exp.advantages, exp.weights)
        surrogate = loss.clipped_surrogate(logp, old, advantages, weights, mask, algorithm.clip)
        entropy_sum = loss.masked_sum(entropy, mask)
        total = surrogate - algorithm.entropy_coef * entropy_sum
        if algorithm.kl_in is KLIn.loss:
            (reference,) = self._laid(part, exp.reference)
            kl = loss.masked_sum(weights * loss.kl(algorithm.kl, logp, reference), mask)
            total = total + self._setup.kl_coef * kl
        logp = torch.where(mask, logp.detach(), 0.0)
        off = loss.ratio(logp, old) - 1  # zero off the mask, where both log-probs are
        self.sums["policy_loss"] += surrogate.detach()
        self.sums["entropy"] += entropy_sum.detach()
        self.sums["ratio"] += off.sum().double() + mask.sum()
        self.sums["clipped"] += (off.abs() > algorithm.clip).sum()
        self.sums["approx_kl"] += loss.k3(old, logp).sum()
        self.deviation = torch.maximum(self.deviation, off.abs().max().double())
        return total * self._scale

    def _laid(self, part: Packed, *fields: Tensor) -> Iterator[Tensor]:
        return (part.lay(x).to(self._device) for x in fields)


def update_seed(run_seed: int, step: int) -> int:
    """What minibatches and their order in an update are drawn by."""
    return int.from_bytes(hashlib.sha256(f"update/{run_seed}/{step}".encode()).digest()[:8], "big")


def _rows(minibatches: Sequence[Sequence[Trajectory]]) -> list[list[int]]:
    """Row numbers of each minibatch in the batch collated from all of them."""
    ends = [sum(len(part) for part in minibatches[: i + 1]) for i in range(len(minibatches))]
    return [list(range(end - len(part), end)) for end, part in zip(ends, minibatches, strict=True)]


def _step_metrics(steps: Sequence[Step], setup: Setup) -> dict[str, float]:
    """Means per policy token over all optimiser steps and ranks."""
    ranks = setup.ranks
    critic, policy = ["value_loss"], ["policy_loss", "entropy", "clipped", "approx_kl"]
    has_critic = setup.algorithm.advantage.has_critic
    names = ["tokens", *(critic if has_critic else []), *(policy if setup.train_policy else [])]
    total = ranks.sums({name: sum(s.sums[name] for s in steps) for name in names})
    tokens = total["tokens"]
    skipped = sum(not math.isfinite(norm) for s in steps for norm in s.norms.values())
    metrics = {"optimiser_steps": float(len(steps)), "skipped_steps": float(skipped)}
    metrics |= {name: _mean([s.norms[name] for s in steps]) for name in steps[0].norms}
    if has_critic:
        metrics["value_loss"] = total["value_loss"] / tokens
    if not setup.train_policy:
        return metrics
    first = ranks.sums({name: steps[0].sums[name] for name in ("ratio", "tokens")})
    return metrics | {
        "policy_loss": total["policy_loss"] / tokens,
        "entropy": total["entropy"] / tokens,
        "clip_fraction": total["clipped"] / tokens,
        "approx_kl": total["approx_kl"] / tokens,
        # Before the first step the policy is still the one that `old` came from: anything but 1 is a bug.
        "first_ratio": first["ratio"] / first["tokens"],
        "first_ratio_deviation": ranks.max(steps[0].deviation),
    }


def _mean(norms: Sequence[float]) -> float:
    finite = [n for n in norms if math.isfinite(n)]
    return sum(finite) / len(finite) if finite else float("nan")
