"""What turns earn, whoever scores the answer: hand-worked cases and the sum that no bookkeeping may change."""

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smartrag.choices import Judge
from smartrag.compose import load
from smartrag.feedback import agreement, learnable, scores
from smartrag.price import first_price
from smartrag.reward import episode_reward, gated, gold_score, turn_rewards
from smartrag.types import ActionKind, Episode
from tests import toys
from tests.toys import PAPER, Unlabelled, finished

NOWHERE = Path("unused")


@pytest.mark.parametrize(
    ("episode", "wanted"),
    [
        (finished(0, ActionKind.ANSWER), (2.0,)),
        (finished(1, ActionKind.ANSWER), (-0.2, 2.0)),
        (finished(2, ActionKind.ANSWER, "Norway Italy"), (-0.2, -0.2, 2 / 3)),  # F1 of 1 word in 2 against 1
        (finished(1, ActionKind.ANSWER, "Sweden"), (-0.2, 0.0)),
        (finished(1, ActionKind.MALFORMED), (-0.2, -1.0)),
        (finished(0, ActionKind.CUT), (-1.0,)),
    ],
)
def test_the_papers_rewards_by_hand(episode: Episode, wanted: tuple[float, ...]) -> None:
    found = scores([episode], PAPER, 1, NOWHERE)
    assert found[0] is not None
    assert turn_rewards(episode, PAPER, score=found[0], price=first_price(PAPER).value) == wanted
    assert episode_reward(episode, PAPER) == sum(wanted)


def test_the_paper_preset_is_the_default_and_the_one_of_these_tests() -> None:
    assert load([]).reward == load(["reward=paper"]).reward == PAPER


@pytest.mark.parametrize(("score", "due"), [(2.0, 0.2), (1.0, 0.1), (0.0, 0.0), (-0.5, 0.0)])
def test_a_gated_price_counts_as_far_as_the_answer_is_right(score: float, due: float) -> None:
    assert gated(0.2, score, full=2.0) == due


EPISODES = st.builds(
    finished,
    searches=st.integers(0, 4),
    last=st.sampled_from(list(toys.ENDS)),
    text=st.sampled_from(["Norway", "Sweden", "Norway Italy"]),
    tokens=st.integers(1, 4),
)


@settings(max_examples=200)
@given(EPISODES, st.floats(-2, 2), st.floats(0, 2), st.booleans())
def test_costs_sit_on_the_searches_and_the_sum_is_the_episodes_reward(
    episode: Episode, score: float, price: float, gate: bool
) -> None:
    reward, last = replace(PAPER, gated=gate), episode.turns[-1].action.kind
    score = score if last is ActionKind.ANSWER else 0.0
    trajectory = learnable([episode], [score], reward, 1, price)[0]
    due = price * (max(score, 0) / 2 if gate else 1)
    end = {ActionKind.ANSWER: score, ActionKind.MALFORMED: -1.0, ActionKind.CUT: -1.0}[last]
    assert sum(trajectory.rewards) == pytest.approx(end - episode.retrievals * due)
    width = 2 + len(episode.turns[0].completion.token_ids)  # of a turn with its context
    for turn in range(len(episode.turns)):
        *before, at_the_end = trajectory.rewards[turn * width : (turn + 1) * width]
        assert not any(before)
        assert at_the_end == pytest.approx(-due if turn < episode.retrievals else end)
        assert trajectory.mask[(turn + 1) * width - 1]


@given(EPISODES, st.sampled_from(list(Judge)), st.booleans(), st.floats(0, 1))
def test_the_measure_of_evaluation_is_the_same_under_every_preset(
    episode: Episode, judge: Judge, gate: bool, price: float
) -> None:
    assert episode_reward(episode, replace(PAPER, judge=judge, gated=gate)) == episode_reward(episode, PAPER)


def test_agreement_by_hand() -> None:
    votes = ["a", "a", "b", None, "a", "c", "c", "c"]
    assert agreement(votes, samples=4) == pytest.approx(
        [1 / 3 - 1 / 4, 1 / 3 - 1 / 4, 0, 0, 0 - 2 / 4, 2 / 3, 2 / 3, 2 / 3]
    )
    assert agreement(["a", "a"], samples=2) == [1.0, 1.0]  # no other question to compare with


def test_the_same_answer_to_every_question_agrees_with_everybody_and_earns_nothing() -> None:
    assert agreement(["unknown"] * 12, samples=4) == [0.0] * 12


@settings(max_examples=30)
@given(st.lists(st.sampled_from("ab"), min_size=6, max_size=6), st.sampled_from([2, 3]))
def test_answers_that_do_not_depend_on_the_question_earn_nothing_on_average(votes: list[str], samples: int) -> None:
    """Over all orders of the same votes, each order as likely as any other."""
    every = [sum(agreement(order, samples)) for order in itertools.permutations(votes)]
    assert sum(every) == pytest.approx(0, abs=1e-9)


def test_agreement_goes_by_normalised_answers_and_reads_no_gold() -> None:
    texts = ["The Norway!", "norway", "Sweden", "Oslo", "Oslo", "oslo."]
    episodes = [finished(1, ActionKind.ANSWER, text, question=Unlabelled()) for text in texts]
    episodes[2] = finished(0, ActionKind.MALFORMED, "norway", question=Unlabelled())  # votes for nothing
    free = replace(PAPER, judge=Judge.agreement, gated=True)
    found = scores(episodes, free, 3, NOWHERE)
    assert found == pytest.approx([1.0, 1.0, 0.0, 2.0, 2.0, 2.0])
    earned = [sum(t.rewards) for t in learnable(episodes, found, free, 3, price=0.2)]
    assert earned == pytest.approx([0.9, 0.9, -1.0, 1.8, 1.8, 1.8])
    with pytest.raises(AssertionError, match="gold answers were read"):
        gold_score(episodes[0], PAPER)


def test_an_article_alone_is_no_vote() -> None:
    episodes = [finished(0, ActionKind.ANSWER, text) for text in ("the", "a")]
    assert scores(episodes, replace(PAPER, judge=Judge.agreement), 2, NOWHERE) == [0.0, 0.0]


def test_a_voided_episode_is_left_out_and_the_others_keep_their_groups() -> None:
    episodes = [finished(0, ActionKind.ANSWER, text) for text in "abcd"]
    kept = learnable(episodes, [1.0, None, 0.5, 2.0], PAPER, samples=2, price=0.2)
    assert [(t.id, t.group, sum(t.rewards)) for t in kept] == [
        (episodes[0].id, 0, 1.0),
        (episodes[2].id, 1, 0.5),
        (episodes[3].id, 1, 2.0),
    ]
