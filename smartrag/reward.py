"""What the turns of an episode earn (SmartRAG eq. 5; numbers from the authors' reward.py, weights from conf/reward/).

r = score           the turn answers; from gold answers w_EM · EM + w_F1 · F1, see `feedback.py` for other judges
    −price          the turn searches
    format_error    the turn is malformed
    truncated       the turn ran out of tokens

Scores and prices are in units of the answer's reward: a fully right answer is worth `full_score`.
"""

from smartrag.config import Reward
from smartrag.score import exact_match, f1
from smartrag.types import Action, ActionKind, Episode


def full_score(reward: Reward) -> float:
    """w_EM + w_F1: what a fully right answer is worth."""
    return reward.exact_match + reward.f1


def gold_score(episode: Episode, reward: Reward) -> float:
    """w_EM · EM + w_F1 · F1 of the episode's answer, in [0, full_score]; 0 without one. Reads the gold answers."""
    answer = episode.answer
    if answer is None:
        return 0.0
    gold = episode.question.answers
    return reward.exact_match * exact_match(answer, gold) + reward.f1 * f1(answer, gold)


def gated(price: float, score: float, full: float) -> float:
    """price · clip(score / full, 0, 1): all of the price under a fully right answer, nothing under a wrong one.

    A price that counts anyway pays for not retrieving even where the answer is then wrong (OTC, arXiv 2504.14870).
    """
    return price * min(max(score / full, 0.0), 1.0)


def turn_rewards(episode: Episode, reward: Reward, *, score: float, price: float) -> tuple[float, ...]:
    """One reward a turn. `score`: of the episode's answer (unused without one); `price`: of each retrieval."""
    return tuple(_turn_reward(turn.action, reward, score, price) for turn in episode.turns)


def episode_reward(episode: Episode, reward: Reward) -> float:
    """The measure by which runs are compared, whatever their training pays: gold score, the fixed price, ungated.

    Undiscounted sum over the turns. Reads the gold answers.
    """
    return sum(turn_rewards(episode, reward, score=gold_score(episode, reward), price=-reward.retrieval))


def _turn_reward(action: Action, reward: Reward, score: float, price: float) -> float:
    match action.kind:
        case ActionKind.ANSWER:
            return score
        case ActionKind.SEARCH:
            return -price
        case ActionKind.MALFORMED:
            return reward.format_error
        case ActionKind.CUT:
            return reward.truncated
