"""What generations tell of how sure their policy is."""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

from smartrag.choices import Role
from smartrag.prompt import Prompt
from smartrag.score import normalise
from smartrag.types import Episode, Turn


def entropy(best: Sequence[float]) -> float:
    """Entropy (nats) of a distribution of which only the best log-probs are known: the rest counts as one outcome,
    which makes it a lower bound."""
    rest = max(0.0, 1 - sum(map(math.exp, best)))
    return -sum(math.exp(x) * x for x in best if x > -math.inf) - (rest * math.log(rest) if rest > 0 else 0.0)


def search_probability(turn: Turn, prompt: Prompt) -> float:
    """P(search tag) of a policy's free first move, from the log-probs of the tag that it wrote (greedily).

    What is neither tag is counted for the other one; 0.5 where it wrote no tag.
    """
    found = prompt.tag(turn.completion.token_ids)
    if found is None:
        return 0.5
    count, role = found
    written = math.exp(sum(turn.completion.logprobs[:count]))
    return written if role is Role.query else 1 - written


def answer_entropy(samples: Sequence[Episode]) -> float:
    """Entropy (nats) of the normalised answers; no answer counts as one of its own."""
    counts = Counter(None if e.answer is None else normalise(e.answer) for e in samples)
    shares = np.array(list(counts.values())) / len(samples)
    return float(-(shares * np.log(shares)).sum())
