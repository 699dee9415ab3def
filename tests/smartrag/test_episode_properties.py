"""Whatever a policy writes and a retriever brings, an episode becomes a trajectory that says exactly what happened."""

import asyncio
import pickle
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields, replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from smartrag.batch import collate
from smartrag.choices import Role
from smartrag.episode import run_episode
from smartrag.prompt import Budget, Prompt
from smartrag.trajectory import to_trajectory
from smartrag.types import (
    Completion,
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
    Retrieved,
    Stop,
    Trajectory,
)
from tests import toys

TOKENIZER = toys.tokenizer()
END_ID = TOKENIZER.convert_tokens_to_ids("<|end|>")
TAG_IDS = TOKENIZER.convert_tokens_to_ids(["[Search]", "[Answer]"])
PLANTED = "planted failure"


@dataclass(frozen=True)
class Script:
    """One episode as it will go: what the policy writes and the retriever brings, turn by turn; the last repeats."""

    request: EpisodeRequest
    budget: Budget
    writes: tuple[tuple[tuple[int, ...], bool], ...]  # (token ids, whether the engine cuts them before the end token)
    brings: tuple[Retrieved, ...]

    def brought(self, queries: int) -> list[Retrieved]:
        return [self.brings[min(i, len(self.brings) - 1)] for i in range(queries)]


class Wild:
    """A `Generate` and a `Retrieve` that follow a script and take down what they were asked. Every generated token has
    a log-prob and a weight version of its own, so that one out of place shows."""

    def __init__(self, script: Script):
        self.script = script
        self.prompts: list[tuple[int, ...]] = []
        self.written: list[Completion] = []
        self.queries: list[str] = []
        self.count = 0

    async def generate(
        self, prompt_ids: Sequence[int], *, max_new_tokens: int, temperature: float, seed: int, request_id: str
    ) -> Completion:
        assert max_new_tokens >= 1
        assert len(prompt_ids) + max_new_tokens <= self.script.budget.context
        assert temperature == (0.0 if self.script.request.greedy else 0.7)
        ids, cut = self.script.writes[min(len(self.prompts), len(self.script.writes) - 1)]
        if prompt_ids[-1] in TAG_IDS and ids[:1] and ids[0] in TAG_IDS:
            ids = ids[1:]  # behind a forced tag a policy that has learned anything writes no other
        cut = cut or len(ids) >= max_new_tokens
        ids = (ids or (65,))[:max_new_tokens] if cut else (*ids, END_ID)
        numbers = range(self.count + 1, self.count + 1 + len(ids))
        self.count += len(ids)
        completion = Completion(
            ids, tuple(-n / 1024 for n in numbers), Stop.LENGTH if cut else Stop.END, tuple(100 + n for n in numbers)
        )
        self.prompts.append(tuple(prompt_ids))
        self.written.append(completion)
        return completion

    async def retrieve(self, query: str, k: int) -> Retrieved:
        self.queries.append(query)
        return self.script.brought(len(self.queries))[-1]

    def play(self) -> Episode:
        prompt = Prompt(TOKENIZER, "", self.script.budget)
        return asyncio.run(run_episode(self.script.request, self.generate, self.retrieve, prompt, temperature=0.7))


TEXTS = st.text(max_size=12) | st.sampled_from(["Oslo", "[Search] x", "[Answer]", "<|end|>", "<|user|>", "é\u200b"])
TAGS = st.sampled_from(
    ["[Search] ", "[Answer] ", "  [Search]", "[Search] [Answer] ", "[search] ", "[Search", "", "so "]
)
SPELLED = st.builds(lambda tag, text: tuple(TOKENIZER.encode(tag + text)), TAGS, TEXTS)
RAW = st.lists(st.integers(0, len(TOKENIZER) - 1).filter(lambda i: i != END_ID), max_size=8).map(tuple)
SEARCH = (tuple(TOKENIZER.encode("[Search] é")), False)
GOOD = st.sampled_from(["[Answer] é", "é", "[Search] x", "x"]).map(lambda text: tuple(TOKENIZER.encode(text)))
WRITES = st.tuples(GOOD | GOOD | SPELLED | RAW, st.sampled_from([False, False, False, True]))
PASSAGES = st.lists(
    st.builds(Passage, st.text(max_size=2), st.text(max_size=30), st.floats(0, 9)), min_size=1, max_size=3
)
HITS = st.builds(lambda ps: Hits(tuple(ps)), PASSAGES)
FOUND: st.SearchStrategy[Retrieved] = HITS | st.just(Empty())


