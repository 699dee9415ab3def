"""Packed rows: every token once, nothing seen across trajectories, the same log-probs, values and gradients."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import GPT2Config, GPT2LMHeadModel

from smartrag.batch import collate
from smartrag.model import Critic, Policy
from smartrag.packing import computed_tokens, lengths, pack, plan
from tests import tiny


def test_a_plan_by_hand() -> None:
    # Rows of 9: [9], [5, 3], [2]: 27 tokens. Rows of 10: [5, 3, 2] and [9]: 20. Wider ones leave as many or more.
    assert plan([5, 2, 9, 3], budget=20) == [[[0, 3, 1], [2]]]
    assert plan([5, 2, 9, 3], budget=19) == [[[0, 3, 1]], [[2]]], "two rows of 10 are too many tokens"
    assert plan([5, 2, 9, 3], budget=9) == [[[2]], [[0, 3]], [[1]]], "no row is wider than the budget"
    assert plan([5, 2, 9, 3], budget=10, chosen=[1, 3]) == [[[3], [1]]], "2 does not fit beside 3 in half again as much"
    assert computed_tokens([5, 2, 9, 3], [[[2], [0, 3]], [[1]]]) == 2 * 9 + 2
    assert plan([], budget=9) == []


@given(st.lists(st.integers(2, 50), min_size=1, max_size=60), st.integers(2, 200))
def test_a_plan_holds_every_trajectory_once_and_keeps_the_budget(sizes: list[int], budget: int) -> None:
    parts = plan(sizes, budget)
    assert sorted(i for part in parts for row in part for i in row) == list(range(len(sizes)))
    for part in parts:
        widths = [sum(sizes[i] for i in row) for row in part]
        assert max(widths) <= max(*sizes, min(budget, 1.5 * max(sizes)))
        assert len(part) == 1 or len(part) * max(widths) <= budget


def test_rows_as_pictures() -> None:
    episodes = tiny.trajectories(3)
    batch = collate(episodes, pad_id=9)
    a, b, c = lengths(batch)
    packed = pack(batch, [[1, 0], [2]])
    width = max(a + b, c)
    assert packed.token_ids.shape == (2, width)
    assert packed.token_ids[0, : a + b].tolist() == [*episodes[1].token_ids, *episodes[0].token_ids]
    assert packed.mask[0, : a + b].tolist() == [*episodes[1].mask, *episodes[0].mask]
    assert packed.positions[0, : a + b].tolist() == [*range(b), *range(a)]
    assert packed.positions[1].tolist() == list(range(width)), "one trajectory and its padding count on"
    assert not packed.mask[1, c:].any()
    assert packed.lay(batch.rewards).sum() == pytest.approx(float(batch.rewards.sum()))
    back = torch.full(batch.rewards.shape, 7.0)
    packed.spread(packed.lay(batch.rewards), back)
    assert torch.equal(back[batch.attention_mask], batch.rewards[batch.attention_mask])
    assert (back[~batch.attention_mask] == 7).all()


def test_a_rank_that_has_run_out_learns_nothing() -> None:
    batch = collate(tiny.trajectories(2), 0)
    nothing, untouched = pack(batch, []), torch.zeros(batch.mask.shape)
    assert nothing.token_ids.shape == (1, 2)
    assert not nothing.mask.any()
    nothing.spread(torch.ones(1, 2), untouched)
    assert not untouched.any()


def test_packed_and_alone_give_the_same_numbers_and_gradients() -> None:
    episodes = tiny.trajectories(9)
    batch = collate(episodes, 0)
    found = []
    for rows in ([[[i]] for i in range(9)], plan(lengths(batch), 10_000)):
        policy, critic = Policy(tiny.llama(0)), Critic(tiny.llama(0))
        logp, values = torch.zeros(batch.mask.shape), torch.zeros(batch.mask.shape)
        for part in rows:
            packed = pack(batch, part)
            scored, entropy = policy(packed.token_ids, packed.mask, 0.8, packed.positions)
            valued = critic(packed.token_ids, packed.positions)
            (scored.sum() + 0.1 * entropy.sum() + (packed.lay(batch.rewards) * valued).sum()).backward()
            packed.spread(scored.detach(), logp)
            packed.spread(valued.detach(), values)
        gradients = [p.grad for m in (policy, critic) for p in m.parameters()]
        found.append((logp, values[batch.attention_mask], *gradients))
    assert len(plan(lengths(batch), 10_000)[0]) < 9, "some rows hold several"
    for alone, together in zip(*found, strict=True):
        torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)


def test_learned_positions_pack_too_and_a_model_that_mixes_rows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    lm = GPT2LMHeadModel(GPT2Config(vocab_size=260, n_embd=32, n_layer=2, n_head=2, initializer_range=0.5))
    lm.config.resid_pdrop = lm.config.attn_pdrop = lm.config.embd_pdrop = 0.0
    Policy(lm.eval())
    blind = lm.forward
    monkeypatch.setattr(lm, "forward", lambda input_ids, position_ids=None, **more: blind(input_ids, **more))
    with pytest.raises(ValueError, match="mixes trajectories"):
        Policy(lm)
