"""A larger model behind a chat endpoint shows the warm-up's moves: it answers from memory, writes a query, and reads.

The paper's teacher is GPT-3.5. What it writes becomes episodes of two kinds, closed-book and searched, out of which
`warmup.mined` takes what is right, as out of the policy's own.
"""

import asyncio
import json
import random
from collections.abc import Sequence
from pathlib import Path

from smartrag.chat import Chat, Unanswered, ask
from smartrag.config import Endpoint
from smartrag.data.rows import DataError
from smartrag.prompt import REPLACEMENT, Prompt
from smartrag.roles import roles
from smartrag.types import (
    Action,
    ActionKind,
    Completion,
    Empty,
    End,
    Episode,
    EpisodeFailed,
    Failed,
    Hits,
    Question,
    Retrieve,
    Stop,
    Turn,
)

_ANSWER = "Answer the question from memory, in as few words as you can. Reply with the answer alone."
_QUERY = "Write one short query for a keyword search engine that finds the answer to the question. Reply with it alone."
_READ = "Answer the question from the passages, in as few words as you can. Reply with the answer alone."
_QUERIES_IN_FLIGHT = 64
_NO_POLICY = -1  # weight version of tokens that no policy wrote

Seen = Hits | Empty


def lessons(
    questions: Sequence[Question],
    prompt: Prompt,
    retrieve: Retrieve,
    endpoint: Endpoint,
    cache: Path,
    *,
    quotas: Sequence[int],
    k: int,
    seed: int,
) -> tuple[list[Episode], list[Episode]]:
    """(closed-book, searched): two episodes of each question, as if a policy had written what the teacher wrote.

    `quotas`: those of the training, not all 0; each episode is told one that allows it. A reply that is empty or longer
    than `model.new_tokens` ends its episode unseen. Raises DataError when more than `endpoint.max_void_share` of the
    replies are so or do not come, EpisodeFailed when the retriever failed.
    """

    def replies(system: str, cases: Sequence[dict[str, object]]) -> list[str | None]:
        chats = [Chat(system, json.dumps(case, ensure_ascii=False)) for case in cases]
        return _replies(chats, prompt, endpoint, cache)

    rng = random.Random(f"lessons/{seed}")
    told = [(rng.choice(quotas), rng.choice([n for n in quotas if n])) for _ in questions]
    answers = replies(_ANSWER, [{"question": q.text} for q in questions])
    closed_book = [
        _episode(q, quota, prompt, None, answer)
        for q, (quota, _), answer in zip(questions, told, answers, strict=True)
        if answer is not None
    ]
    queries = replies(_QUERY, [{"question": q.text} for q in questions])
    searches = [(q, n, query) for q, (_, n), query in zip(questions, told, queries, strict=True) if query is not None]
    seen = asyncio.run(_look_up([query for _, _, query in searches], retrieve, k))
    shown = zip(searches, seen, strict=True)
    read = replies(_READ, [{"question": q.text, "passages": _passages(found)} for (q, _, _), found in shown])
    searched = [
        _episode(q, quota, prompt, (query, found), answer)
        for (q, quota, query), found, answer in zip(searches, seen, read, strict=True)
        if answer is not None
    ]
    return closed_book, searched


def _replies(chats: list[Chat], prompt: Prompt, endpoint: Endpoint, cache: Path) -> list[str | None]:
    tokens = prompt.budget.new_tokens

    def usable(reply: str) -> str:
        text = " ".join(prompt.neutralise(reply).replace(REPLACEMENT, " ").split())
        if not text or len(prompt.spell(Action(ActionKind.SEARCH, text))) > tokens:
            raise ValueError(f"a reply that is empty or longer than model.new_tokens={tokens}: {reply[:80]!r}")
        return text

    found = ask(chats, usable, endpoint, cache, reply_tokens=2 * tokens)  # the teacher's tokens may be shorter
    lost = [reply.reason for reply in found if isinstance(reply, Unanswered)]
    if len(lost) > endpoint.max_void_share * len(found):
        raise DataError(
            f"the teacher at {endpoint.base_url} gave no usable reply to {len(lost)} of {len(found)} questions, more "
            f"than warmup.endpoint.max_void_share={endpoint.max_void_share:g} of them; the first: {lost[0]}"
        )
    return [None if isinstance(reply, Unanswered) else reply for reply in found]


async def _look_up(queries: Sequence[str], retrieve: Retrieve, k: int) -> list[Seen]:
    gate = asyncio.Semaphore(_QUERIES_IN_FLIGHT)

    async def one(query: str) -> Seen:
        async with gate:
            seen = await retrieve(query, k)
        if isinstance(seen, Failed):
            raise EpisodeFailed(f"warm-up: retrieval failed: {seen.reason}")
        return seen

    return list(await asyncio.gather(*(one(query) for query in queries)))


def _episode(question: Question, quota: int, prompt: Prompt, search: tuple[str, Seen] | None, answer: str) -> Episode:
    context = prompt.question(question.text, quota)
    turns: list[Turn] = []
    if search is not None:
        query, seen = search
        turns.append(_turn(context, Action(ActionKind.SEARCH, query), seen, prompt))
        taken = len(context) + len(turns[0].completion.token_ids)
        context = prompt.observation(seen, room=prompt.budget.context - taken - prompt.budget.new_tokens)
    turns.append(_turn(context, Action(ActionKind.ANSWER, answer), None, prompt))
    return Episode(f"lesson/{question.id}/{len(turns)}", question, tuple(turns), End.ANSWERED)


def _turn(context: tuple[int, ...], action: Action, retrieved: Seen | None, prompt: Prompt) -> Turn:
    ids = prompt.spell(action)
    written = Completion(ids, (0.0,) * len(ids), Stop.END, (_NO_POLICY,) * len(ids))
    return Turn(context, written, action, retrieved, forced=False, roles=roles(ids, prompt))


def _passages(seen: Seen) -> list[str]:
    return [passage.contents for passage in seen.passages] if isinstance(seen, Hits) else []
