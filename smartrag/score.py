"""Scores of an answer against gold answers: exact match and token F1 as SQuAD defines them (Rajpurkar et al. 2016).
With HotpotQA's rule that a "yes" or "no" is right or wrong and nothing in between (Yang et al. 2018).

Each takes the best over the gold answers and returns a number in [0, 1].
"""

import re
import string
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_WHOLE = ("yes", "no", "noanswer")  # no partial credit, whichever side they stand on
_PUNCTUATION = str.maketrans("", "", string.punctuation)


@lru_cache(maxsize=10_000)  # gold answers and passages come again and again
def normalise(text: str) -> str:
    """Lower case, no punctuation, no articles, single spaces: the normalisation of SQuAD's evaluation script."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, gold: Iterable[str]) -> float:
    """1.0 when the normalised answer equals a normalised gold answer."""
    ours = normalise(answer)
    return float(any(ours == normalise(g) for g in gold))


def f1(answer: str, gold: Iterable[str]) -> float:
    """Highest harmonic mean of token precision and recall: F1 = 2PR / (P + R)."""
    return max((_f1(normalise(answer), normalise(g)) for g in gold), default=0.0)


def contains(text: str, gold: Iterable[str]) -> bool:
    """Whether a gold answer stands in the text as whole normalised words: the paper's hit of a retrieval."""
    padded = f" {normalise(text)} "
    return any(f" {words} " in padded for g in gold if (words := normalise(g)))


def _f1(answer: str, expected: str) -> float:
    if answer in _WHOLE or expected in _WHOLE:
        return float(answer == expected)
    ours, gold = answer.split(), expected.split()
    if not ours or not gold:
        return float(ours == gold)
    same = sum((Counter(ours) & Counter(gold)).values())
    if same == 0:
        return 0.0
    precision, recall = same / len(ours), same / len(gold)
    return 2 * precision * recall / (precision + recall)