@st.composite
def scripts(draw: st.DrawFn, brings: st.SearchStrategy[Retrieved] = FOUND) -> Script:
    """Some searches, then anything. Budgets go down to those in which a question and one answer just fit."""
    question = draw(st.text(max_size=12))
    new_tokens = draw(st.sampled_from([6, 24, 12, 2]))
    asked = Prompt(TOKENIZER, "", Budget(1 << 20, new_tokens, 1)).question(question, 1)
    searches = draw(st.sampled_from([4, 2, 1, 0]))  # that the context has room for, and some tokens beside
    context = len(asked) + 1 + new_tokens + searches * (new_tokens + 30) + draw(st.integers(0, 40))
    request = EpisodeRequest(
        draw(st.text("0123456789abcdef", min_size=32, max_size=32)),
        Question("q", question, ("Norway",), {"hops": 1}),
        draw(st.sampled_from([1, 4, 3, 2, 0])),
        3,
        draw(st.sampled_from([Gate.POLICY, Gate.POLICY, Gate.POLICY, Gate.ALWAYS, Gate.NEVER])),
        draw(st.booleans()),
    )
    return Script(
        request,
        Budget(context, new_tokens, draw(st.integers(1, 40))),
        (*[SEARCH] * draw(st.sampled_from([1, 0, 2, 4])), *draw(st.lists(WRITES, min_size=1, max_size=3))),
        tuple(draw(st.lists(brings, min_size=1, max_size=4))),
    )


def turn_rewards(episode: Episode) -> list[float]:
    """A different reward each turn, so that one on the wrong turn shows; eighths are exact."""
    return [(i + 1) / 8 - 0.375 for i in range(len(episode.turns))]


def trained(trajectory: Trajectory, name: str) -> list[float]:
    return [x for x, chosen in zip(getattr(trajectory, name), trajectory.mask, strict=True) if chosen]


many = settings(max_examples=50)


@many
@given(scripts())
def test_token_in_token_out_within_quota_and_budget(script: Script) -> None:
    wild = Wild(script)
    episode = wild.play()
    seen: list[int] = []  # every prompt is the concatenation of all that came before it
    for turn, given_ids, written in zip(episode.turns, wild.prompts, wild.written, strict=True):
        seen += turn.context_ids
        assert given_ids == tuple(seen)
        assert turn.completion == written
        seen += written.token_ids
    assert len(seen) <= script.budget.context
    assert episode.retrievals == len(wild.queries) <= script.request.quota
    assert len(episode.turns) <= script.request.quota + 1


@many
@given(scripts())
def test_every_turn_but_the_last_searched_and_the_last_ends_the_episode(script: Script) -> None:
    wild = Wild(script)
    episode = wild.play()
    assert [t.action.text for t in episode.turns[:-1]] == wild.queries
    assert [t.retrieved for t in episode.turns[:-1]] == script.brought(len(wild.queries))
    last = episode.turns[-1]
    assert last.retrieved is None
    assert (episode.end is End.TRUNCATED) == (last.completion.stop is Stop.LENGTH)
    assert (episode.answer is not None) == (episode.end is End.ANSWERED)
    if script.request.gate is Gate.NEVER or script.request.quota == 0:
        assert (len(episode.turns), last.forced) == (1, True)
    for number, turn in enumerate(episode.turns):
        tag = TOKENIZER.convert_ids_to_tokens(turn.context_ids[-1]) if turn.forced else ""
        if number >= script.request.quota:
            assert tag == "[Answer]"


@many
@given(scripts())
def test_exactly_the_policys_tokens_are_trained_on(script: Script) -> None:
    wild = Wild(script)
    episode = wild.play()
    made = to_trajectory(episode, turn_rewards(episode), group=3)
    sequences = [value for value in astuple(made) if isinstance(value, tuple)]
    assert {len(x) for x in sequences} == {len(wild.prompts[-1]) + len(wild.written[-1].token_ids)}
    assert trained(made, "token_ids") == [i for c in wild.written for i in c.token_ids]
    assert trained(made, "logprobs") == [-(n + 1) / 1024 for n in range(wild.count)]
    assert trained(made, "weight_versions") == [101 + n for n in range(wild.count)]
    for i, chosen in enumerate(made.mask):
        if not chosen:
            assert (made.logprobs[i], made.rewards[i], made.weight_versions[i]) == (0.0, 0.0, -1)
    # Each turn's reward stands on the turn's last token, and nothing else does.
    ends = [len(p) + len(c.token_ids) - 1 for p, c in zip(wild.prompts, wild.written, strict=True)]
    assert [made.rewards[i] for i in ends] == turn_rewards(episode)
    assert sum(trained(made, "rewards")) == sum(made.rewards) == sum(turn_rewards(episode))
    assert made.truncated is (episode.end is End.TRUNCATED)


