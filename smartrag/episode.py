"""One question to its end: the only place where a policy meets a retriever.

SmartRAG, Algorithm 1, with the quota N of the request:

    n ← 0
    loop:  if n = N: the answer tag is forced          (it stands in the context and carries no gradient)
           so it is when the context has no room for another search and its answer
           a ~ π(· | question, observations so far)
           [Search] query → o ← R(query), n ← n + 1, append o
           [Answer] text  → end

Training, evaluation, gates, warm-up data, `ask` and `serve` all run through `turns`, mostly gathered by `run_episode`.
"""

import hashlib
import itertools
import time
from collections.abc import AsyncGenerator

from smartrag.prompt import Prompt
from smartrag.roles import roles
from smartrag.types import (
    Action,
    ActionKind,
    Completion,
    Empty,
    End,
    Episode,
    EpisodeFailed,
    EpisodeRequest,
    Failed,
    Gate,
    Generate,
    Hits,
    Retrieve,
    Stop,
    Turn,
)

_ENDS = {
    ActionKind.ANSWER: End.ANSWERED,
    ActionKind.MALFORMED: End.FORMAT_ERROR,
    ActionKind.CUT: End.TRUNCATED,
}


_NOT_ASKED = Completion((), (), Stop.END, ())  # of a turn that the environment wrote


class QuestionTooLong(ValueError):
    """The question leaves no room for an answer."""


def episode_id(seed: int, phase: str, step: int, slot: int) -> str:
    """32 hex digits that name one slot of one step of one run; every sampling seed of the episode derives from them."""
    return hashlib.sha256(f"{seed}/{phase}/{step}/{slot}".encode()).hexdigest()[:32]


def turn_seed(request_id: str, turn: int) -> int:
    """Sampling seed of one generation, in [0, 2^31)."""
    return int.from_bytes(hashlib.sha256(f"{request_id}/{turn}".encode()).digest()[:4], "big") >> 1


async def run_episode(
    request: EpisodeRequest, generate: Generate, retrieve: Retrieve, prompt: Prompt, *, temperature: float
) -> Episode:
    """Ask one question, to its end. Parameters and errors are those of `turns`."""
    made = [turn async for turn in turns(request, generate, retrieve, prompt, temperature=temperature)]
    return Episode(request.id, request.question, tuple(made), end_of(made[-1]))


async def turns(
    request: EpisodeRequest, generate: Generate, retrieve: Retrieve, prompt: Prompt, *, temperature: float
) -> AsyncGenerator[Turn, None]:
    """The turns of one question as they come, the last one that without a retrieval.

    `temperature` is that of sampling; a greedy request overrides it with 0.

    Raises EpisodeFailed when the retriever failed (never when it found nothing); QuestionTooLong.
    """
    context = list(prompt.question(request.question.text, request.quota))
    if len(context) + len(prompt.answer_ids) + prompt.budget.new_tokens > prompt.budget.context:
        raise QuestionTooLong(
            f"question {request.question.id} takes {len(context)} of {prompt.budget.context} tokens and leaves no room "
            f"for an answer of {prompt.budget.new_tokens}; raise model.context_tokens"
        )
    new_context = tuple(context)
    for searches in itertools.count():
        forced = _forced(request, searches, prompt, room=prompt.budget.context - len(context))
        new_context += forced
        context += forced
        began, at = time.monotonic(), time.time()
        if forced and forced[-1] == prompt.end_id:
            completion, action = _NOT_ASKED, Action(ActionKind.SEARCH, request.question.text)
        else:
            completion = await generate(
                context,
                max_new_tokens=prompt.budget.new_tokens,
                temperature=0.0 if request.greedy else temperature,
                seed=turn_seed(request.id, searches),
                request_id=f"{request.id}-{searches}",
            )
            action = prompt.parse(completion.token_ids, completion.stop, tag=forced)
        generated = time.monotonic()
        retrieved = await _search(action, retrieve, request)
        own = roles(completion.token_ids, prompt, tag=forced)
        seconds = generated - began, time.monotonic() - generated
        yield Turn(new_context, completion, action, retrieved, bool(forced), own, *seconds, at)
        if retrieved is None:
            return
        context += completion.token_ids
        new_context = prompt.observation(retrieved, room=_observation_room(prompt, context))
        context += new_context


def end_of(last: Turn) -> End:
    """How an episode ended whose last turn this is."""
    return _ENDS[last.action.kind]


def _forced(request: EpisodeRequest, searches: int, prompt: Prompt, room: int) -> tuple[int, ...]:
    """What the environment writes for the policy: the answer tag at the quota or when `room`, the tokens left of the
    context, holds no search and answer; what a fixed gate demands, a tag or a whole search."""
    answer = prompt.budget.new_tokens + len(prompt.observation(Empty(), room=0)) + len(prompt.answer_ids)
    no_room = room < len(prompt.search_ids) + prompt.budget.new_tokens + answer
    if searches >= request.quota or request.gate is Gate.NEVER or no_room:
        return prompt.answer_ids
    if searches > 0 or request.gate is Gate.POLICY:
        return ()
    if request.gate is Gate.ALWAYS:
        return prompt.search_ids
    asked = prompt.spell(Action(ActionKind.SEARCH, request.question.text))
    return asked if len(asked) + answer <= room else prompt.answer_ids


async def _search(action: Action, retrieve: Retrieve, request: EpisodeRequest) -> Hits | Empty | None:
    if action.kind is not ActionKind.SEARCH:
        return None
    retrieved = await retrieve(action.text, request.k)
    if isinstance(retrieved, Failed):
        raise EpisodeFailed(f"episode {request.id}: retrieval failed: {retrieved.reason}")
    return retrieved


def _observation_room(prompt: Prompt, context: list[int]) -> int:
    """Tokens an observation may take so that a tag and one more generation still fit."""
    return prompt.budget.context - len(context) - prompt.budget.new_tokens - len(prompt.answer_ids)
