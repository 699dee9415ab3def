"""Which questions serve which purpose, and the proof that the purposes do not share any.

Two questions are the same when their texts agree but for case and white space; that is compared as sha256.

    train ─┬─ warmup   the share `warmup.share` of it (null: all of it)
           └─ ppo      the rest                       (null: all of it)
    dev, test          never trained on
"""

import hashlib
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from smartrag.data.rows import DataError
from smartrag.types import Question


def question_hash(text: str) -> str:
    """sha256 of the text in one spelling, hex."""
    return hashlib.sha256(" ".join(text.casefold().split()).encode()).hexdigest()


def bucket(text: str) -> int:
    """0 to 99, evenly: by the low bits of the hash, which shares (`share_out`) do not go by."""
    return int(question_hash(text)[:16], 16) % 100


def share_out(train: Sequence[Question], share: float | None) -> tuple[tuple[Question, ...], tuple[Question, ...]]:
    """(warm-up questions, PPO questions). By hash: the same ones on every machine, equal texts on the same side.

    Raises DataError when one side gets none.
    """
    if share is None:
        return tuple(train), tuple(train)
    ours = [int(question_hash(q.text)[:16], 16) / 2**64 < share for q in train]
    warmup = tuple(q for q, chosen in zip(train, ours, strict=True) if chosen)
    ppo = tuple(q for q, chosen in zip(train, ours, strict=True) if not chosen)
    if not warmup or not ppo:
        raise DataError(
            f"warmup.share={share} of {len(train)} train questions gives warm-up {len(warmup)} and PPO {len(ppo)}; "
            "choose a share that leaves both some, or null"
        )
    return warmup, ppo


def census(splits: Mapping[str, Sequence[Question]]) -> dict[str, Any]:
    """What splits.json says: of each split its size and fingerprint, of each pair how many questions they share.

    Example: {"splits": {"dev": {"questions": 2, "sha256": "9c..."}, ...}, "overlaps": {"dev/test": 0, ...}}
    """
    hashes = {name: sorted(question_hash(q.text) for q in questions) for name, questions in splits.items()}
    return {
        "splits": {
            name: {"questions": len(own), "sha256": hashlib.sha256("\n".join(own).encode()).hexdigest()}
            for name, own in hashes.items()
        },
        "overlaps": {f"{a}/{b}": len({*hashes[a]} & {*hashes[b]}) for a, b in combinations(hashes, 2)},
    }