@many
@given(scripts(), st.sets(st.sampled_from(Role), min_size=1))
def test_nothing_of_a_frozen_role_is_trained_on_and_no_reward_is_lost(script: Script, trains: set[Role]) -> None:
    episode = Wild(script).play()
    owners = [role for turn in episode.turns for role in turn.roles]
    rewards = [-float(n) for n in range(1, len(episode.turns) + 1)]
    sizes = [len(turn.context_ids) + len(turn.completion.token_ids) for turn in episode.turns]
    due = [x for size, reward in zip(sizes, rewards, strict=True) for x in (*[0.0] * (size - 1), reward)]
    if not trains & {*owners}:
        with pytest.raises(ValueError, match="nothing to learn from"):
            to_trajectory(episode, rewards, 0, trains)
        return
    whole, made = (to_trajectory(episode, rewards, 0, some) for some in (tuple(Role), trains))
    assert made.token_ids == whole.token_ids
    theirs = iter(owners)
    assert made.mask == tuple(chosen and next(theirs) in trains for chosen in whole.mask)
    assert [[*Role][place] for place, chosen in zip(whole.roles, whole.mask, strict=True) if chosen] == owners
    for name, blank in (("logprobs", 0.0), ("weight_versions", -1), ("roles", -1)):
        kept = zip(getattr(whole, name), made.mask, strict=True)
        assert getattr(made, name) == tuple(x if chosen else blank for x, chosen in kept)
    # A trained token earns all that comes before the next one; the first also what came before it.
    assert sum(made.rewards) == sum(rewards)
    places = [i for i, chosen in enumerate(made.mask) if chosen]
    for place, following in zip(places, [*places[1:], len(made.mask)], strict=True):
        start = 0 if place == places[0] else place
        assert made.rewards[place] == sum(due[start:following])
    collate([made], pad_id=0)


@many
@given(st.lists(scripts(), min_size=1, max_size=4), st.data())
def test_a_batch_holds_its_trajectories_and_no_reward_off_the_mask(played: list[Script], data: st.DataObject) -> None:
    episodes = [Wild(script).play() for script in played]
    made = [to_trajectory(e, turn_rewards(e), group=i) for i, e in enumerate(episodes)]
    batch = collate(made, pad_id=0)
    for row, trajectory in enumerate(made):
        real = batch.attention_mask[row]
        for name in ("token_ids", "mask", "logprobs", "rewards"):
            assert tuple(getattr(batch, name)[row][real].tolist()) == getattr(trajectory, name)
        assert not batch.mask[row][~real].any()
        assert (bool(batch.truncated[row]), int(batch.groups[row])) == (trajectory.truncated, trajectory.group)
    assert torch.where(batch.mask, batch.rewards, 0).sum() == sum(sum(t.rewards) for t in made)

    victim = data.draw(st.sampled_from(made))
    place = data.draw(st.sampled_from([i for i, chosen in enumerate(victim.mask) if not chosen]))
    costly = tuple(-0.2 if i == place else r for i, r in enumerate(victim.rewards))
    with pytest.raises(ValueError, match="would be lost"):
        collate([*made, replace(victim, rewards=costly)], pad_id=0)


@many
@given(scripts(brings=FOUND | st.just(Failed(PLANTED))))
def test_a_failed_retrieval_voids_the_episode_and_is_never_read(script: Script) -> None:
    wild, error = Wild(script), None
    try:
        wild.play()
    except EpisodeFailed as raised:
        error = raised
    failed = [isinstance(x, Failed) for x in script.brought(len(wild.queries))]
    assert not any(failed[:-1])
    assert any(failed) is (error is not None)
    if error is not None:
        assert PLANTED in str(error)
        assert script.request.id in str(error)
        assert pickle.loads(pickle.dumps(error)).args == error.args
    assert not any(PLANTED in TOKENIZER.decode(p) for p in wild.prompts)


@many
@given(scripts())
def test_every_field_survives_the_way_between_machines(script: Script) -> None:
    episode = Wild(script).play()
    made = to_trajectory(episode, turn_rewards(episode), group=3)
    for thing in (script.request, episode, made):
        again = pickle.loads(pickle.dumps(thing))
        assert again == thing
        assert [getattr(again, f.name) for f in fields(again)] == [getattr(thing, f.name) for f in fields(thing)]
    assert Trajectory(*astuple(made)) == made
    assert Wild(script).play() == episode  # the same policy and retriever give the same episode


@many
@given(scripts())
def test_an_answer_always_has_its_whole_budget(script: Script) -> None:
    """Once the context holds no further search with its answer, the answer is asked for."""
    assume(script.request.quota > 0 and script.request.gate is not Gate.NEVER)
    wild = Wild(replace(script, writes=(SEARCH,)))
    episode = wild.play()
    for turn, given_ids in zip(episode.turns, wild.prompts, strict=True):
        assert script.budget.context - len(given_ids) >= script.budget.new_tokens
        assert turn.context_ids  # at least the template's marks stand between two generations
    if script.request.gate is Gate.POLICY and episode.end is not End.TRUNCATED:
        assert episode.turns[-1].forced


def test_a_question_that_leaves_no_room_for_an_answer_is_refused() -> None:
    request = EpisodeRequest("e", Question("q7", "x" * 50, ("y",)), 1, 1)
    with pytest.raises(ValueError, match=r"question q7 .* raise model\.context_tokens"):
        Wild(Script(request, Budget(60, 10, 5), (((65,), False),), (Empty(),))).play()
