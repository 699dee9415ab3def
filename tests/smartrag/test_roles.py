"""Whose a token is, several policies as one, and what is learned when only some roles are trained."""

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from smartrag.choices import Role
from smartrag.feedback import learnable
from smartrag.prompt import Budget, Prompt
from smartrag.roles import Composed, roles
from smartrag.trajectory import to_trajectory
from smartrag.types import ActionKind, Completion, Episode, EpisodeRequest, Question, Stop
from tests import toys

DECISION, QUERY, ANSWER = Role
PROMPTS = {tags: Prompt(toys.tokenizer(tags=tags), "", Budget(400, 40, 60)) for tags in (True, False)}
many = settings(max_examples=300)


def encode(prompt: Prompt, text: str) -> list[int]:
    return prompt.tokenizer.encode(text, add_special_tokens=False)


def test_roles_by_hand() -> None:
    one = PROMPTS[True]  # a tag is a token
    assert roles(encode(one, "[Search] Os"), one) == (DECISION, QUERY, QUERY, QUERY)
    assert roles(encode(one, "[Answer]x"), one) == (DECISION, ANSWER)
    assert roles(encode(one, " [Answer]x"), one) == (DECISION, DECISION, ANSWER)
    assert roles(encode(one, "[Search][Answer]x"), one) == (DECISION, QUERY, QUERY)
    assert roles(encode(one, "ab"), one) == roles(encode(one, "[S"), one) == (DECISION, DECISION)
    assert roles((), one) == ()
    assert roles(encode(one, "ab"), one, tag=one.answer_ids) == (ANSWER, ANSWER)
    assert roles(encode(one, "[Answer]"), one, tag=one.search_ids) == (QUERY,)
    text = PROMPTS[False]  # a tag is eight tokens, of which both share the first
    assert text.search_ids[0] == text.answer_ids[0]
    assert roles(encode(text, "[Search] x"), text) == (DECISION,) * 8 + (QUERY,) * 2
    assert roles(encode(text, "[Search"), text) == (DECISION,) * 7


@dataclass
class Scripted:
    """A greedy engine: its token at place i of a generation is the i-th of `script`, then the end token. A log-prob and
    a version say whose the token is and what exactly stood before it."""

    name: int
    script: tuple[int, ...]
    end_id: int
    start: int  # tokens before the generation

    def token(self, before: Sequence[int]) -> tuple[int, float, int]:
        place = len(before) - self.start
        token = self.script[place] if place < len(self.script) else self.end_id
        return token, -(hash((self.name, *before)) % 1000) / 1024, self.name

    async def __call__(
        self, prompt_ids: Sequence[int], *, max_new_tokens: int, temperature: float, seed: int, request_id: str
    ) -> Completion:
        assert max_new_tokens >= 1
        written: list[tuple[int, float, int]] = []
        while len(written) < max_new_tokens and not (written and written[-1][0] == self.end_id):
            written.append(self.token([*prompt_ids, *(token for token, _, _ in written)]))
        return completion(written, self.end_id)


def completion(written: Sequence[tuple[int, float, int]], end_id: int) -> Completion:
    ids, logprobs, versions = zip(*written, strict=True)
    stop = Stop.END if ids[-1] == end_id else Stop.LENGTH
    return Completion(ids, logprobs, stop, versions, entropies=logprobs, margins=logprobs)


TEXTS = st.builds(
    lambda tag, text: tag + text,
    st.sampled_from(["[Search] ", "[Answer] ", "[Search]", "  [Search] ", "[Answer][Search] ", "[Sea", "", "so ", " "]),
    st.text("ab [", max_size=12),
)


@many
@given(st.booleans(), st.sampled_from(["", "[Search]", "[Answer]"]), st.tuples(TEXTS, TEXTS, TEXTS), st.integers(1, 24))
def test_every_token_is_its_roles_engines(tags: bool, forced: str, texts: tuple[str, ...], budget: int) -> None:
    """The oracle asks, token by token, the engine of the role that the text so far calls for."""
    prompt = PROMPTS[tags]
    opening = [*prompt.question(toys.QUESTION, 1), *encode(prompt, forced)]
    engines = {
        role: Scripted(number, tuple(encode(prompt, text)), prompt.end_id, len(opening))
        for number, (role, text) in enumerate(zip(Role, texts, strict=True))
    }
    written: list[tuple[int, float, int]] = []
    while len(written) < budget and not (written and written[-1][0] == prompt.end_id):
        ids = [token for token, _, _ in written]
        tag = re.match(r"\s*\[(Search|Answer)\]", forced or prompt.tokenizer.decode(ids))
        role = DECISION if tag is None else QUERY if tag[1] == "Search" else ANSWER
        written.append(engines[role].token([*opening, *ids]))

    asked = {"max_new_tokens": budget, "temperature": 0.7, "seed": 3, "request_id": "r"}
    found = asyncio.run(Composed(engines, prompt)(opening, **asked))
    assert found == completion(written, prompt.end_id)
    whose = roles(found.token_ids, prompt, tag=encode(prompt, forced))
    assert tuple(list(Role)[name] for name in found.weight_versions) == whose
    for engine in engines.values():  # one engine in all roles is that engine
        same = Composed(dict.fromkeys(Role, engine), prompt)
        assert asyncio.run(same(opening, **asked)) == asyncio.run(engine(opening, **asked))


