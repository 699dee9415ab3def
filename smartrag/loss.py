"""The losses of PPO as sums over policy tokens.

Every loss is a SUM: the caller divides by the number of policy tokens of the optimiser step over all ranks and
micro-batches, so that how a batch is cut never changes the gradient. Masks select by `where`: a NaN under a False mask
must not leak, and 0 · NaN is NaN.

Shapes: B trajectories, T tokens, N policy tokens, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from smartrag.choices import KL, Importance

_CHUNK_LOGITS = 1 << 25  # float32 logits alive at once: 128 MiB, and a few times that in the backward pass
_LARGEST_LOG_RATIO = 20.0  # e²⁰: an honest ratio is near 1; beyond this exp would only make infinities


def token_logprobs(logits: Tensor, tokens: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """log π(aᵢ | sᵢ) and the entropy H(π(· | sᵢ)) of the distribution softmax(logits / temperature), both [N] float32.

    logits: [N, V] in any precision; tokens: [N]. Only chunks of them become float32 at a time, and are computed anew in
    the backward pass.
    """
    rows = max(1, _CHUNK_LOGITS // logits.shape[-1])
    if logits.shape[0] <= rows:
        return _token_logprobs(logits, tokens, temperature)
    parts = [
        checkpoint(_token_logprobs, *part, temperature, use_reentrant=False)
        for part in zip(logits.split(rows), tokens.split(rows), strict=True)
    ]
    return torch.cat([logp for logp, _ in parts]), torch.cat([entropy for _, entropy in parts])


def _token_logprobs(logits: Tensor, tokens: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    logp = F.log_softmax(logits.float() / temperature, dim=-1)  # [n, V]
    return logp.gather(-1, tokens[:, None])[:, 0], -(logp.exp() * logp).sum(-1)


def masked_sum(x: Tensor, mask: Tensor) -> Tensor:
    """Σ x over mask. x, mask: [B, T]."""
    return torch.where(mask, x, 0.0).sum()


def ratio(logp: Tensor, old: Tensor) -> Tensor:
    """rₜ(θ) = π_θ(aₜ | sₜ) / π_old(aₜ | sₜ), elementwise."""
    return (logp - old).clamp(-_LARGEST_LOG_RATIO, _LARGEST_LOG_RATIO).exp()


def clipped_surrogate(
    logp: Tensor, old: Tensor, advantages: Tensor, weights: Tensor, mask: Tensor, clip: float
) -> Tensor:
    """Policy loss (Schulman et al. 2017, arXiv 1707.06347, eq. 7), each token weighted for the policy that sampled it.

    L = − Σₜ wₜ min(rₜ Âₜ, clip(rₜ, 1−ε, 1+ε) Âₜ)

    All [B, T]; weights: see `importance_weights`. Returns a scalar.
    """
    r = ratio(torch.where(mask, logp, 0.0), torch.where(mask, old, 0.0))
    surrogate = torch.minimum(r * advantages, r.clamp(1 - clip, 1 + clip) * advantages)
    return -masked_sum(weights * surrogate, mask)


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, clip: float | None) -> Tensor:
    """½ Σₜ (V(sₜ) − R̂ₜ)², or with clip ε the larger of it and that of V_old + clip(V − V_old, −ε, ε). All [B, T].

    The clipped form is that of the PPO baseline implementation (Engstrom et al. 2020, arXiv 2005.12729, section 2).
    """
    squared = (torch.where(mask, values, 0.0) - returns) ** 2
    if clip is not None:
        near = old_values + (values - old_values).clamp(-clip, clip)
        squared = torch.maximum(squared, (torch.where(mask, near, 0.0) - returns) ** 2)
    return 0.5 * masked_sum(squared, mask)


# ---------------------------------------------------------------------------------------------------------------------
# Estimators of KL(p ‖ q) from samples of p (Schulman 2020, joschu.net/blog/kl-approx.html), elementwise.
# With d = log p − log q of the sampled token; all three have the right mean or nearly so, k3 is never negative.


def k1(logp: Tensor, logq: Tensor) -> Tensor:
    """d. Unbiased; large variance."""
    return logp - logq


def k2(logp: Tensor, logq: Tensor) -> Tensor:
    """d² / 2. Biased; small variance."""
    return (logp - logq) ** 2 / 2


def k3(logp: Tensor, logq: Tensor) -> Tensor:
    """e⁻ᵈ − 1 + d. Unbiased; small variance."""
    d = (logp - logq).clamp(-_LARGEST_LOG_RATIO, _LARGEST_LOG_RATIO)
    return torch.expm1(-d) + d


def kl(kind: KL, logp: Tensor, logq: Tensor) -> Tensor:
    """The estimator that `kind` names. As a loss, k2 has the gradient of KL(p ‖ q) and k3 nearly so; k1 has none."""
    return {KL.k1: k1, KL.k2: k2, KL.k3: k3}[kind](logp, logq)


# ---------------------------------------------------------------------------------------------------------------------
# The engine that sampled and the learner that learns never agree exactly on a log-prob, even of the same weights.


def importance_weights(
    learner: Tensor, engine: Tensor, mask: Tensor, cap: float, level: Importance
) -> tuple[Tensor, Tensor]:
    """w = π_learner / π_engine and min(w, cap): truncated importance sampling (Ionides 2008, eq. 3).

    Of each token; or of each row's policy tokens together, Π wₜ, which is the unbiased one and varies more; or 1.
    All [B, T], 1 where mask is False.
    """
    gap = torch.where(mask, learner - engine, 0.0)
    match level:
        case Importance.none:
            gap = torch.zeros_like(gap)
        case Importance.sequence:
            gap = torch.where(mask, gap.sum(1, keepdim=True), 0.0)
        case Importance.token:
            pass
    w = ratio(gap, torch.zeros_like(gap))
    return w, w.clamp(max=cap)


def effective_sample_share(n: float, sum_w: float, sum_w2: float) -> float:
    """ESS / n = (Σw)² / (n Σw²), in (0, 1]; 1 when all weights are equal (Kong 1992). From sums over all ranks."""
    return sum_w**2 / max(n * sum_w2, 1e-12)


@dataclass(frozen=True, slots=True)
class KLController:
    """Keeps the KL to the reference near a target by moving β (Ziegler et al. 2019, arXiv 1909.08593, section 2.2).

    e = clip((KL − target) / target, −0.2, 0.2)        β ← β (1 + 0.1 e)
    """

    coefficient: float  # β
    target: float | None  # nats per episode; None: β stays

    def after(self, kl: float) -> "KLController":
        """The controller for the next step, given this step's KL in nats per episode."""
        if self.target is None or kl != kl:  # a NaN says nothing about where to go
            return self
        error = min(max((kl - self.target) / self.target, -0.2), 0.2)
        return KLController(self.coefficient * (1 + 0.1 * error), self.target)
