"""The actor that runs episodes: an engine, a tokenizer, and a client of the retrieval service.

Where frozen weights play some of the roles there is an engine for each of their folders, too.
"""

import inspect
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from pathlib import Path
from types import MappingProxyType
from typing import Any

import ray

from cluster.engine import Engine
from cluster.engine_args import engine_args
from cluster.wire import use_interface_of
from smartrag import episode
from smartrag.choices import Role
from smartrag.config import Run
from smartrag.evaluation.oracle import GoldFirst
from smartrag.prompt import Budget, Prompt
from smartrag.roles import Composed
from smartrag.serving.capped import Capped
from smartrag.types import Episode, EpisodeRequest, Generate, Retrieve, Turn


class StaleWorker(RuntimeError):
    """This process is not the one the caller means: the worker was restarted and holds the weights it started with."""


class RolloutWorker:
    """An engine and what an episode needs beside it. An async Ray actor; many episodes run in it at a time.

    `path` is the folder of model and tokenizer, `retrieve` the client of the retrieval service (picklable). `frozen`:
    roles that the weights in other folders play, by the same tokenizer; weight pushes do not reach these.
    """

    def __init__(self, run: Run, path: Path, retrieve: Retrieve, frozen: Mapping[Role, Path] = MappingProxyType({})):
        use_interface_of(ray.util.get_node_ip_address())
        from transformers import AutoTokenizer

        model = run.model
        budget = Budget(model.context_tokens, model.new_tokens, model.passage_tokens)
        self.prompt = Prompt(AutoTokenizer.from_pretrained(path), model.instruction, budget)
        folders = sorted(set(frozen.values()))

        def start(folder: Path) -> Engine:
            return Engine(engine_args(model, run.cluster, str(folder), 1 + len(folders)), self.prompt.end_id)

        self.engine = start(path)
        self.frozen = {folder: start(folder) for folder in folders}
        self.generate: Generate = self.engine
        if frozen:
            players = {role: self.frozen[frozen[role]] if role in frozen else self.engine for role in Role}
            self.generate = Composed(players, self.prompt)
        self.retrieve, self.temperature = retrieve, run.algorithm.temperature
        self.incarnation = uuid.uuid4().hex

    async def run_episode(self, request: EpisodeRequest, incarnation: str | None = None) -> Episode:
        """One question to its end. Raises EpisodeFailed; StaleWorker when `incarnation` is not this one."""
        self.admit(incarnation)
        retrieve = GoldFirst(self.retrieve, request.question) if request.gold_first else self.retrieve
        return await episode.run_episode(request, self.generate, retrieve, self.prompt, temperature=self.temperature)

    async def turns(
        self, request: EpisodeRequest, temperature: float, max_tokens: int | None
    ) -> AsyncGenerator[Turn, None]:
        """One question turn by turn, for who serves weights that stay as they are. `max_tokens`: of all generations.

        Raises EpisodeFailed, QuestionTooLong.
        """
        generate = self.generate if max_tokens is None else Capped(self.generate, max_tokens)
        made = episode.turns(request, generate, self.retrieve, self.prompt, temperature=temperature)
        async with aclosing(made):
            async for turn in made:
                yield turn

    def admit(self, incarnation: str | None) -> None:
        if incarnation not in (None, self.incarnation):
            raise StaleWorker(f"asked for {incarnation}, this is {self.incarnation}")

    async def identity(self) -> str:
        """A name of this process; another after a restart."""
        return self.incarnation

    async def on_engine(self, verb: str, *args: Any) -> Any:
        """Call a method of the engine (the verbs of a weight push). Frozen ones sleep while it does."""
        result = await getattr(self.engine, verb)(*args)
        for engine in self.frozen.values():
            if verb == "sleep":
                await engine.sleep()
            elif verb == "resume":
                await engine.wake_up()
        return result

    async def ping(self) -> str:
        for engine in (self.engine, *self.frozen.values()):
            await engine.check()
        return "pong"

    async def close(self) -> None:
        for engine in (self.engine, *self.frozen.values()):
            engine.close()

    async def apply(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What FaultTolerantActorManager calls."""
        result = func(self, *args, **kwargs)
        return await result if inspect.isawaitable(result) else result
