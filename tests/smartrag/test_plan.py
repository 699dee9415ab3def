"""What a step asks, against a plan written out by hand, and the laws of mixing as properties."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smartrag.data.rows import DataError
from smartrag.plan import pools, set_counts, step_requests
from smartrag.types import EpisodeRequest, Question


def _pool(count: int, name: str = "q") -> tuple[Question, ...]:
    return tuple(Question(f"{name}{i}", f"{name} {i}?", ("a",), {"dataset": name}) for i in range(count))


def _plan(step: int, *pools: tuple[Question, ...], weights: tuple[float, ...] = (1.0,), **budget: list[int]) -> list:
    names = [pool[0].meta["dataset"] for pool in pools]
    return step_requests(
        7,
        step,
        dict(zip(names, pools, strict=True)),
        dict(zip(names, weights, strict=True)),
        episodes=6,
        samples=2,
        quotas=budget.get("quotas", [2]),
        ks=budget.get("ks", [4]),
    )


def test_one_set_is_asked_in_the_order_that_a_seed_has_always_meant() -> None:
    steps = [_plan(step, _pool(5)) for step in range(4)]
    assert [[r.question.id for r in plan[::2]] for plan in steps] == [
        ["q0", "q1", "q3"],
        ["q4", "q2", "q2"],
        ["q0", "q1", "q4"],
        ["q3", "q2", "q3"],
    ]
    assert all(a.question == b.question for plan in steps for a, b in zip(plan[::2], plan[1::2], strict=True))
    assert [r.id for r in steps[0][:2]] == ["263ed37d1945347fa4ceba8e27f4b392", "9e645762533cd2c53791da65b119b3c1"]
    assert steps[3][1].id == "84915b36c5790cd13dadfb03af037120"
    assert {(r.quota, r.k) for plan in steps for r in plan} == {(2, 4)}


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**31 - 1),
    count=st.integers(1, 200),
    weights=st.lists(st.floats(0.01, 100), min_size=1, max_size=5),
)
def test_each_set_gets_its_share_of_every_step_and_of_all_steps(seed: int, count: int, weights: list[float]) -> None:
    counts = [set_counts(seed, step, weights, count) for step in range(100)]
    for number, weight in enumerate(weights):
        expected = count * weight / sum(weights)
        assert all(abs(c[number] - expected) <= 1 for c in counts)
        assert abs(sum(c[number] for c in counts) / 100 - expected) < 0.1
    assert all(sum(c) == count for c in counts)
    assert counts[3] == set_counts(seed, 3, weights, count)


def test_each_set_goes_through_its_own_epochs() -> None:
    a, b = _pool(4, "a"), _pool(6, "b")
    asked = [r.question.id for step in range(40) for r in _plan(step, a, b, weights=(1.0, 2.0))[::2]]
    for pool in (a, b):
        own = [id for id in asked if id[0] == pool[0].id[0]]
        epochs = [own[i : i + len(pool)] for i in range(0, len(own) - len(pool) + 1, len(pool))]
        assert len(epochs) >= 8
        assert all(sorted(epoch) == [q.id for q in pool] for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) > 4
    assert Counter(id[0] for id in asked) == {"a": 40, "b": 80}


def test_samples_of_a_question_share_a_budget_and_questions_differ() -> None:
    plan = [r for step in range(40) for r in _plan(step, _pool(5), quotas=[0, 1, 3], ks=[2, 5])]
    assert all((a.quota, a.k) == (b.quota, b.k) for a, b in zip(plan[::2], plan[1::2], strict=True))
    seen = Counter((r.quota, r.k) for r in plan[::2])
    assert set(seen) == {(quota, k) for quota in (0, 1, 3) for k in (2, 5)}
    assert max(seen.values()) <= 3 * min(seen.values())  # 20 of each expected

    def alone(step: int) -> list[EpisodeRequest]:
        return _plan(step, _pool(5), quotas=[0, 1, 3], ks=[2, 5])

    assert alone(9) == plan[9 * 6 : 10 * 6]


def test_a_set_without_train_questions_is_refused() -> None:
    mixed = (*_pool(2, "a"), *_pool(2, "b"))
    assert pools(mixed, ["a", "b"]) == {"a": mixed[:2], "b": mixed[2:]}
    assert pools(mixed, ["folder"]) == {"folder": mixed}
    with pytest.raises(DataError, match="no train questions are left of c; leave it out"):
        pools(mixed, ["a", "b", "c"])
