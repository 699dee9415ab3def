import pytest
from hypothesis import given
from hypothesis import strategies as st

from smartrag.compose import load
from smartrag.config import RetrievalBudget
from smartrag.price import Price, first_price, ramp

HALF = RetrievalBudget(target=0.5, rate=0.1, gain=0.0, max_price=2.0)
QUICK = RetrievalBudget(target=0.5, rate=0.1, gain=1.0, max_price=2.0)


def test_the_multiplier_by_hand() -> None:
    assert Price(0.2, HALF).after(0.9).value == pytest.approx(0.24)
    assert Price(0.2, HALF).after(0.1).value == pytest.approx(0.16)
    assert Price(0.01, HALF).after(0.0).value == 0.0
    assert Price(1.99, HALF).after(2.0).value == 2.0
    assert Price(0.2, None).after(0.9) == Price(0.2, None)
    assert Price(0.2, QUICK).value == 0.2  # nothing has been measured
    assert Price(0.2, QUICK).after(0.9).value == pytest.approx(0.24 + 0.4)
    assert Price(0.2, QUICK).after(0.9).after(0.4).value == pytest.approx(0.24 - 0.01 - 0.1)
    assert Price(0.2, QUICK).after(0.0).value == 0.0


@given(st.lists(st.floats(0, 4), max_size=30))
def test_the_price_never_leaves_its_bounds(measured: list[float]) -> None:
    price = Price(0.2, QUICK)
    for rate in measured:
        price = price.after(rate)
        assert 0.0 <= price.value <= 2.0


@pytest.mark.parametrize(("always", "slope"), [(1.0, 0.4), (1.1, 0.6), (2.0, 1.0), (0.4, 0.3)])
def test_a_policy_that_answers_to_the_price_slowly_is_led_to_the_target(always: float, slope: float) -> None:
    """Retrievals fall by `slope` per unit of price, with a tenth of the way made each step. One that retrieves less
    than the target at no price is left alone."""
    price, retrievals = first_price(load(["reward=budget"]).reward), always
    for _ in range(200):
        wanted = max(0.0, always - slope * price.value)
        retrievals += 0.1 * (wanted - retrievals)
        price = price.after(retrievals)
    assert retrievals == pytest.approx(min(0.5, always), abs=0.05)


def test_a_policy_that_answers_late_is_not_driven_far_past_the_target() -> None:
    """It always searches until a search costs 0.8, and then gives up a tenth of its searches a step: the ascent alone
    has wound the price up by then, and takes long to come down."""

    def lowest(budget: RetrievalBudget) -> float:
        price, retrievals, seen = Price(0.4, budget), 1.1, []
        for _ in range(120):
            retrievals += 0.1 * ((0.0 if price.value > 0.8 else 1.1 if price.value < 0.7 else retrievals) - retrievals)
            price = price.after(retrievals)
            seen.append(retrievals)
        return min(seen)

    assert lowest(HALF) < 0.2
    assert lowest(QUICK) > 0.35


def test_first_nothing_is_charged_then_more_and_more() -> None:
    assert [ramp(step, 10, 4) for step in (0, 10, 11, 12, 14, 99)] == [0.0, 0.0, 0.25, 0.5, 1.0, 1.0]
    assert [ramp(step, 10, 0) for step in (9, 10)] == [0.0, 1.0]
    assert ramp(0, 0, 0) == 1.0