@many
@given(st.booleans(), TEXTS, st.sampled_from(Stop))
def test_roles_and_parsing_agree(tags: bool, text: str, stop: Stop) -> None:
    prompt = PROMPTS[tags]
    ids = [*encode(prompt, text), *([prompt.end_id] if stop is Stop.END else [])]
    action, whose = prompt.parse(ids, stop).kind, {*roles(ids, prompt)}
    if action in (ActionKind.SEARCH, ActionKind.ANSWER):
        assert whose == {DECISION, QUERY if action is ActionKind.SEARCH else ANSWER}
    if whose == {DECISION} and ids:
        assert action in (ActionKind.MALFORMED, ActionKind.CUT) or prompt.parse(ids, Stop.END).kind is action


def test_parts_are_sampled_by_seeds_of_their_own() -> None:
    prompt, calls = PROMPTS[True], []

    class Noting(toys.ScriptedPolicy):
        async def __call__(self, prompt_ids: Sequence[int], **asked: object) -> Completion:  # type: ignore[override]
            calls.append(asked)
            ids = self.prompt.search_ids if asked["max_new_tokens"] == 1 else (65, self.prompt.end_id)
            stop = Stop.END if len(ids) == 2 else Stop.LENGTH
            return Completion(ids, (-0.5,) * len(ids), stop, (1,) * len(ids))

    composed = Composed(dict.fromkeys(Role, Noting(prompt)), prompt)
    for seed in (5, 6, 5):
        question = prompt.question("x", 1)
        asyncio.run(composed(question, max_new_tokens=9, temperature=0.7, seed=seed, request_id=f"r{seed}"))
    seeds = [call["seed"] for call in calls]
    assert seeds[:2] == seeds[4:]
    assert len({*seeds}) == 4
    assert [(call["max_new_tokens"], call["temperature"]) for call in calls] == [(1, 0.7), (8, 0.7)] * 3
    assert len({call["request_id"] for call in calls}) == 4


# ---------------------------------------------------------------------------------------------------------------------
# learning from some roles


def _episode(*texts: str, quota: int = 1) -> Episode:
    from smartrag.episode import run_episode

    prompt = toys.prompt()
    request = EpisodeRequest("e", Question("q", toys.QUESTION, ("Norway",)), quota, 1)
    return asyncio.run(
        run_episode(request, toys.ScriptedPolicy(prompt, *texts), toys.Shelf(toys.OSLO), prompt, temperature=1.0)
    )


def _picture(episode: Episode, *trains: Role) -> str:
    """The trained tokens, rewards behind the tokens that carry them."""
    made = to_trajectory(episode, [-0.25, 2.0][-len(episode.turns) :], 0, trains)
    shown = ""
    for token, chosen, reward in zip(made.token_ids, made.mask, made.rewards, strict=True):
        assert chosen or not reward
        shown += toys.tokenizer().decode([token]) if chosen else ""
        shown += f"({reward:+g})" if reward else ""
    return shown


def test_what_each_role_learns_by_hand() -> None:
    searched = _episode("[Search] Oslo", " Norway")  # the answer's tag is forced
    assert _picture(searched, DECISION, QUERY, ANSWER) == "[Search] Oslo<|end|>(-0.25) Norway<|end|>(+2)"
    assert _picture(searched, DECISION) == "[Search](+1.75)"
    assert _picture(searched, QUERY) == " Oslo<|end|>(+1.75)"
    assert _picture(searched, ANSWER) == " (-0.25)Norway<|end|>(+2)"  # nothing before it is to blame for the cost
    assert _picture(searched, DECISION, ANSWER) == "[Search](-0.25) Norway<|end|>(+2)"
    chosen = _episode("[Search] Oslo", "[Answer] Norway", quota=2)
    assert _picture(chosen, DECISION) == "[Search](-0.25)[Answer](+2)"
    assert _picture(chosen, QUERY, ANSWER) == " Oslo<|end|>(-0.25) Norway<|end|>(+2)"
    malformed = _episode("Norway")
    assert _picture(malformed, DECISION) == "Norway<|end|>(+2)"


def test_an_episode_without_a_token_of_a_trained_role_teaches_nothing() -> None:
    direct = _episode("[Answer] Norway")
    assert learnable([direct], [2.0], toys.PAPER, 1, 0.2, [QUERY]) == []
    assert len(learnable([direct], [2.0], toys.PAPER, 1, 0.2, [DECISION])) == 1
    with pytest.raises(ValueError, match="no token of query"):
        to_trajectory(direct, [2.0], 0, [QUERY])
