"""Losses against numbers worked out by hand and an independent numpy implementation."""

import math

import numpy as np
import pytest
import torch

from smartrag import loss
from smartrag.choices import KL, Importance
from smartrag.loss import KLController

ON = torch.tensor([[True, True, True]])


def row(*x: float) -> torch.Tensor:
    return torch.tensor([x], dtype=torch.float32)


def test_token_logprobs_by_hand() -> None:
    logits = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]])
    logp, entropy = loss.token_logprobs(logits, torch.tensor([1, 0]), temperature=1.0)
    assert logp.tolist() == pytest.approx([math.log(0.5), math.log(0.75)])
    assert entropy.tolist() == pytest.approx([math.log(2), -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))])
    cold, _ = loss.token_logprobs(logits, torch.tensor([1, 0]), temperature=0.5)  # logits double: 9 to 1
    assert cold[1].item() == pytest.approx(math.log(0.9))


def test_token_logprobs_in_chunks_are_the_same_and_so_are_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, tokens = torch.randn(50, 33), torch.randint(33, (50,))
    results = []
    for chunk in (1 << 25, 100):  # at once, and 3 rows at a time
        monkeypatch.setattr(loss, "_CHUNK_LOGITS", chunk)
        x = logits.clone().requires_grad_()
        logp, entropy = loss.token_logprobs(x, tokens, 0.7)
        (logp.sum() - 0.1 * entropy.sum()).backward()
        results.append((logp, entropy, x.grad))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_clipped_surrogate_by_hand() -> None:
    # ratios 1, 2, 2 with advantages 3, 1, −1: min(3, 3) + min(2, 1.2) + min(−2, −1.2) = 3 + 1.2 − 2; weights 1, 1, ½
    logp, old = row(0.0, math.log(2), math.log(2)), row(0.0, 0.0, 0.0)
    got = loss.clipped_surrogate(logp, old, row(3, 1, -1), row(1, 1, 0.5), ON, clip=0.2)
    assert got.item() == pytest.approx(-(3 + 1.2 - 1))


def test_surrogate_gradient_is_zero_where_clipped() -> None:
    logp = row(math.log(2), math.log(2), math.log(0.5)).requires_grad_()
    loss.clipped_surrogate(logp, row(0.0, 0, 0), row(1, -1, -1), row(1.0, 1, 1), ON, 0.2).backward()
    assert logp.grad is not None
    assert logp.grad.tolist() == [pytest.approx([0.0, 2.0, 0.0])]


def test_losses_match_numpy() -> None:
    g = np.random.default_rng(0)
    logp, old, adv, w, v, v0, ret = (g.normal(size=(4, 9)).astype(np.float32) * 0.3 for _ in range(7))
    mask = g.random((4, 9)) > 0.5
    t = torch.from_numpy
    policy, value = 0.0, 0.0
    for i, j in zip(*np.nonzero(mask), strict=True):
        r = math.exp(logp[i, j] - old[i, j])
        policy -= w[i, j] * min(r * adv[i, j], min(max(r, 0.9), 1.1) * adv[i, j])
        near = v0[i, j] + min(max(v[i, j] - v0[i, j], -0.1), 0.1)
        value += 0.5 * max((v[i, j] - ret[i, j]) ** 2, (near - ret[i, j]) ** 2)
    got = loss.clipped_surrogate(t(logp), t(old), t(adv), t(w), t(mask), 0.1)
    assert got.item() == pytest.approx(policy, abs=1e-5)
    assert loss.value_loss(t(v), t(v0), t(ret), t(mask), 0.1).item() == pytest.approx(value, abs=1e-5)


def test_value_loss_by_hand() -> None:
    # errors 2, 0, 1: ½(4 + 0 + 1)
    args = (row(2, 1, 1), row(0, 1, 1), row(0, 1, 0), ON)
    assert loss.value_loss(*args, clip=None).item() == 2.5
    # a move that overshoots towards the target is held at V_old + ε, where the error is larger and the gradient zero
    v = row(1.0, 1, 1).requires_grad_()
    clipped = loss.value_loss(v, row(0.0, 1, 1), row(1.0, 1, 1), ON, clip=0.25)
    assert clipped.item() == pytest.approx(0.5 * 0.75**2)
    clipped.backward()
    assert v.grad is not None
    assert v.grad.tolist() == [[0, 0, 0]]


