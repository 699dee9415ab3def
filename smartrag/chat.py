"""A language model behind an OpenAI-compatible chat endpoint: what is asked, and the replies that can be used.

Replies are kept on disk by a hash of model and messages, so nothing is paid for twice, over runs and resumes too. Only
a reply that parses is kept. The client of the `openai` package retries what may pass: timeouts, lost connections,
HTTP 408, 409, 429 and 5xx, with pauses that double, or as long as the server says.
"""

import asyncio
import hashlib
import json
import os
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from smartrag.config import Endpoint

if TYPE_CHECKING:
    from openai import AsyncOpenAI

T = TypeVar("T")

_LONGEST_PAUSE_S = 8.0  # between two attempts, of the `openai` client


@dataclass(frozen=True, slots=True)
class Chat:
    """One thing to ask. Example: Chat("Reply with one number.", '{"question": "What is 1 + 1?"}')."""

    system: str
    user: str


@dataclass(frozen=True, slots=True)
class Unanswered:
    """No usable reply, after all attempts."""

    reason: str


def api_key(endpoint: Endpoint) -> str:
    """The key in the environment. Raises ValueError when there is none."""
    key = os.environ.get(endpoint.key_variable)
    if not key:
        raise ValueError(
            f"the environment variable {endpoint.key_variable} (reward.endpoint.key_variable) is not set: put the API "
            f"key of {endpoint.base_url} into it, or any word if that endpoint asks for none"
        )
    return key


def ask(
    chats: Sequence[Chat], parse: Callable[[str], T], endpoint: Endpoint, cache: Path, *, reply_tokens: int
) -> list[T | Unanswered]:
    """What `parse` makes of the reply to each chat, in their order, at temperature 0. Equal chats are asked once.

    `parse` raises ValueError on a reply that is of no use. A reply takes at most attempts × (timeout_s + 8 s),
    pauses included. Raises ValueError when the key is not set.
    """
    return asyncio.run(_ask(chats, parse, endpoint, cache, reply_tokens))


async def _ask(
    chats: Sequence[Chat], parse: Callable[[str], T], endpoint: Endpoint, cache: Path, reply_tokens: int
) -> list[T | Unanswered]:
    from openai import AsyncOpenAI  # a second to import, and most runs never ask anybody

    gate = asyncio.Semaphore(endpoint.concurrency)
    client = AsyncOpenAI(
        base_url=endpoint.base_url,
        api_key=api_key(endpoint),
        timeout=endpoint.timeout_s,
        max_retries=endpoint.attempts - 1,
    )

    async def one(chat: Chat) -> T | Unanswered:
        kept = cache / _name(endpoint.model, chat)
        known = _recall(kept, parse)
        if known is not None:
            return known
        async with gate:
            text = await _reply(client, endpoint, chat, reply_tokens)
        if isinstance(text, Unanswered):
            return text
        try:
            parsed = parse(text)
        except ValueError as error:
            return Unanswered(str(error))
        _keep(kept, text)
        return parsed

    distinct = list(dict.fromkeys(chats))
    async with client:
        found = dict(zip(distinct, await asyncio.gather(*map(one, distinct)), strict=True))
    return [found[chat] for chat in chats]


async def _reply(client: "AsyncOpenAI", endpoint: Endpoint, chat: Chat, reply_tokens: int) -> str | Unanswered:
    from openai import OpenAIError

    messages: Any = [{"role": "system", "content": chat.system}, {"role": "user", "content": chat.user}]
    try:
        # The client's timeout is of silence: a server that drips bytes would never end.
        async with asyncio.timeout(endpoint.attempts * (endpoint.timeout_s + _LONGEST_PAUSE_S)):
            reply = await client.chat.completions.create(
                model=endpoint.model, messages=messages, temperature=0.0, max_tokens=reply_tokens
            )
        text = reply.choices[0].message.content
    except (OpenAIError, TimeoutError) as error:
        return Unanswered(f"{type(error).__name__}: {error}")
    except (ValueError, AttributeError, IndexError, TypeError):  # the client does not check what it is sent
        return Unanswered("the endpoint's reply is not a chat completion")
    return text if isinstance(text, str) else Unanswered("the endpoint's reply holds no text")


def _name(model: str, chat: Chat) -> str:
    digest = hashlib.sha256(json.dumps([model, chat.system, chat.user]).encode()).hexdigest()
    return f"{digest[:2]}/{digest}"


def _recall(kept: Path, parse: Callable[[str], T]) -> T | None:
    """None when nothing is kept, or nothing that `parse` takes."""
    try:
        return parse(kept.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def _keep(kept: Path, text: str) -> None:
    """Whole or not at all, whoever else writes the same."""
    kept.parent.mkdir(parents=True, exist_ok=True)
    part = kept.with_suffix(f".{secrets.token_hex(4)}")
    part.write_text(text, encoding="utf-8")
    os.replace(part, kept)
