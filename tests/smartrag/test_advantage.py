"""GAE that does not see observations, against numbers worked out by hand and against GAE on the compressed sequence."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from smartrag.advantage import (
    bootstrap,
    gae,
    group_totals,
    grpo,
    mean_and_variance,
    moments,
    returns_to_go,
    rloo,
    state_values,
    turn_gae,
    whiten,
)


def compressed(rewards: list[float], values: list[float], end: float, gamma: float, lam: float) -> list[float]:
    """The oracle: textbook GAE over a₁ … aₙ, forwards as a sum of (γλ)ʲ δᵢ₊ⱼ."""
    following = [*values[1:], end]
    deltas = [r + gamma * n - v for r, n, v in zip(rewards, following, values, strict=True)]
    return [sum((gamma * lam) ** (j - i) * deltas[j] for j in range(i, len(deltas))) for i in range(len(deltas))]


def row(*x: float) -> torch.Tensor:
    return torch.tensor([x], dtype=torch.float32)


def test_two_steps_by_hand() -> None:
    # δ₂ = 1 + 0 − 0.5 = 0.5; δ₁ = 0 + 0.9·0.5 − 0.25 = 0.2; Â₁ = 0.2 + 0.9·0.8·0.5 = 0.56
    mask = torch.tensor([[False, True, False, True]])
    a, r = gae(row(0, 0, 0, 1.0), row(7, 0.25, 9, 0.5), mask, torch.zeros(1), gamma=0.9, lam=0.8)
    assert a.tolist() == [pytest.approx([0, 0.56, 0, 0.5])]
    assert r.tolist() == [pytest.approx([0, 0.81, 0, 1.0])]


def test_a_passage_between_turns_neither_ends_the_episode_nor_decays_credit() -> None:
    """Winning episode, V = 0.5 everywhere, 300-token passage, γ = 1, λ = 0.95, 20 tokens of answer."""
    first, passage, answer = 5, 300, 20
    mask = torch.tensor([[False] * 3 + [True] * first + [False] * passage + [True] * answer])
    rewards = torch.zeros(mask.shape)
    rewards[0, -1] = 1.0
    values = torch.full(mask.shape, 0.5)
    last_of_turn_1 = 3 + first - 1

    def advantage(values: torch.Tensor, mask: torch.Tensor, lam: float = 0.95) -> float:
        return gae(rewards, values, mask, torch.zeros(1), 1.0, lam)[0][0, last_of_turn_1].item()

    everything = torch.ones_like(mask)
    assert advantage(torch.where(mask, values, 0.0), everything) == pytest.approx(-0.50, abs=5e-3)  # zeroed
    assert advantage(values, everything) == pytest.approx(0.00, abs=5e-3)  # run through
    assert advantage(values, mask) == pytest.approx(0.18, abs=5e-3)  # carried: ours
    for lam_one in (advantage(torch.where(mask, values, 0.0), everything, 1.0), advantage(values, mask, 1.0)):
        assert lam_one == pytest.approx(0.5, abs=1e-4)


def test_a_truncated_episode_goes_on_in_the_critics_eyes() -> None:
    after = row(0.1, 0.2, 0.3, 99.0)
    real = torch.tensor([[True, True, True, False]])
    assert bootstrap(after, real, torch.tensor([True])).tolist() == pytest.approx([0.3])
    assert bootstrap(after, real, torch.tensor([False])).tolist() == [0.0]
    a, _ = gae(row(0, 0, 0, 0), state_values(after), torch.tensor([[False, True, True, False]]), row(0.3)[0], 0.5, 0.0)
    assert a.tolist() == [pytest.approx([0, 0.5 * 0.2 - 0.1, 0.5 * 0.3 - 0.2, 0])]


def test_turns_as_decisions_by_hand() -> None:
    # δ₂ = 1 − 0.8 = 0.2; δ₁ = −0.2 + 0.9·0.8 − 0.5 = 0.02; Â₁ = 0.02 + 0.9·0.5·0.2 = 0.11; R̂ = 0.61, 1.0
    mask = torch.tensor([[False, True, True, False, False, True, True, True]])
    a, r = turn_gae(
        row(0, 0, -0.2, 0, 0, 0, 0, 1), row(9, 0.5, 9, 9, 9, 0.8, 9, 9), mask, torch.zeros(1), gamma=0.9, lam=0.5
    )
    assert a.tolist() == [pytest.approx([0, 0.11, 0.11, 0, 0, 0.2, 0.2, 0.2])]
    assert r.tolist() == [pytest.approx([0, 0.61, 0.61, 0, 0, 1.0, 1.0, 1.0])]


def test_turns_of_one_token_are_tokens_and_rows_do_not_mix() -> None:
    """Episodes of one and of three turns side by side, the longer one cut short: V of its end counts."""
    g = torch.Generator().manual_seed(0)
    mask = torch.tensor(
        [[False, True, False, False, False, False, False], [False, True, False, True, False, True, False]]
    )
    rewards, values = (torch.randn(mask.shape, generator=g) for _ in range(2))
    end = torch.tensor([0.0, 0.7])
    for ours, token in zip(
        turn_gae(rewards, values, mask, end, 0.9, 0.8), gae(rewards, values, mask, end, 0.9, 0.8), strict=True
    ):
        torch.testing.assert_close(ours, token)


def test_returns_to_go_by_hand() -> None:
    # G₃ = 2, G₂ = −0.2 + 0.5·2 = 0.8, G₁ = 0 + 0.5·0.8; the passage between costs nothing
    mask = torch.tensor([[False, True, True, False, False, True]])
    assert returns_to_go(row(0, 0, -0.2, 0, 0, 2), mask, 0.5).tolist() == [pytest.approx([0, 0.4, 0.8, 0, 0, 2])]


def test_samples_of_a_question_against_each_other_by_hand() -> None:
    # Group 0: 1, 2, 6, mean 3, deviation √((4 + 1 + 9) / 2) = √7, the others' means 4, 3.5, 1.5. Group 1: one alone.
    returns, groups = torch.tensor([1.0, 5.0, 2.0, 6.0]), torch.tensor([0, 1, 0, 0])
    totals = group_totals(returns, groups, 2)
    assert totals.tolist() == [[3, 9, 41], [1, 5, 25]]
    assert rloo(returns, totals[groups]).tolist() == pytest.approx([-3, 0, -1.5, 4.5])
    assert grpo(returns, totals[groups]).tolist() == pytest.approx([-2 / 7**0.5, 0, -1 / 7**0.5, 3 / 7**0.5], abs=1e-4)
    equal = torch.full((4,), 1.8)
    assert grpo(equal, group_totals(equal, groups, 2)[groups]).abs().max() < 1e-3, "rounding is not blown up"


def test_totals_of_ranks_add_up() -> None:
    returns, groups = torch.randn(9), torch.tensor([0, 1, 2] * 3)
    parts = group_totals(returns[:4], groups[:4], 3) + group_totals(returns[4:], groups[4:], 3)
    torch.testing.assert_close(parts, group_totals(returns, groups, 3))


def test_the_value_of_a_choice_is_that_before_the_token() -> None:
    assert state_values(row(1, 2, 3)).tolist() == [[0, 1, 2]]


numbers = st.floats(-3, 3, width=32)


@settings(max_examples=60)
@given(
    tokens=st.lists(st.tuples(st.booleans(), numbers, numbers), min_size=2, max_size=30).filter(
        lambda ts: any(t[0] for t in ts[1:])
    ),
    end=numbers,
    gamma=st.floats(0, 1),
    lam=st.floats(0, 1),
)
def test_equals_gae_of_the_compressed_sequence(
    tokens: list[tuple[bool, float, float]], end: float, gamma: float, lam: float
) -> None:
    mask = torch.tensor([[t[0] for t in tokens]])
    rewards = torch.tensor([[t[1] for t in tokens]])
    values = torch.tensor([[t[2] if t[0] else float("nan") for t in tokens]])  # what is never read may be anything
    a, r = gae(rewards, values, mask, torch.tensor([end]), gamma, lam)
    wanted = compressed(rewards[mask].tolist(), values[mask].tolist(), end, gamma, lam)
    np.testing.assert_allclose(a[mask].numpy(), wanted, atol=2e-4)
    np.testing.assert_allclose((r - a)[mask].numpy(), values[mask].numpy(), atol=2e-4)
    assert not a[~mask].any()
    assert not r[~mask].any()


@settings(max_examples=40)
@given(st.lists(st.tuples(st.booleans(), numbers), min_size=1, max_size=20))
def test_undiscounted_advantage_of_the_first_choice_is_the_sum_of_rewards(tokens: list[tuple[bool, float]]) -> None:
    mask = torch.tensor([[False, *(t[0] for t in tokens), True]])
    rewards = torch.tensor([[0.0, *(t[1] if t[0] else 0.0 for t in tokens), 1.0]])
    a, _ = gae(rewards, torch.zeros(mask.shape), mask, torch.zeros(1), 1.0, 1.0)
    assert a[mask][0].item() == pytest.approx(rewards.sum().item(), abs=1e-4)


def test_whitening_uses_the_sums_of_all_ranks_and_the_mask() -> None:
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(1)) * 3 + 2
    mask = torch.rand(4, 6, generator=torch.Generator().manual_seed(2)) > 0.4
    x[~mask] = float("nan")
    total = moments(x[:1], mask[:1]) + moments(x[1:], mask[1:])  # as two unequal ranks
    mean, variance = mean_and_variance(total)
    assert mean.item() == pytest.approx(x[mask].mean().item(), rel=1e-5)
    assert variance.item() == pytest.approx(x[mask].var(correction=0).item(), rel=1e-4)
    white = whiten(x, mask, mean, variance)
    assert white[mask].mean().item() == pytest.approx(0, abs=1e-5)
    assert white[mask].std(correction=0).item() == pytest.approx(1, abs=1e-4)
    assert not white[~mask].any()