def test_nan_under_a_false_mask_leaks_neither_into_losses_nor_gradients() -> None:
    nan, mask = float("nan"), torch.tensor([[True, False]])
    logp, values = row(0.1, nan).requires_grad_(), row(0.5, nan).requires_grad_()
    policy = loss.clipped_surrogate(logp, row(0.0, nan), row(1, nan), row(1, nan), mask, 0.2)
    value = loss.value_loss(values, row(0.4, nan), row(1.0, nan), mask, 0.2)
    (policy + value).backward()
    assert math.isfinite(policy.item() + value.item())
    for x in (logp, values):
        assert x.grad is not None
        assert torch.isfinite(x.grad).all()
        assert x.grad[0, 1] == 0


def test_kl_estimators_against_the_exact_kl() -> None:
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.4, 0.4, 0.2])
    exact = (p * (p / q).log()).sum().item()
    for estimator in (loss.k1, loss.k3):  # unbiased: the expectation under p is the KL
        assert (p * estimator(p.log(), q.log())).sum().item() == pytest.approx(exact, abs=1e-6)
    assert (p * loss.k2(p.log(), q.log())).sum().item() == pytest.approx(exact, rel=0.1)
    assert (loss.k3(p.log(), q.log()) >= 0).all()
    assert loss.k3(row(math.log(2)), row(0.0)).item() == pytest.approx(0.5 - 1 + math.log(2))


def test_importance_weights_and_effective_sample_share() -> None:
    w, cut = loss.importance_weights(row(math.log(3), 0, -1), row(0.0, 0, 0), ON, 2.0, Importance.token)
    assert w.tolist() == [pytest.approx([3, 1, math.exp(-1)])]
    assert cut.tolist() == [pytest.approx([2, 1, math.exp(-1)])]
    assert loss.effective_sample_share(4, 8.0, 16.0) == 1.0  # four weights of 2
    assert loss.effective_sample_share(4, 1.0, 1.0) == 0.25  # one weight of 1, three of 0


def test_importance_of_whole_sequences_and_none() -> None:
    """Two episodes: 3 · ½ = 1½ and 5 · 1, cut at 4; what stands off the mask says nothing, not even a NaN."""
    learner = torch.tensor([[math.log(3), float("nan"), math.log(0.5)], [math.log(5), 0, 7.0]])
    mask = torch.tensor([[True, False, True], [True, True, False]])
    engine = torch.zeros(2, 3)
    w, cut = loss.importance_weights(learner, engine, mask, 4.0, Importance.sequence)
    assert w.tolist() == [pytest.approx([1.5, 1, 1.5]), pytest.approx([5, 5, 1])]
    assert cut.tolist() == [pytest.approx([1.5, 1, 1.5]), pytest.approx([4, 4, 1])]
    assert loss.importance_weights(learner, engine, mask, 4.0, Importance.none)[0].tolist() == [[1] * 3] * 2


def test_only_k2_and_k3_pull_towards_the_reference_as_losses() -> None:
    """The gradient of E_p[k] with samples from p held fixed, against that of KL(p ‖ q) itself, near p = q."""
    logits = torch.tensor([0.3, -0.1, 0.05], dtype=torch.float64, requires_grad=True)
    logq = torch.log_softmax(torch.tensor([0.1, 0.0, 0.2], dtype=torch.float64), 0)
    logp = torch.log_softmax(logits, 0)
    p = logp.exp().detach()
    (true,) = torch.autograd.grad((logp.exp() * (logp - logq)).sum(), logits, retain_graph=True)
    pulls = {k: torch.autograd.grad((p * loss.kl(k, logp, logq)).sum(), logits, retain_graph=True)[0] for k in KL}
    assert pulls[KL.k1].abs().max() < 1e-12
    torch.testing.assert_close(pulls[KL.k2], true)
    torch.testing.assert_close(pulls[KL.k3], true, rtol=0.3, atol=1e-3)


def test_kl_controller_moves_at_most_two_percent_a_step() -> None:
    at = KLController(0.1, target=2.0)
    assert at.after(2.0).coefficient == 0.1
    assert at.after(100.0).coefficient == pytest.approx(0.1 * 1.02)
    assert at.after(-100.0).coefficient == pytest.approx(0.1 * 0.98)
    assert at.after(2.2).coefficient == pytest.approx(0.1 * 1.01)  # error 0.1
    assert at.after(float("nan")) == at
    assert KLController(0.1, target=None).after(100.0).coefficient == 0.1
