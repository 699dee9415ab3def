"""The roles of the policy: it decides whether to search or to answer, writes the query, writes the answer.

    [Search] who leads Norway <end>        [Answer] Jonas Gahr Støre <end>
    decision query ... query  query        decision answer ... answer answer

Whose a token is depends on nothing but what stands before it, so several policies can write one generation together,
each the tokens of its roles. What does not begin with a tag is the decision's to its end.
"""

import hashlib
from collections.abc import Mapping, Sequence

from smartrag.choices import Role
from smartrag.prompt import Prompt
from smartrag.types import Completion, Generate, Stop

_NOTHING = Completion((), (), Stop.LENGTH, ())
_BY_TOKEN = ("token_ids", "logprobs", "weight_versions", "entropies", "margins")  # fields of a completion


def roles(token_ids: Sequence[int], prompt: Prompt, *, tag: Sequence[int] = ()) -> tuple[Role, ...]:
    """[G] the role of each generated token. `tag`: the forced tag that stood before them, if any."""
    forced = _forced(tag, prompt)
    if forced is not None:
        return (forced,) * len(token_ids)
    decided, role = prompt.tag(token_ids) or (len(token_ids), Role.decision)
    return (Role.decision,) * decided + (role,) * (len(token_ids) - decided)


class Composed:
    """Implements `Generate`: every token is written by the engine of its role.

    The decision's engine writes as many tokens as a tag takes, the engine that the tag calls for goes on behind it. All
    engines must know the same tokens. With one engine for all roles, greedy generations are those of that engine alone.
    """

    def __init__(self, engines: Mapping[Role, Generate], prompt: Prompt):
        self._engines, self._prompt = dict(engines), prompt
        self._tag_tokens = max(len(prompt.search_ids), len(prompt.answer_ids))

    async def __call__(
        self, prompt_ids: Sequence[int], *, max_new_tokens: int, temperature: float, seed: int, request_id: str
    ) -> Completion:
        async def go_on(role: Role, written: Completion, until: int) -> Completion:
            """`written` and what the engine of `role` writes behind it, `until` tokens at most in all."""
            start = len(written.token_ids)
            if start >= until:
                return written
            more = await self._engines[role](
                [*prompt_ids, *written.token_ids],
                max_new_tokens=until - start,
                temperature=temperature,
                seed=part_seed(seed, start),
                request_id=f"{request_id}-{start}",
            )
            return _joined(written, more)

        forced = _forced(prompt_ids, self._prompt)
        if forced is not None:
            return await go_on(forced, _NOTHING, max_new_tokens)
        written = await go_on(Role.decision, _NOTHING, min(self._tag_tokens, max_new_tokens))
        found = self._prompt.tag(written.token_ids)
        if found is None and written.stop is Stop.LENGTH:  # malformed, or a tag in more tokens than we spell it in
            written = await go_on(Role.decision, written, max_new_tokens)
            found = self._prompt.tag(written.token_ids)
        if found is None:
            return written
        decided, role = found
        return await go_on(role, _first(written, decided), max_new_tokens)


def part_seed(seed: int, start: int) -> int:
    """Sampling seed of the part of a generation that begins at its token `start`, in [0, 2^31)."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{start}".encode()).digest()[:4], "big") >> 1


def _forced(ids: Sequence[int], prompt: Prompt) -> Role | None:
    """Whose turn it is behind a forced tag; None when `ids` do not end in one. Nothing untrusted spells a tag."""
    for tag, role in ((prompt.search_ids, Role.query), (prompt.answer_ids, Role.answer)):
        if tuple(ids[-len(tag) :]) == tag:
            return role
    return None


def _joined(a: Completion, b: Completion) -> Completion:
    return Completion(stop=b.stop, **{name: getattr(a, name) + getattr(b, name) for name in _BY_TOKEN})


def _first(written: Completion, count: int) -> Completion:
    """Its first `count` tokens, to be gone on with."""
    return Completion(stop=Stop.LENGTH, **{name: getattr(written, name)[:count] for name in _BY_TOKEN})
