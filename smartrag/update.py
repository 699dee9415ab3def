"""One update of policy and critic over a rank's trajectories: PPO (`update`) or imitation (`imitate`).

An estimator without a critic (`algorithm.advantage`) leaves out the critic's half; the surrogate is the same.

Whatever is a mean here is one over ALL ranks: n ranks and one rank take the same steps.

Shapes: B trajectories of this rank, T tokens of the longest.
"""

import hashlib
import math
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from smartrag import advantage, experience, loss, packing
from smartrag.batch import collate, nothing
from smartrag.choices import KLIn
from smartrag.config import Algorithm
from smartrag.experience import Experience, Models
from smartrag.ranks import Engine, Ranks
from smartrag.types import Trajectory


@dataclass(frozen=True, slots=True)
class Setup:
    """What does not change during one update. All but `ranks` is the same on every rank."""

    models: Models
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
        steps += [optimiser_step(exp, rows, setup) for rows in order]
    return metrics | _step_metrics(steps, setup)


def imitate(
    policy: Engine, trajectories: Sequence[Trajectory], ranks: Ranks, *, pad_id: int, micro_batch_tokens: int
) -> dict[str, float]:
    """One optimiser step on the mean cross-entropy of the masked tokens, −(1/n) Σ log π(aₜ | sₜ)."""
    batch = collate(trajectories, pad_id)
    tokens = float(ranks.sum(batch.mask.sum()))
    total = 0.0
    plan = ranks.equal_counts(packing.plan(packing.lengths(batch), micro_batch_tokens))
    for i, rows in enumerate(plan):
        part = packing.pack(batch, rows)
        ids, positions, mask = (x.to(ranks.device) for x in (part.token_ids, part.positions, part.mask))
        logp, _ = policy.forward(ids, mask, 1.0, positions)
        nll = -loss.masked_sum(logp, mask)
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
    norm: float  # of the policy's gradient, over all ranks, before clipping; 0.0 when it did not learn
    critic_norm: float  # likewise; 0.0 without a critic


def optimiser_step(exp: Experience, rows: Sequence[int], setup: Setup) -> Step:
    """One step of each engine on the trajectories `rows`, micro-batch by micro-batch."""
    models, algorithm, ranks = setup.models, setup.algorithm, setup.ranks
    tokens = float(ranks.sum(exp.batch.mask[list(rows)].sum()))
    # Engines average gradients over ranks. Wanted is the sum over ranks, divided by the tokens of all of them.
    scale = ranks.count / tokens
    sums: defaultdict[str, float] = defaultdict(float)
    deviation = 0.0
    plan = ranks.equal_counts(packing.plan(packing.lengths(exp.batch), setup.micro_batch_tokens, rows))
    for i, some in enumerate(plan):
        last = i == len(plan) - 1
        part = packing.pack(exp.batch, some)
        ids, positions, mask = (x.to(ranks.device) for x in (part.token_ids, part.positions, part.mask))
        old, reference, advantages, weights = (
            part.lay(x).to(ranks.device) for x in (exp.old, exp.reference, exp.advantages, exp.weights)
        )
        sums["tokens"] += float(mask.sum())
        if models.critic is not None:
            values, returns = (part.lay(x).to(ranks.device) for x in (exp.values, exp.returns))
            now = advantage.state_values(models.critic.forward(ids, positions))
            value_loss = loss.value_loss(now, values, returns, mask, algorithm.value_clip)
            models.critic.backward(value_loss * scale, last)
            sums["value_loss"] += float(value_loss.detach())
        if not setup.train_policy:
            continue
        logp, entropy = models.policy.forward(ids, mask, algorithm.temperature, positions)
        surrogate = loss.clipped_surrogate(logp, old, advantages, weights, mask, algorithm.clip)
        entropy_sum = loss.masked_sum(entropy, mask)
        total = surrogate - algorithm.entropy_coef * entropy_sum
        if algorithm.kl_in is KLIn.loss:
            total = total + setup.kl_coef * loss.masked_sum(weights * loss.kl(algorithm.kl, logp, reference), mask)
        models.policy.backward(total * scale, last)
        logp = torch.where(mask, logp.detach(), 0.0)
        off = loss.ratio(logp, old) - 1  # zero off the mask, where both log-probs are
        sums["policy_loss"] += float(surrogate.detach())
        sums["entropy"] += float(entropy_sum.detach())
        sums["ratio"] += float(off.sum()) + float(mask.sum())
        sums["clipped"] += float((off.abs() > algorithm.clip).sum())
        sums["approx_kl"] += float(loss.k3(old, logp).sum())
        deviation = max(deviation, float(off.abs().max()))
    critic_norm = models.critic.step() if models.critic is not None else 0.0
    return Step(sums, deviation, models.policy.step() if setup.train_policy else 0.0, critic_norm)


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
    names = ["tokens", *(critic if setup.models.critic else []), *(policy if setup.train_policy else [])]
    total = ranks.sums({name: sum(s.sums[name] for s in steps) for name in names})
    tokens = total["tokens"]
    skipped = sum((not math.isfinite(s.norm)) + (not math.isfinite(s.critic_norm)) for s in steps)
    metrics = {"optimiser_steps": float(len(steps)), "skipped_steps": float(skipped)}
    if setup.models.critic is not None:
        metrics |= {
            "value_loss": total["value_loss"] / tokens,
            "critic_grad_norm": _mean([s.critic_norm for s in steps]),
        }
    if not setup.train_policy:
        return metrics
    first = ranks.sums({name: steps[0].sums[name] for name in ("ratio", "tokens")})
    return metrics | {
        "policy_loss": total["policy_loss"] / tokens,
        "entropy": total["entropy"] / tokens,
        "clip_fraction": total["clipped"] / tokens,
        "approx_kl": total["approx_kl"] / tokens,
        "grad_norm": _mean([s.norm for s in steps]),
        # Before the first step the policy is still the one that `old` came from: anything but 1 is a bug.
        "first_ratio": first["ratio"] / first["tokens"],
        "first_ratio_deviation": ranks.max(steps[0].deviation),
    }


def _mean(norms: Sequence[float]) -> float:
    finite = [n for n in norms if math.isfinite(n)]
    return sum(finite) / len(finite) if finite else float("nan")
