"""PPO's losses, and a whole optimiser step, against an implementation of their own: one token at a time, in float64.

Values and gradients; the gradients are autograd's on both sides, through formulas written differently.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from smartrag import loss
from smartrag.ranks import alone
from smartrag.types import Trajectory
from smartrag.update import update
from tests import tiny
from tests.smartrag.test_update import ALGORITHM, Side

SHAPE = (3, 7)
Estimator = Callable[[Tensor, Tensor], Tensor]


def drawn(seed: int, *names: str) -> dict[str, Tensor]:
    """Float64 tensors [B, T], near each other as log-probs or values of two policies are, and a mask."""
    g = torch.Generator().manual_seed(seed)
    made = {name: torch.randn(SHAPE, generator=g, dtype=torch.float64) * 0.4 for name in names}
    return made | {"mask": torch.rand(SHAPE, generator=g) > 0.4}


def agree(ours: Tensor, theirs: Tensor, *leaves: Tensor) -> None:
    """Two scalars of the same leaves: equal, and so are their gradients."""
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5, abs=1e-6)
    gradients = [torch.autograd.grad(scalar, leaves, retain_graph=True) for scalar in (ours, theirs)]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def per_token(x: dict[str, Tensor]) -> list[dict[str, Tensor]]:
    names = [name for name in x if name != "mask"]
    return [{name: x[name][i, j] for name in names} for i, j in x["mask"].nonzero().tolist()]


def surrogate(t: dict[str, Tensor], eps: float) -> Tensor:
    """−w r Â, but nothing to gain beyond the clip: Schulman et al. 2017, section 3, told case by case."""
    r = t["logp"].exp() / t["old"].exp()
    good = bool(t["adv"] > 0)
    if (good and r > 1 + eps) or (not good and r < 1 - eps):
        r = torch.tensor(1 + eps if good else 1 - eps, dtype=torch.float64)
    return -t["w"] * r * t["adv"]


def squared_error(t: dict[str, Tensor], clip: float | None) -> Tensor:
    plain = (t["v"] - t["ret"]).pow(2)
    if clip is None:
        return plain / 2
    moved = t["v"] - t["old_v"]
    held = t["old_v"] + (moved if abs(moved) <= clip else clip * torch.sign(moved).detach())
    return max(plain, (held - t["ret"]).pow(2)) / 2


@pytest.mark.parametrize("seed", range(4))
def test_the_clipped_surrogate(seed: int) -> None:
    x = drawn(seed, "logp", "old", "adv", "w")
    x["logp"].requires_grad_()
    ours = loss.clipped_surrogate(x["logp"], x["old"], x["adv"], x["w"], x["mask"], 0.2)
    agree(ours, sum((surrogate(t, 0.2) for t in per_token(x)), start=0 * x["logp"].sum()), x["logp"])


@pytest.mark.parametrize("clip", [None, 0.1, 0.5])
def test_the_value_loss(clip: float | None) -> None:
    x = drawn(5, "v", "old_v", "ret")
    x["v"].requires_grad_()
    ours = loss.value_loss(x["v"], x["old_v"], x["ret"], x["mask"], clip)
    agree(ours, sum((squared_error(t, clip) for t in per_token(x)), start=0 * x["v"].sum()), x["v"])


def test_log_probs_and_entropy_of_logits() -> None:
    g = torch.Generator().manual_seed(6)
    logits = torch.randn(9, 11, generator=g, dtype=torch.float64, requires_grad=True)
    tokens, weights = torch.randint(11, (9,), generator=g), torch.randn(9, generator=g, dtype=torch.float64)
    logp, entropy = loss.token_logprobs(logits, tokens, 0.7)
    rows = [(row / 0.7).exp() / (row / 0.7).exp().sum() for row in logits]
    agree((weights * logp).sum(), sum(w * p[a].log() for w, p, a in zip(weights, rows, tokens, strict=True)), logits)
    agree(
        (weights * entropy).sum(),
        sum(w * sum(-q * q.log() for q in p) for w, p in zip(weights, rows, strict=True)),
        logits,
    )


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (loss.k1, lambda p, q: (p / q).log()),
        (loss.k2, lambda p, q: 0.5 * (p / q).log().pow(2)),
        (loss.k3, lambda p, q: q / p - 1 - (q / p).log()),
    ],
)
def test_the_kl_estimators(ours: Estimator, theirs: Estimator) -> None:
    x = drawn(7, "logp", "ref")
    for leaf in (x["logp"], x["ref"]):
        leaf.requires_grad_()
    agree(
        loss.masked_sum(ours(x["logp"], x["ref"]), x["mask"]),
        sum(theirs(t["logp"].exp(), t["ref"].exp()) for t in per_token(x)),
        x["logp"],
        x["ref"],
    )


# ---------------------------------------------------------------------------------------------------------------------
# The first optimiser step of an update, from nothing but tokens, rewards and the models


def chosen_logprobs(lm: nn.Module, t: Trajectory) -> list[Tensor]:
    """Log-softmax over the vocabulary at the position before each policy token, the trajectory by itself, unpadded."""
    rows = lm(torch.tensor([t.token_ids])).logits[0] / ALGORITHM.temperature
    return [rows[i - 1] - rows[i - 1].logsumexp(-1) for i, chosen in enumerate(t.mask) if chosen]


def compressed_gae(rewards: Sequence[float], values: Sequence[float], end: float) -> list[float]:
    advantages, later, following = [], 0.0, end
    for r, v in zip(reversed(rewards), reversed(values), strict=True):
        later = r + ALGORITHM.gamma * following - v + ALGORITHM.gamma * ALGORITHM.lam * later
        following = v
        advantages.append(later)
    return advantages[::-1]


def reference_losses(episodes: Sequence[Trajectory], side: Side) -> tuple[Tensor, Tensor]:
    """(policy loss, critic loss) before the first step: nobody has moved yet, so every ratio is 1 with a gradient."""
    reference, policy, critic = side.setup.models.reference, side.policy.module, side.critic.module
    advantages, returns, values, logps, entropies, weights = [], [], [], [], [], []
    for t in episodes:
        places = [i for i, chosen in enumerate(t.mask) if chosen]
        tokens = [t.token_ids[i] for i in places]
        rows = chosen_logprobs(policy.lm, t)
        with torch.no_grad():
            anchors = chosen_logprobs(reference.lm, t)  # type: ignore[attr-defined]
        after = critic(torch.tensor([t.token_ids]))[0]
        logp = [row[a] for row, a in zip(rows, tokens, strict=True)]
        now = torch.stack(logp).tolist()
        kl = [p - float(q[a]) for p, q, a in zip(now, anchors, tokens, strict=True)]
        shaped = [t.rewards[i] - side.setup.kl_coef * k for i, k in zip(places, kl, strict=True)]
        v = after[[i - 1 for i in places]]
        a = compressed_gae(shaped, v.tolist(), after[-1].item() if t.truncated else 0.0)
        advantages += a
        returns += [x + y for x, y in zip(a, v.tolist(), strict=True)]
        values += list(v)
        logps += logp
        entropies += [-(row.exp() * row).sum() for row in rows]
        off = [math.exp(p - t.logprobs[i]) for p, i in zip(now, places, strict=True)]
        weights += [min(ALGORITHM.importance_cap, w) for w in off]
    whole = torch.tensor(advantages, dtype=torch.float64)
    white = (whole - whole.mean()) / (whole.var(correction=0) + 1e-8).sqrt()
    terms = zip(weights, logps, white.tolist(), entropies, strict=True)
    policy_loss = sum(-w * (p - p.detach()).exp() * a - ALGORITHM.entropy_coef * h for w, p, a, h in terms)
    value_loss = sum((v - r).pow(2) / 2 for v, r in zip(values, returns, strict=True))
    return policy_loss / len(logps), value_loss / len(logps)


def test_the_gradients_of_a_whole_update() -> None:
    """Two-turn episodes with passages between, some truncated; KL in the reward, whitening, off-policy weights."""

    class Watched(tiny.PlainEngine):
        def step(self) -> float:
            self.found = [p.grad.clone() for p in self.module.parameters()]
            return super().step()

    episodes = tiny.trajectories(7)
    side = Side(alone())
    engines = [Watched(engine.module, alone()) for engine in (side.policy, side.critic)]
    losses = reference_losses(episodes, side)
    wanted = [
        torch.autograd.grad(total, list(engine.module.parameters()))
        for total, engine in zip(losses, engines, strict=True)
    ]
    setup = replace(
        side.setup,
        models=replace(side.setup.models, policy=engines[0], critic=engines[1]),
        algorithm=replace(ALGORITHM, epochs=1),
        micro_batch_tokens=150,
    )
    metrics = update([episodes], setup)
    assert metrics["value_loss"] == pytest.approx(losses[1].item(), rel=1e-4)
    assert metrics["policy_loss"] - ALGORITHM.entropy_coef * metrics["entropy"] == pytest.approx(
        float(losses[0]), rel=1e-3
    )
    for engine, gradients in zip(engines, wanted, strict=True):
        assert max(float(g.abs().max()) for g in gradients) > 1e-2
        for ours, theirs in zip(engine.found, gradients, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
