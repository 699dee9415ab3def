"""What a PPO step asks: which questions, how often, and under which budget. Pure: all derives from (seed, step).

Q questions a step, S samples of each: slots i*S ... i*S + S-1 ask the i-th question, under one quota and one k.
Each data set is gone through in a new order each epoch, every question of it once an epoch, wherever a run resumes.
"""

import functools
import logging
import math
import random
from collections.abc import Collection, Mapping, Sequence
from itertools import accumulate, pairwise

from smartrag.config import Run
from smartrag.data.rows import DataError
from smartrag.episode import episode_id
from smartrag.types import EpisodeRequest, PoisonQuestion, Question

logger = logging.getLogger("smartrag")

_GOLDEN = (math.sqrt(5) - 1) / 2  # its multiples modulo 1 spread most evenly (Weyl 1916; Knuth TAOCP 3, 6.4)


class Plan:
    """What each step of a run asks of `questions`, but for those that have been set aside."""

    def __init__(self, run: Run, questions: Sequence[Question]):
        self._run, self._questions = run, questions
        self.set_aside: list[str] = []  # ids of questions that workers end on
        self.leave_out([])

    def __call__(self, step: int) -> list[EpisodeRequest]:
        run = self._run
        return step_requests(
            run.seed,
            step,
            self._pools,
            run.data.mix,
            episodes=run.train.episodes,
            samples=run.algorithm.samples,
            quotas=run.training_quotas,
            ks=run.train.ks or [run.retriever.k],
        )

    def leave_out(self, ids: Sequence[str]) -> None:
        """These are set aside, and no others. Raises DataError where nothing is left to ask."""
        self.set_aside = list(ids)
        self._pools = pools([q for q in self._questions if q.id not in self.set_aside], self._run.data.mix)

    def avoid(self, error: PoisonQuestion) -> None:
        """Sets its question aside as well. Raises the error where `train.set_aside` are so already."""
        if len(self.set_aside) >= self._run.train.set_aside:
            raise error
        logger.warning("%s. It is set aside and its step is begun again", error)
        self.leave_out([*self.set_aside, error.question])


def pools(train: Sequence[Question], names: Collection[str]) -> dict[str, tuple[Question, ...]]:
    """Data set -> its questions. With one name all are of that set. Raises DataError when a set has none."""
    if len(names) == 1:
        return dict.fromkeys(names, tuple(train))
    found = {name: tuple(q for q in train if q.meta["dataset"] == name) for name in names}
    if empty := [name for name, members in found.items() if not members]:
        raise DataError(f"no train questions are left of {', '.join(empty)}; leave it out of data.mix")
    return found


def step_requests(
    seed: int,
    step: int,
    pools: Mapping[str, Sequence[Question]],
    weights: Mapping[str, float],
    *,
    episodes: int,
    samples: int,
    quotas: Sequence[int],
    ks: Sequence[int],
) -> list[EpisodeRequest]:
    """The `episodes` requests of one step, Q = episodes / samples questions.

    `pools`: data set -> its train questions, none empty. `weights`: data set -> relative share of the questions.
    `quotas`, `ks`: what each question's budget is drawn from, uniformly; never empty.
    """
    requests = []
    for i, question in enumerate(_questions(seed, step, pools, weights, episodes // samples)):
        rng = random.Random(f"budget/{seed}/{step}/{i}")
        quota, k = rng.choice(quotas), rng.choice(ks)
        requests += [
            EpisodeRequest(episode_id(seed, "train", step, slot), question, quota, k)
            for slot in range(i * samples, (i + 1) * samples)
        ]
    return requests


def set_counts(seed: int, step: int, weights: Sequence[float], count: int) -> list[int]:
    """How many of the `count` questions of a step each data set gives: systematic sampling (Madow & Madow 1944).

    n_d = #{i : W_{d-1} ≤ i + u < W_d},  W_d = count · Σ_{e ≤ d} w_e / Σ w,  u ∈ [0, 1)

    u is moved on by the golden ratio each step. So n_d is the expected count·w_d rounded down or up, and its mean over
    the steps is count·w_d.
    """
    u = (random.Random(f"sets/{seed}").random() + step * _GOLDEN) % 1.0
    total = sum(weights)
    edges = [0.0, *(count * w / total for w in accumulate(weights))]
    edges[-1] = count  # exactly, whatever rounding did
    return [math.ceil(high - u) - math.ceil(low - u) for low, high in pairwise(edges)]


def _questions(
    seed: int, step: int, pools: Mapping[str, Sequence[Question]], weights: Mapping[str, float], count: int
) -> list[Question]:
    """The `count` questions of one step, the data sets interleaved at random."""
    shares = [weights[name] for name in pools]
    before = [0] * len(pools)  # questions that each set gave in earlier steps
    for earlier in range(step):
        before = [b + n for b, n in zip(before, set_counts(seed, earlier, shares, count), strict=True)]
    counts = set_counts(seed, step, shares, count)
    sets = [number for number, n in enumerate(counts) for _ in range(n)]
    random.Random(f"sets/{seed}/{step}").shuffle(sets)
    names = list(pools)
    questions = []
    for number in sets:
        pool = pools[names[number]]
        epoch, place = divmod(before[number], len(pool))
        order = f"{seed}/{epoch}" if len(pools) == 1 else f"{names[number]}/{seed}/{epoch}"
        questions.append(pool[_order(order, len(pool))[place]])
        before[number] += 1
    return questions


@functools.lru_cache(maxsize=16)  # two epochs of a few data sets
def _order(name: str, count: int) -> list[int]:
    order = list(range(count))
    random.Random(f"order/{name}").shuffle(order)
    return order
