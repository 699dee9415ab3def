"""What comes back for the episodes of a step: who scores their answers, and which of them the learner may learn from.

    gold        w_EM · EM + w_F1 · F1 against the gold answers
    agreement   how far the other samples of the question agree with the answer, beyond what other questions would
    endpoint    a language model reads question, passages and answer (judge.py)
    function    a function of your own reads all of it (own_reward.py)

The second and the third never look at the gold answers. All shares are scaled by `full_score`, so prices mean the same.
"""

from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

from smartrag import own_reward
from smartrag.choices import Judge, Role
from smartrag.config import Reward, Run
from smartrag.judge import judge
from smartrag.price import first_price, ramp
from smartrag.reward import full_score, gated, gold_score, turn_rewards
from smartrag.score import normalise
from smartrag.trajectory import teaches, to_trajectory
from smartrag.types import Episode, Trajectory


class Feedback:
    """The environment's answer to a step's episodes. Its state, the price of a retrieval, is the run's to keep."""

    def __init__(self, run: Run):
        self.reward, self.samples, self.trains = run.reward, run.algorithm.samples, run.algorithm.trains
        self.cache = Path(run.cache).expanduser() / "chats"
        self.price = first_price(run.reward)

    def __call__(self, episodes: Sequence[Episode], step: int) -> tuple[list[Trajectory], dict[str, float]]:
        """What the learner gets, and its part of the step's row. Moves the price for the next step.

        Voided episodes could not be judged; untrained ones hold no token of a trained role.
        """
        share = ramp(step, self.reward.free_steps, self.reward.ramp_steps)
        charged = share * self.price.value
        found = scores(episodes, self.reward, self.samples, self.cache)
        trajectories = learnable(episodes, found, self.reward, self.samples, charged, self.trains)
        if share > 0:  # held while nothing is charged: it would only wind up
            self.price = self.price.after(sum(e.retrievals for e in episodes) / len(episodes))
        told = {
            "retrieval_price": charged,
            "voided_episodes": found.count(None),
            "untrained_episodes": len(episodes) - found.count(None) - len(trajectories),
        }
        if trajectories:
            told["training_reward"] = sum(sum(t.rewards) for t in trajectories) / len(trajectories)
        return trajectories, told


def scores(episodes: Sequence[Episode], reward: Reward, samples: int, cache: Path) -> list[float | None]:
    """The score of each episode's answer, 0 without one; None where the judge could not be had: the episode is void.

    `samples` episodes in a row are of the same question. `cache`: folder that keeps the endpoint's replies. Raises
    JudgeUnavailable when too many are void, RewardFailed when a function of your own fails.
    """
    shares: Sequence[float | None]
    match reward.judge:
        case Judge.gold:
            return [gold_score(episode, reward) for episode in episodes]
        case Judge.agreement:
            shares = agreement([_vote(episode) for episode in episodes], samples)
        case Judge.endpoint:
            assert reward.endpoint is not None, "check.py demands it"
            shares = judge(episodes, reward.endpoint, cache)
        case Judge.function:
            assert reward.function is not None, "check.py demands it"
            shares = own_reward.shares(episodes, reward.function)
    return [None if share is None else full_score(reward) * share for share in shares]


def agreement(votes: Sequence[str | None], samples: int) -> list[float]:
    """sᵢ = share of the other samples of i's question that vote as i  −  share of other questions' samples that do.

    votes: [n], `samples` in a row of one question; None votes for nothing, agrees with nothing and still counts as a
    sample. Each sᵢ is in [−1, 1]; 0 without a vote.

    The first share makes a reward of self-consistency (Wang et al. 2022, arXiv 2203.11171), as TTRL does with a
    majority's vote (arXiv 2504.16084). It leaves i's own vote out: an answer nobody shares earns nothing, no tie is
    to be broken, and its mean estimates without bias how likely the policy is to say the same again; a majority among a
    few samples is often one's own vote. The second share takes away the cheapest way to agree, the same answer to
    every question, as in peer prediction over several tasks (Dasgupta & Ghosh 2013; Shnayder et al. 2016, arXiv
    1603.03151): answers that do not depend on the question earn 0 on average.
    """
    n = len(votes)
    here = [Counter(votes[start : start + samples]) for start in range(0, n, samples)]
    everywhere = Counter(votes)
    found = []
    for i, vote in enumerate(votes):
        if vote is None:
            found.append(0.0)
            continue
        same = here[i // samples][vote]
        elsewhere = (everywhere[vote] - same) / (n - samples) if n > samples else 0.0
        found.append((same - 1) / (samples - 1) - elsewhere)
    return found


def learnable(
    episodes: Sequence[Episode],
    found: Sequence[float | None],
    reward: Reward,
    samples: int,
    price: float,
    trains: Collection[Role] = tuple(Role),
) -> list[Trajectory]:
    """The trajectories of the episodes that could be judged and hold a token of a trained role.

    `found`: the `scores` of all episodes.
    """
    trajectories = []
    for slot, (episode, score) in enumerate(zip(episodes, found, strict=True)):
        if score is not None and teaches(episode, trains):
            due = gated(price, score, full_score(reward)) if reward.gated else price
            earned = turn_rewards(episode, reward, score=score, price=due)
            trajectories.append(to_trajectory(episode, earned, group=slot // samples, trains=trains))
    return trajectories


def _vote(episode: Episode) -> str | None:
    """The normalised answer; None for a malformed or cut episode, and for an answer without a word."""
    return normalise(episode.answer or "") or None
