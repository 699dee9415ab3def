"""The door of a served policy: a Serve deployment that hands each question to a rollout worker and passes its turns on.

The least loaded worker takes it, and another one where that is lost.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError

from smartrag.config import Run
from smartrag.episode import QuestionTooLong
from smartrag.serving import refusal
from smartrag.serving.request import Asked
from smartrag.serving.web import Served, application
from smartrag.types import EpisodeFailed, EpisodeRequest, Question, Turn

logger = logging.getLogger("smartrag")

_HTTP_CALLS = 4096  # held at a time; whoever is too many is refused by the Door itself, long before
_LOSSES = 2  # of workers under one question: it may be what ends them, and is not given to all the others
_ASK_AGAIN_S = 1.0  # between two questions to a lost worker whether it is back
_BACK_S = 10.0  # for its answer


class Asker:
    """Implements `smartrag.serving.web.Policy` over workers whose weights never change.

    Each takes `cluster.engine.concurrency` questions at a time; `waiting` more wait for one of them.
    """

    def __init__(self, workers: Sequence[ActorHandle], run: Run, waiting: int):
        self._workers, self._run = list(workers), run
        self._load = [0] * len(workers)
        self._lost: dict[int, asyncio.Task[None]] = {}  # who is asked whether it is back
        self._most_waiting, self._waiting = waiting, 0
        self._changed = asyncio.Condition()

    def engines(self) -> tuple[int, int]:
        return len(self._workers) - len(self._lost), len(self._workers)

    async def ask(self, asked: Asked, id: str) -> AsyncGenerator[Turn, None]:
        """The turns of the episode. A question whose worker is lost begins again with another one; what has been seen
        of it is not seen twice, and must come out as it did.

        Raises Refused when too many wait, no worker is there, the question is too long or its retrieval failed.
        """
        algorithm = self._run.algorithm
        question = Question(id, asked.question, ())
        request = EpisodeRequest(id, question, algorithm.quota, self._run.retriever.k, greedy=asked.temperature == 0)
        seen: list[Turn] = []
        for _ in range(_LOSSES):
            async with self._seat() as worker:
                try:
                    async with aclosing(self._turns(worker, request, asked)) as made:
                        async for place, turn in made:
                            if place == len(seen):
                                seen.append(turn)
                                yield turn
                            elif turn.action != seen[place].action:
                                raise refusal.failed("its engine was lost half-way, and another went on otherwise")
                    return
                except RayTaskError as error:
                    raise _plainly(error) from None
                except RayError as error:  # the worker is gone, or starting again
                    logger.warning("a rollout worker is lost: %s", error)
                    self._lose(worker)
        raise refusal.failed(f"it was given to {_LOSSES} engines, and each was lost")

    async def _turns(
        self, worker: int, request: EpisodeRequest, asked: Asked
    ) -> AsyncGenerator[tuple[int, Turn], None]:
        """(place, turn) of one attempt. Given up on, it is cancelled at the worker too."""
        method: Any = self._workers[worker].turns
        made = method.options(num_returns="streaming").remote(request, asked.temperature, asked.max_tokens)
        place = 0
        try:
            async for ref in made:
                yield place, await ref
                place += 1
        except (asyncio.CancelledError, GeneratorExit):
            ray.cancel(made)
            raise

    @asynccontextmanager
    async def _seat(self) -> AsyncIterator[int]:
        """A worker with room. Raises Refused when none is there, or too many wait."""
        worker = self._free()
        if worker is None:
            worker = await self._wait()
        self._load[worker] += 1
        try:
            yield worker
        finally:
            self._load[worker] -= 1
            async with self._changed:
                self._changed.notify_all()

    async def _wait(self) -> int:
        if self._waiting >= self._most_waiting:
            raise refusal.busy(self._waiting)
        self._waiting += 1
        try:
            async with self._changed:
                while (worker := self._free()) is None:
                    await self._changed.wait()
            return worker
        finally:
            self._waiting -= 1

    def _free(self) -> int | None:
        """The least loaded worker that is there; None when all are full."""
        there = [i for i in range(len(self._workers)) if i not in self._lost]
        if not there:
            raise refusal.away()
        worker = min(there, key=self._load.__getitem__)
        return worker if self._load[worker] < self._run.cluster.engine.concurrency else None

    def _lose(self, worker: int) -> None:
        if worker not in self._lost:
            self._lost[worker] = asyncio.create_task(self._until_back(worker))

    async def _until_back(self, worker: int) -> None:
        handle: Any = self._workers[worker]
        while True:
            await asyncio.sleep(_ASK_AGAIN_S)
            try:
                await asyncio.wait_for(handle.identity.remote(), _BACK_S)
            except (RayError, TimeoutError):
                continue
            del self._lost[worker]
            async with self._changed:
                self._changed.notify_all()
            return


def _plainly(error: RayTaskError) -> Exception:
    """What the client may know of what a worker raised; a bug as it is."""
    if isinstance(error.cause, QuestionTooLong):
        return refusal.too_long()
    if isinstance(error.cause, EpisodeFailed):
        logger.warning("%s", error.cause)
        return refusal.failed("its retrieval or its generation failed")
    return error


@serve.deployment(
    num_replicas=1,  # it alone knows how many questions wait
    max_ongoing_requests=_HTTP_CALLS,
    max_queued_requests=_HTTP_CALLS,
    ray_actor_options={"num_cpus": 0},
    graceful_shutdown_timeout_s=2,
    graceful_shutdown_wait_loop_s=0.5,
)
@serve.ingress()
class Door:
    """The web application, with the workers behind it."""

    def __init__(self, workers: Sequence[ActorHandle], run: Run, waiting: int, served: Served):
        self._asker, self._served = Asker(workers, run, waiting), served

    def __serve_build_asgi_app__(self) -> FastAPI:
        """What Serve asks for the application, in the process that answers."""
        return application(self._asker, self._served)
