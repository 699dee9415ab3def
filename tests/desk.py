"""A served policy without machines: scripted texts behind the real web application."""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Mapping, Sequence

from fastapi import FastAPI

from smartrag.episode import turns
from smartrag.serving.capped import Capped
from smartrag.serving.request import Asked
from smartrag.serving.web import Served, application
from smartrag.types import EpisodeRequest, Passage, Question, Turn
from tests import toys

TOKEN = "a-token-of-32-letters-or-thereby"


class Desk:
    """Implements `smartrag.serving.web.Policy`.

    `script`: question -> what the policy writes, turn by turn; in place of a text an error is raised, and a number is
    waited for, in seconds. `asked` records what came, `closed` counts what ended.
    """

    def __init__(self, script: Mapping[str, Sequence[str | float | Exception]], *passages: Passage):
        self.script, self.passages = script, passages
        self.asked: list[Asked] = []
        self.closed = 0
        self.there = 1

    def engines(self) -> tuple[int, int]:
        return self.there, 1

    async def ask(self, asked: Asked, id: str) -> AsyncGenerator[Turn, None]:
        self.asked.append(asked)
        prompt, steps = toys.prompt(context=2000, new_tokens=200, passage=400), list(self.script[asked.question])
        policy = toys.ScriptedPolicy(prompt, *[step for step in steps if isinstance(step, str)])
        generate = policy if asked.max_tokens is None else Capped(policy, asked.max_tokens)
        request = EpisodeRequest(id, Question(id, asked.question, ()), 1, 2, greedy=asked.temperature == 0)
        made = turns(request, generate, toys.Shelf(*self.passages), prompt, temperature=asked.temperature)
        try:
            for step in steps:
                if isinstance(step, Exception):
                    raise step
                if isinstance(step, str):
                    yield await anext(made)
                else:
                    await asyncio.sleep(step)
        finally:
            self.closed += 1

    def application(self, timeout_s: float = 5.0) -> FastAPI:
        return application(self, Served("tiny", 1_700_000_000, hashlib.sha256(TOKEN.encode()).digest(), timeout_s))
