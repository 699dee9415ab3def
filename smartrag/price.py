"""What a retrieval costs during training: fixed, or moved so that a target of retrievals is kept, and from when on."""

from dataclasses import dataclass

from smartrag.config import RetrievalBudget, Reward


@dataclass(frozen=True, slots=True)
class Price:
    """λ, in units of the answer's reward per retrieval. With a budget it is the Lagrange multiplier of

    max E[score]  subject to  E[retrievals per question] ≤ target        (Altman 1999, "Constrained MDPs")

    moved by projected dual ascent, slowly beside the policy (Tessler et al. 2019, arXiv 1805.11074, section 4):

    λ ← clip(λ + η (measured − target), 0, λ_max)
    """

    value: float  # λ
    budget: RetrievalBudget | None  # target, η and λ_max; None: λ stays

    def after(self, measured: float) -> "Price":
        """The price of the next step, given this step's retrievals per question."""
        if self.budget is None:
            return self
        moved = self.value + self.budget.rate * (measured - self.budget.target)
        return Price(min(max(moved, 0.0), self.budget.max_price), self.budget)


def first_price(reward: Reward) -> Price:
    return Price(-reward.retrieval, reward.budget)


def ramp(step: int, free_steps: int, ramp_steps: int) -> float:
    """clip((step − free_steps) / ramp_steps, 0, 1), by which the price is multiplied; `step` counts from 0.

    Capability first, then efficiency: a policy that pays before it can use what it retrieves stops retrieving. Without
    a ramp the price jumps from nothing to all of it at `free_steps`.
    """
    if ramp_steps == 0:
        return float(step >= free_steps)
    return min(max((step - free_steps) / ramp_steps, 0.0), 1.0)
