"""Trajectories as tensors, and how they are cut."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from smartrag.batch import collate, minibatches, shards
from smartrag.types import Trajectory


def made(id: str, length: int, *, reward: float = 1.0, truncated: bool = False) -> Trajectory:
    """One given token, then `length - 1` chosen ones."""
    mask = (False,) + (True,) * (length - 1)
    rewards = (0.0,) * (length - 1) + (reward,)
    ids, roles = tuple(range(1, length + 1)), (-1,) + (2,) * (length - 1)
    return Trajectory(id, ids, mask, (-0.5,) * length, rewards, (3,) * length, truncated, 0, roles)


def test_collate_pads_on_the_right() -> None:
    batch = collate([made("a", 2), made("b", 4, truncated=True)], pad_id=9)
    assert batch.token_ids.tolist() == [[1, 2, 9, 9], [1, 2, 3, 4]]
    assert batch.attention_mask.tolist() == [[True, True, False, False], [True] * 4]
    assert batch.mask.tolist() == [[False, True, False, False], [False, True, True, True]]
    assert batch.rewards.tolist() == [[0, 1, 0, 0], [0, 0, 0, 1]]
    assert batch.truncated.tolist() == [False, True]
    assert batch.roles.tolist() == [[-1, 2, -1, -1], [-1, 2, 2, 2]]
    assert batch.token_ids.dtype == torch.int64


def test_collate_refuses_what_could_not_be_learned_from() -> None:
    good = made("a", 3)
    with pytest.raises(ValueError, match="no trajectories"):
        collate([], 0)
    for mask, rewards, problem in [
        ((False,) * 3, (0.0,) * 3, "at least one the policy chose"),
        ((True,) * 3, (0.0,) * 3, "a first token that is given"),
        ((False, False, True), (0.0, -0.2, 1.0), "would be lost"),
        ((False, True), (0.0,) * 3, "differ in length"),
    ]:
        bad = replace(good, id="bad", mask=mask, rewards=rewards)
        with pytest.raises(ValueError, match=problem):
            collate([bad], 0)


def test_minibatches_depend_on_the_seed_alone() -> None:
    all_ = [made(f"t{i}", 2 + i % 5) for i in range(12)]
    parts = minibatches(all_, 4, seed=1)
    assert [len(p) for p in parts] == [3] * 4
    assert parts == minibatches(all_[::-1], 4, seed=1)  # not on the order of arrival
    assert parts != minibatches(all_, 4, seed=2)
    assert sorted(t.id for p in parts for t in p) == sorted(t.id for t in all_)


@given(st.lists(st.integers(2, 200), min_size=1, max_size=40), st.integers(1, 5))
def test_shards_are_equal_in_count_and_nearly_in_tokens(sizes: list[int], ranks: int) -> None:
    parts = shards([made(f"t{i}", n) for i, n in enumerate(sizes)], ranks)
    assert sorted(t.id for p in parts for t in p) == sorted(f"t{i}" for i in range(len(sizes)))
    counts = [len(p) for p in parts]
    assert max(counts) - min(counts) <= 1
    tokens = [sum(len(t.token_ids) for t in p) for p in parts]
    assert max(tokens) - min(tokens) <= 2 * max(sizes)
