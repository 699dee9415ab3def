import hashlib

import pytest

from smartrag.data.rows import DataError
from smartrag.data.splits import census, question_hash, share_out
from smartrag.types import Question


def _questions(*texts: str) -> tuple[Question, ...]:
    return tuple(Question(f"q{i}", text, ("a",)) for i, text in enumerate(texts))


def test_a_share_is_split_off_by_text_alike_everywhere() -> None:
    train = _questions(*(f"Which country is city {i} in?" for i in range(300)))
    warmup, ppo = share_out(train, 0.3)
    assert 60 < len(warmup) < 120
    assert sorted((*warmup, *ppo), key=lambda q: int(q.id[1:])) == list(train)
    again, _ = share_out([Question(f"other-{q.id}", f" {q.text.upper()}", q.answers) for q in reversed(train)], 0.3)
    assert {question_hash(q.text) for q in again} == {question_hash(q.text) for q in warmup}
    assert {q.id for q in warmup} <= {q.id for q in share_out(train, 0.5)[0]}
    assert share_out(train, None) == (train, train)


def test_a_share_that_leaves_one_side_nothing_is_refused() -> None:
    with pytest.raises(DataError, match=r"warmup.share=0.5 of 1 train questions gives warm-up . and PPO ."):
        share_out(_questions("Who?"), 0.5)


def test_the_census_counts_what_splits_share_whatever_its_spelling() -> None:
    found = census(
        {
            "warmup": _questions("Who is A?", "Who is B?"),
            "ppo": _questions("who  is b?", "Who is C?"),
            "test": _questions("Who is D?"),
        }
    )
    assert found["overlaps"] == {"warmup/ppo": 1, "warmup/test": 0, "ppo/test": 0}
    alone = hashlib.sha256(hashlib.sha256(b"who is d?").hexdigest().encode()).hexdigest()
    assert found["splits"]["test"] == {"questions": 1, "sha256": alone}
    turned = census({"warmup": _questions("Who is B?", "Who is A?")})
    assert turned["splits"]["warmup"] == found["splits"]["warmup"]
