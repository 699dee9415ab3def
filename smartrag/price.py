"""What a retrieval costs during training: fixed, or moved so that a target of retrievals is kept, and from when on."""

from dataclasses import dataclass

from smartrag.config import RetrievalBudget, Reward


@dataclass(frozen=True, slots=True)
class Price:
    """λ, in units of the answer's reward per retrieval. With a budget it holds the Lagrange multiplier of

    max E[score]  subject to  E[retrievals per question] ≤ target        (Altman 1999, "Constrained MDPs")

    by projected dual ascent with a term in proportion to the violation (Stooke et al. 2020, arXiv 2007.03964, alg. 2):

    I ← clip(I + K_I (measured − target), 0, λ_max)        λ = clip(I + K_P (measured − target), 0, λ_max)

    The ascent alone (Tessler et al. 2019, arXiv 1805.11074) swings past the target when the policy answers late.
    """

    multiplier: float  # I
    budget: RetrievalBudget | None  # target, K_I, K_P and λ_max; None: λ stays
    excess: float = 0.0  # retrievals per question above the target when last measured

    @property
    def value(self) -> float:
        """λ: what a retrieval costs now."""
        if self.budget is None:
            return self.multiplier
        return _clip(self.multiplier + self.budget.gain * self.excess, self.budget.max_price)

    def after(self, measured: float) -> "Price":
        """The price of the next step, given this step's retrievals per question."""
        if self.budget is None:
            return self
        excess = measured - self.budget.target
        return Price(_clip(self.multiplier + self.budget.rate * excess, self.budget.max_price), self.budget, excess)


def first_price(reward: Reward) -> Price:
    return Price(-reward.retrieval, reward.budget)


def _clip(price: float, highest: float) -> float:
    return min(max(price, 0.0), highest)


def ramp(step: int, free_steps: int, ramp_steps: int) -> float:
    """clip((step − free_steps) / ramp_steps, 0, 1), by which the price is multiplied; `step` counts from 0.

    Capability first, then efficiency: a policy that pays before it can use what it retrieves stops retrieving. Without
    a ramp the price jumps from nothing to all of it at `free_steps`.
    """
    if ramp_steps == 0:
        return float(step >= free_steps)
    return min(max((step - free_steps) / ramp_steps, 0.0), 1.0)
