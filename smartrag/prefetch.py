"""The episodes of a step, and of the steps to come while the learner is at work: asynchronous training, bounded.

Step n is learned with weights of version n. Its episodes are admitted once version n - s is out, s =
`train.max_staleness`, and go on through every push that comes meanwhile: each token carries the version that wrote it.
All that is begun is learned from, so nothing is generated to be thrown away.

    s = 0   |rollout 0|update 0|push|rollout 1|update 1|push|
    s = 1   |rollout 0|update 0|push|        |update 1|push|
                      |rollout 1 ...|        |rollout 2 ...|

That tokens are a step old is what importance weights are for (`loss.importance_weights`), beside a ratio to the policy
at the start of the update: decoupled PPO (Hilton et al. 2021, arXiv 2110.00641; AReaL, arXiv 2505.24298).
"""

import time
from collections.abc import Generator, Sequence
from dataclasses import dataclass, field

import numpy as np

from smartrag.plan import Plan
from smartrag.types import Episode, EpisodeRequest, PoisonQuestion, Rollout, Trajectory


@dataclass(slots=True)
class Step:
    """The episodes of one step, as far as they are here."""

    number: int
    requests: list[EpisodeRequest]
    arriving: Generator[Episode | None]
    began: float  # on the monotonic clock
    done: dict[str, Episode] = field(default_factory=dict)
    seconds: float = 0.0  # from the first request to the last episode, what else was done meanwhile included

    @property
    def episodes(self) -> list[Episode]:
        """In the order of their requests, once all are here."""
        return [self.done[request.id] for request in self.requests]


class Prefetch:
    """Steps in their order, one after another; `steps` of them. A step whose question has to be set aside is begun
    again, with another in its place."""

    def __init__(self, rollout: Rollout, plan: Plan, *, steps: int, max_staleness: int):
        self._rollout, self._plan, self._steps, self._max_staleness = rollout, plan, steps, max_staleness
        self._ready: dict[int, Step] = {}  # all of whose episodes are here
        self._current: Step | None = None

    def take(self, number: int) -> Step:
        """All of step `number`, which nobody can take again. Waits. Raises what the rollout raises."""
        while number not in self._ready:
            self._advance(number)
        return self._ready.pop(number)

    def ahead(self, version: int) -> bool:
        """Collects what has arrived of the steps that weights of `version` may begin; waits a moment for some of it.

        False when all of that is here. Raises what the rollout raises.
        """
        following = self._current.number if self._current else max([*self._ready, version]) + 1
        if following >= self._steps or following - version > self._max_staleness:
            return False
        self._advance(following)
        return True

    def drop(self) -> None:
        """Forgets all that has been begun and not taken; the machines are told to give it up."""
        if self._current is not None:
            self._current.arriving.close()
        self._current = None
        self._ready.clear()

    def _advance(self, number: int) -> None:
        """One look at what arrives; step `number` is begun where none is under way."""
        if self._current is None:
            requests = self._plan(number)
            self._current = Step(number, requests, self._rollout(requests), time.monotonic())
        step = self._current
        try:
            episode = next(step.arriving)
        except PoisonQuestion as error:
            self._current = None
            self._plan.avoid(error)
            return
        except BaseException:
            self._current = None
            raise
        if episode is not None:
            assert episode.id not in step.done, f"episode {episode.id} came twice"
            step.done[episode.id] = episode
        if len(step.done) == len(step.requests):
            step.arriving.close()
            step.seconds = time.monotonic() - step.began
            self._ready[step.number], self._current = step, None


def staleness(trajectories: Sequence[Trajectory], step: int) -> dict[str, float]:
    """How many versions older than those of `step`, which learns from them, the weights were that wrote the trained
    tokens; nothing of none."""
    if not trajectories:
        return {}
    lags = np.concatenate([step - np.array(t.weight_versions)[np.array(t.mask)] for t in trajectories])
    return {"staleness_mean": float(lags.mean()), "staleness_max": float(lags.max())}
