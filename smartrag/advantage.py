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


def turn_gae(
    rewards: Tensor, values: Tensor, mask: Tensor, end_value: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """`gae` over turns: a turn (one run of policy tokens) is one decision, its reward their sum, its state the one in
    which its first token was chosen. Every token of the turn gets the turn's Â and R̂ (Zhou et al. 2024, ArCHer,
    arXiv 2402.19446, treats turns so). Credit then does not fade with a turn's length.
    """
    before = torch.cat([torch.zeros_like(mask[:, :1]), mask[:, :-1]], dim=1)
    starts = mask & ~before
    turns = torch.where(mask, starts.cumsum(1), 0)  # [B, T] 1, 2, ... on policy tokens, 0 elsewhere
    width = int(turns.max()) + 1
    slots = rewards.new_zeros(len(mask), width)
    sums = slots.scatter_add(1, turns, torch.where(mask, rewards, 0.0))
    firsts = slots.scatter_add(1, turns, torch.where(starts, values, 0.0))
    there = torch.arange(width, device=mask.device) <= turns.max(1, keepdim=True).values
    there[:, 0] = False
    advantages, returns = gae(sums, firsts, there, end_value, gamma, lam)
    return tuple(torch.where(mask, x.gather(1, turns), 0.0) for x in (advantages, returns))  # type: ignore[return-value]


def returns_to_go(rewards: Tensor, mask: Tensor, gamma: float) -> Tensor:
    """Gᵢ = rᵢ + γ Gᵢ₊₁ over policy tokens, [B, T]: REINFORCE++'s advantage before whitening (Hu 2025, arXiv
    2501.03262), the KL being in the rewards already."""
    nothing = torch.zeros_like(rewards)
    return gae(rewards, nothing, mask, nothing[:, 0], gamma, 1.0)[0]


def group_totals(returns: Tensor, groups: Tensor, count: int) -> Tensor:
    """(n, ΣR, ΣR²) of each of `count` groups as float64, [count, 3]: what ranks add up. returns, groups: [B]."""
    r = returns.double()
    rows = torch.stack([torch.ones_like(r), r, r**2], dim=1)
    return torch.zeros(count, 3, dtype=torch.float64).index_add(0, groups, rows)


def rloo(returns: Tensor, totals: Tensor) -> Tensor:
    """Rᵢ − mean of the other samples' returns, [B]; 0 for a sample without others (Ahmadian et al. 2024, arXiv
    2402.14740). `totals`: [B, 3], the row of `group_totals` of each sample's group."""
    n, total, _ = totals.unbind(1)
    others = (total - returns) / (n - 1).clamp(min=1)
    return torch.where(n > 1, returns - others, 0.0).to(returns.dtype)


def grpo(returns: Tensor, totals: Tensor) -> Tensor:
    """(Rᵢ − mean) / (standard deviation + 10⁻⁴) over the samples of the question, [B] (Shao et al. 2024, arXiv
    2402.03300, section 4.1.2). The deviation is the sample's, n − 1. Equal returns give 0. `totals` as in `rloo`."""
    n, total, squares = totals.unbind(1)
    mean = total / n
    variance = (squares - n * mean**2).clamp(min=0) / (n - 1).clamp(min=1)
    return ((returns - mean) / (variance.sqrt() + 1e-4)).to(returns.dtype)


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
