"""The reward of a turn (SmartRAG eq. 5; numbers from the authors' reward.py, weights from conf/reward/).

r = w_EM * EM + w_F1 * F1     the turn answers
    retrieval                 the turn searches (a cost: negative)
    format_error              the turn is malformed
    truncated                 the turn ran out of tokens
"""

from smartrag.config import Reward
from smartrag.score import exact_match, f1
from smartrag.types import Action, ActionKind, Episode, Question


def turn_reward(action: Action, question: Question, reward: Reward) -> float:
    """Reward of one turn, in units of the answer's score."""
    match action.kind:
        case ActionKind.ANSWER:
            em, overlap = exact_match(action.text, question.answers), f1(action.text, question.answers)
            return reward.exact_match * em + reward.f1 * overlap
        case ActionKind.SEARCH:
            return reward.retrieval
        case ActionKind.MALFORMED:
            return reward.format_error
        case ActionKind.CUT:
            return reward.truncated


def turn_rewards(episode: Episode, reward: Reward) -> tuple[float, ...]:
    """One reward a turn, judged by the gold answers."""
    return tuple(turn_reward(turn.action, episode.question, reward) for turn in episode.turns)


def episode_reward(episode: Episode, reward: Reward) -> float:
    """Undiscounted sum over the turns."""
    return sum(turn_rewards(episode, reward))
