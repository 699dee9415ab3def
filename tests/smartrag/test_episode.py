"""Episodes of a scripted policy, and their trajectories as token pictures."""

import asyncio
from pathlib import Path

import pytest

from smartrag.episode import episode_id, run_episode, turn_seed
from smartrag.evaluation.oracle import GoldFirst
from smartrag.feedback import learnable, scores
from smartrag.reward import episode_reward
from smartrag.trajectory import imitation
from smartrag.types import (
    Empty,
    End,
    Episode,
    EpisodeFailed,
    EpisodeRequest,
    Failed,
    Gate,
    Hits,
    Passage,
    Question,
    Trajectory,
)
from tests import toys
from tests.toys import PAPER

ASKED = Question("q", toys.QUESTION, ("Norway",))


def _run(
    *texts: str, quota: int = 1, gate: Gate = Gate.POLICY, shelf: toys.Shelf | None = None, **sizes: int
) -> Episode:
    prompt = toys.prompt(**sizes)
    shelf = shelf or toys.Shelf(toys.OSLO, toys.BERGEN)
    policy = toys.ScriptedPolicy(prompt, *texts)
    request = EpisodeRequest(episode_id(0, "test", 0, 0), ASKED, quota, 1, gate)
    episode = asyncio.run(run_episode(request, policy, shelf, prompt, temperature=1.0))
    seen: list[int] = []  # token in, token out: every prompt is exactly what came before it
    given = iter(policy.prompts)
    for turn in episode.turns:
        seen += turn.context_ids
        if turn.completion.token_ids:
            assert next(given) == tuple(seen)
        seen += turn.completion.token_ids
    return episode


def paper_trajectory(episode: Episode) -> Trajectory:
    found = scores([episode], PAPER, samples=1, cache=Path("unused"))
    return learnable([episode], found, PAPER, samples=1, price=0.2)[0]


def _picture(episode: Episode) -> str:
    """The conversation as text with the trained tokens between ⟨ and ⟩."""
    trajectory, tokenizer, out = paper_trajectory(episode), toys.tokenizer(), ""
    for i, (token, chosen) in enumerate(zip(trajectory.token_ids, trajectory.mask, strict=True)):
        before = i > 0 and trajectory.mask[i - 1]
        out += ("⟨" if chosen and not before else "⟩" if before and not chosen else "") + tokenizer.decode([token])
    return out + ("⟩" if trajectory.mask[-1] else "")


def test_a_direct_answer() -> None:
    episode = _run("[Answer] Norway")
    assert (episode.end, episode.answer, episode.retrievals) == (End.ANSWERED, "Norway", 0)
    assert episode_reward(episode, PAPER) == 2.0
    assert _picture(episode) == f"<|user|>{toys.QUESTION}<|assistant|>⟨[Answer] Norway<|end|>⟩"


def test_the_question_itself_may_be_the_first_query() -> None:
    shelf = toys.Shelf(toys.OSLO)
    episode = _run(" Norway", gate=Gate.QUESTION, shelf=shelf)
    assert shelf.queries == [toys.QUESTION]
    assert (episode.retrievals, episode.answer) == (1, "Norway")
    first = episode.turns[0]
    assert toys.tokenizer().decode(first.context_ids).endswith(f"<|assistant|>[Search] {toys.QUESTION}<|end|>")
    assert first.completion.token_ids == ()
    assert first.forced
    with pytest.raises(ValueError, match="without generated tokens"):  # nobody can be trained on it
        paper_trajectory(episode)


def test_a_retriever_that_is_told_the_answer_brings_it_first() -> None:
    rome = Passage("p3", "Oslo\nOslo is a song.", 9.0)
    shelf = toys.Shelf(rome, toys.BERGEN, toys.OSLO)
    question = Question("q", "Who knows Bergen?", ("Norway",))
    brought = asyncio.run(GoldFirst(shelf, question)("Oslo", 2))
    assert isinstance(brought, Hits)
    assert [p.id for p in brought.passages] == ["p1", "p2"]  # by the query, then by the question
    assert asyncio.run(GoldFirst(toys.Shelf(rome), question)("Oslo", 2)) == Hits((rome,))
    assert asyncio.run(GoldFirst(toys.Shelf(rome), question)("Paris", 2)) == Empty()
    assert isinstance(asyncio.run(GoldFirst(toys.Shelf(rome, failures=1), question)("Oslo", 2)), Failed)


