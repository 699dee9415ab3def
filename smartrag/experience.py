"""What an update knows before its first optimiser step: log-probs, values, KL-shaped rewards, advantages.

Shapes: B trajectories of this rank, T tokens of the longest.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from smartrag import advantage, loss, packing
from smartrag.actor_critic import Separate, Shared, rows
from smartrag.choices import Advantage, KLIn, Mean, Role
from smartrag.config import Algorithm
from smartrag.ranks import Ranks
from smartrag.types import Batch


@dataclass(frozen=True, slots=True)
class Experience:
    """All [B, T] on the CPU, zero off the mask."""

    batch: Batch
    old: Tensor  # log-probs of the policy as it is now
    reference: Tensor  # log-probs of the reference
    values: Tensor  # V of the state in which token t was chosen
    advantages: Tensor
    returns: Tensor
    weights: Tensor  # of each token in the policy loss: truncated importance weights, balanced over roles if wanted
    computed: int  # tokens of this rank's forward passes, padding included


@torch.no_grad()
def gather(
    batch: Batch,
    models: Separate | Shared,
    algorithm: Algorithm,
    ranks: Ranks,
    *,
    kl_coef: float,
    micro_batch_tokens: int,
) -> Experience:
    """With `kl_in=reward`, rewards are shaped by the KL penalty before advantages are taken from them:

    r̃ₜ = rₜ − β KL̂(π_old ‖ π_ref)ₜ        k1 is that of Ziegler et al. 2019, arXiv 1909.08593, eq. 2
    """
    old, reference, after = (torch.zeros(batch.mask.shape) for _ in range(3))
    sizes = packing.lengths(batch)
    plan = packing.plan(sizes, micro_batch_tokens)
    for some in ranks.equal_counts(plan):
        part = packing.pack(batch, some)
        x = rows(part, algorithm.temperature, ranks.device)
        logp, values_after = models.score(x)
        part.spread(logp, old)
        part.spread(models.reference(*x)[0], reference)
        if values_after is not None:
            part.spread(values_after, after)

    rewards = batch.rewards
    if algorithm.kl_in is KLIn.reward:
        rewards = rewards - kl_coef * torch.where(batch.mask, loss.kl(algorithm.kl, old, reference), 0.0)
    values = torch.where(batch.mask, advantage.state_values(after), 0.0)
    end = advantage.bootstrap(after, batch.attention_mask, batch.truncated)
    advantages, returns = _advantages(batch, rewards, values, end, algorithm, ranks)
    _, weights = _weights(old, batch, algorithm)
    if algorithm.loss_mean is Mean.role:
        weights = weights * role_weights(batch, ranks)
    weights = torch.where(batch.mask, weights, 0.0)
    computed = packing.computed_tokens(sizes, plan)
    return Experience(batch, old, reference, values, advantages, returns, weights, computed)


def _advantages(
    batch: Batch, rewards: Tensor, values: Tensor, end: Tensor, algorithm: Algorithm, ranks: Ranks
) -> tuple[Tensor, Tensor]:
    """(Â, R̂), [B, T]; R̂ is zero without a critic. The samples of one question may lie on several ranks."""
    mask, nothing = batch.mask, torch.zeros_like(rewards)
    match algorithm.advantage:
        case Advantage.gae:
            return advantage.gae(rewards, values, mask, end, algorithm.gamma, algorithm.lam)
        case Advantage.turn_gae:
            return advantage.turn_gae(rewards, values, mask, end, algorithm.gamma, algorithm.lam)
        case Advantage.reinforce_pp:
            return advantage.returns_to_go(rewards, mask, algorithm.gamma), nothing
        case Advantage.rloo | Advantage.grpo:
            compare = advantage.rloo if algorithm.advantage is Advantage.rloo else advantage.grpo
            episode = torch.where(mask, rewards, 0.0).sum(1)  # [B]
            count = 1 + int(ranks.max(float(batch.groups.max())))
            real = mask.any(1)  # not so of `batch.nothing`
            totals = ranks.sum(advantage.group_totals(episode[real], batch.groups[real], count))
            return torch.where(mask, compare(episode, totals[batch.groups])[:, None], 0.0), nothing


def _weights(old: Tensor, batch: Batch, algorithm: Algorithm) -> tuple[Tensor, Tensor]:
    return loss.importance_weights(old, batch.logprobs, batch.mask, algorithm.importance_cap, algorithm.importance)


def role_weights(batch: Batch, ranks: Ranks) -> Tensor:
    """[B, T], with which a sum over tokens is one over roles: w = n / (|R| n_r), of the |R| roles that play at all.

    (1/n) Σₜ wₜ ℓₜ = (1/|R|) Σ_r (1/n_r) Σ_{t of r} ℓₜ,  n_r tokens of role r on all ranks, n = Σ n_r
    """
    counts = ranks.sum(torch.stack([(batch.roles == place).sum() for place in range(len(Role))]).double())
    weights = counts.sum() / (counts.count_nonzero() * counts.clamp(min=1))  # [roles]
    return torch.where(batch.mask, weights[batch.roles.clamp(min=0)].float(), 0.0)


def whitened_advantages(exp: Experience, ranks: Ranks) -> Tensor:
    """(Â − μ) / σ with μ and σ over the policy tokens of all ranks, [B, T]."""
    mean, variance = _global_moments(exp.advantages, exp.batch.mask, ranks)
    return advantage.whiten(exp.advantages, exp.batch.mask, mean, variance)


def metrics(exp: Experience, algorithm: Algorithm, ranks: Ranks) -> dict[str, float]:
    """What the rollout looked like to the learner, before anything was learned from it. Over all ranks."""
    mask, engine = exp.batch.mask, exp.batch.logprobs
    w, _ = _weights(exp.old, exp.batch, algorithm)
    total = ranks.sums(
        {
            "tokens": float(mask.sum()),
            "episodes": float(mask.any(1).sum()),
            "computed": float(exp.computed),
            "real": float(exp.batch.attention_mask.sum()),
            "kl": float(loss.masked_sum(loss.k1(exp.old, exp.reference), mask)),
            "gap": float(loss.masked_sum(loss.k3(engine, exp.old), mask)),
            "cut": float(loss.masked_sum((w > algorithm.importance_cap).float(), mask)),
            "w": float(loss.masked_sum(w, mask)),
            "w2": float(loss.masked_sum(w**2, mask)),
        }
    )
    tokens = total["tokens"]
    mean, variance = _global_moments(exp.advantages, mask, ranks)
    found = {
        "policy_tokens": tokens,
        "padding": 1 - total["real"] / total["computed"],
        "kl_ref": total["kl"] / tokens,
        "kl_ref_episode": total["kl"] / total["episodes"],
        "engine_gap_k3": total["gap"] / tokens,
        "engine_gap_max": ranks.max(float(torch.where(mask, exp.old - engine, 0.0).abs().max())),
        "is_clipped_fraction": total["cut"] / tokens,
        "ess": loss.effective_sample_share(tokens, total["w"], total["w2"]),
        "advantage_mean": float(mean),
        "advantage_std": float(variance.sqrt()),
    }
    if not algorithm.advantage.has_critic:
        return found
    _, unexplained = _global_moments(exp.returns - exp.values, mask, ranks)
    _, spread = _global_moments(exp.returns, mask, ranks)
    return found | {"explained_variance": float(1 - unexplained / spread.clamp(min=1e-12))}


def _global_moments(x: Tensor, mask: Tensor, ranks: Ranks) -> tuple[Tensor, Tensor]:
    return advantage.mean_and_variance(ranks.sum(advantage.moments(x, mask)))
