"""Advantages of policy tokens. Observations (templates, passages, forced tags) are no steps of the decision process.

An episode's decisions are its policy tokens a₁ … aₙ, wherever they stand in the sequence. Everything here gives what
the same formula gives on the compressed sequence a₁ … aₙ: the state after aᵢ is the one in which aᵢ₊₁ is chosen, with
whatever observation lies between. (Zeroing the values of observations instead would end the episode at each passage;
running through them would decay credit by the passage's length.)

Shapes: B trajectories, T tokens. Values under a False mask are never read.
"""

import torch
from torch import Tensor


def state_values(values_after: Tensor) -> Tensor:
    """V of the state in which token t was chosen, [B, T], from the critic's V after token t, [B, T]."""
    return torch.cat([torch.zeros_like(values_after[:, :1]), values_after[:, :-1]], dim=1)


def bootstrap(values_after: Tensor, attention_mask: Tensor, truncated: Tensor) -> Tensor:
    """V(s_end), [B]: V after the last real token where the episode was cut short, 0 where it came to its end."""
    last = attention_mask.sum(1, keepdim=True) - 1
    return torch.where(truncated, values_after.gather(1, last)[:, 0], 0.0)


def gae(
    rewards: Tensor, values: Tensor, mask: Tensor, end_value: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation over policy tokens (Schulman et al. 2016, arXiv 1506.02438, eq. 11 and 16).

    δᵢ = rᵢ + γ V(sᵢ₊₁) − V(sᵢ)        Âᵢ = δᵢ + γλ Âᵢ₊₁        R̂ᵢ = Âᵢ + V(sᵢ)

    rewards, values, mask: [B, T], values[t] = V of the state in which token t was chosen; end_value: [B] = V(sₙ₊₁).
    Returns (Â, R̂), both [B, T], zero where mask is False.
    """
    advantages = torch.zeros_like(rewards)
    next_value, carried = end_value, torch.zeros_like(end_value)  # [B]
    for t in range(rewards.shape[1] - 1, -1, -1):
        chosen = mask[:, t]
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        carried = torch.where(chosen, delta + gamma * lam * carried, carried)
        next_value = torch.where(chosen, values[:, t], next_value)
        advantages[:, t] = torch.where(chosen, carried, 0.0)
    return advantages, torch.where(mask, advantages + values, 0.0)


def moments(x: Tensor, mask: Tensor) -> Tensor:
    """(n, Σx, Σx²) over mask as float64, [3]: what ranks add up to agree on a mean and a variance."""
    kept = x[mask].double()
    return torch.stack([torch.ones_like(kept).sum(), kept.sum(), (kept**2).sum()])


def mean_and_variance(total: Tensor) -> tuple[Tensor, Tensor]:
    """From summed `moments`. The variance is the population's."""
    n, s, s2 = total
    mean = s / n.clamp(min=1)
    return mean, (s2 / n.clamp(min=1) - mean**2).clamp(min=0)


def whiten(x: Tensor, mask: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """(x − μ) / √(σ² + 10⁻⁸) on mask, zero elsewhere, [B, T]. μ and σ² are those of the whole batch over all ranks."""
    return torch.where(mask, (x - mean) / torch.sqrt(variance + 1e-8), 0.0).to(x.dtype)