def test_the_request_says_how_many_passages_a_retrieval_brings() -> None:
    prompt, shelf = toys.prompt(), toys.Shelf(toys.OSLO, toys.BERGEN)
    for k in (1, 2):
        request = EpisodeRequest(episode_id(0, "test", 0, k), ASKED, 1, k)
        policy = toys.ScriptedPolicy(prompt, "[Search] Norway", " Norway")
        episode = asyncio.run(run_episode(request, policy, shelf, prompt, temperature=1.0))
        assert len(episode.turns[0].retrieved.passages) == k


def test_a_search_and_a_forced_answer_whose_tag_is_not_trained_on() -> None:
    episode = _run("[Search] Oslo", " Norway")
    assert [turn.forced for turn in episode.turns] == [False, True]
    assert episode_reward(episode, PAPER) == pytest.approx(1.8)
    assert _picture(episode) == (
        f"<|user|>{toys.QUESTION}<|assistant|>⟨[Search] Oslo<|end|>⟩"
        f"<|user|>{toys.OSLO.contents}<|assistant|>[Answer]⟨ Norway<|end|>⟩"
    )


def test_below_the_quota_the_policy_chooses_again() -> None:
    episode = _run("[Search] Oslo", "[Search] Bergen", " Norway", quota=2)
    assert [turn.forced for turn in episode.turns] == [False, False, True]
    assert episode.retrievals == 2
    assert episode_reward(episode, PAPER) == pytest.approx(1.6)


def test_quota_zero_and_the_fixed_gates_force_the_first_tag() -> None:
    assert _picture(_run(" Norway", quota=0)) == f"<|user|>{toys.QUESTION}<|assistant|>[Answer]⟨ Norway<|end|>⟩"
    assert _run(" Norway", quota=3, gate=Gate.NEVER).retrievals == 0
    always = _run(" Oslo", "[Answer] Norway", quota=2, gate=Gate.ALWAYS)
    assert always.retrievals == 1
    assert _picture(always).startswith(f"<|user|>{toys.QUESTION}<|assistant|>[Search]⟨ Oslo<|end|>⟩")


def test_rewards_sit_on_each_turns_last_token_and_masking_keeps_their_sum() -> None:
    episode = _run("[Search] Oslo", " Sweden")
    trajectory = paper_trajectory(episode)
    placed = {i: r for i, r in enumerate(trajectory.rewards) if r}
    first = len(episode.turns[0].context_ids) + len(episode.turns[0].completion.token_ids) - 1
    assert placed == {first: -0.2}  # a wrong answer is worth 0
    masked = sum(r for r, chosen in zip(trajectory.rewards, trajectory.mask, strict=True) if chosen)
    assert masked == pytest.approx(sum(trajectory.rewards)) == pytest.approx(episode_reward(episode, PAPER))
    assert {v for v, chosen in zip(trajectory.weight_versions, trajectory.mask, strict=True) if chosen} == {7}


def test_malformed_and_cut_generations_end_the_episode() -> None:
    wrong = _run("Norway, I think")
    assert (wrong.end, episode_reward(wrong, PAPER), paper_trajectory(wrong).truncated) == (
        End.FORMAT_ERROR,
        -1,
        False,
    )
    cut = _run("[Answer] Nor...")
    assert (cut.end, episode_reward(cut, PAPER), paper_trajectory(cut).truncated) == (End.TRUNCATED, -1, True)
    assert cut.answer is None


def test_nothing_found_is_shown_but_a_failure_voids_the_episode() -> None:
    episode = _run("[Search] Tromsø", " Norway")
    assert isinstance(episode.turns[0].retrieved, Empty)
    with pytest.raises(EpisodeFailed, match="planted"):
        _run("[Search] Oslo", shelf=toys.Shelf(toys.OSLO, failures=1))


def test_a_long_conversation_stays_within_the_context() -> None:
    for context in (110, 120, 150):
        episode = _run("[Search] Oslo", "[Search] Bergen", " Norway", quota=2, context=context, new_tokens=24)
        assert sum(len(t.context_ids) + 24 for t in episode.turns[-1:]) <= context
        assert len(paper_trajectory(episode).token_ids) <= context


def test_ids_and_seeds_are_stable_and_distinct() -> None:
    assert episode_id(0, "train", 1, 2) == episode_id(0, "train", 1, 2)
    ids = {episode_id(s, p, t, k) for s in (0, 1) for p in ("a", "b") for t in (0, 1) for k in range(50)}
    assert len(ids) == 400
    assert len({turn_seed(i, t) for i in ids for t in (0, 1)}) == 800
    assert all(0 <= turn_seed(i, 0) < 2**31 for i in ids)


def test_imitation_trains_on_the_wanted_tokens_alone() -> None:
    made = imitation("x", (1, 2, 3), (4, 5))
    assert made.token_ids == (1, 2, 3, 4, 5)
    assert made.mask == (False, False, False, True, True)
