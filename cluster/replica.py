"""One retrieval replica: queries that wait together go to one searcher together.

Its process imports this file, so neither RLlib nor torch stands in it: they would double the time a replica starts in.
"""

import asyncio
import inspect
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from cluster.client import check_k
from cluster.lucene import clean
from cluster.searcher import open_searcher, sound
from smartrag.config import Retriever
from smartrag.types import Empty, Failed, Retrieved

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Waiting:
    query: str
    k: int
    answer: "asyncio.Future[Retrieved]"


class RetrievalReplica:
    """One searcher in one process, asked by many at once. A plain async class; `RetrievalPool` makes it an actor.

    Queries that wait together are searched together. While one batch is searched the next one gathers.
    """

    def __init__(self, retriever: Retriever, place: str | None) -> None:
        """Takes seconds: 5 or more with Lucene. Raises IndexProblem, JavaMissing, ValueError for a bad heap."""
        self._max_batch, self._wait_s = retriever.max_batch, retriever.batch_wait_ms / 1000
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="search")
        self._searcher = open_searcher(retriever, None if place is None else Path(place))
        self._waiting: list[_Waiting] = []
        self._drainer: asyncio.Task[None] | None = None
        self._queries, self._batches, self._seconds = 0, 0, 0.0

    async def search(self, query: str, k: int) -> Retrieved:
        """At most `k` passages for `query`, whatever it holds. Raises ValueError for k < 1."""
        return (await self.search_all([(query, k)]))[0]

    async def search_all(self, asked: Sequence[tuple[str, int]]) -> list[Retrieved]:
        """`search` of each (query, k)."""
        for _, k in asked:
            check_k(k)
        loop = asyncio.get_running_loop()
        wanted = [_Waiting(clean(query), k, loop.create_future()) for query, k in asked]
        for one in wanted:
            if not one.query:
                one.answer.set_result(Empty())
        self._waiting += [one for one in wanted if one.query]
        if self._waiting and (self._drainer is None or self._drainer.done()):
            self._drainer = asyncio.create_task(self._drain())
        return list(await asyncio.gather(*(one.answer for one in wanted)))

    async def _drain(self) -> None:
        """Search until nobody waits. Ends instead of idling, so that it never outlives its event loop."""
        while self._waiting:
            if len(self._waiting) == 1:  # alone: company may be on its way
                await asyncio.sleep(self._wait_s)
            batch, self._waiting = self._waiting[: self._max_batch], self._waiting[self._max_batch :]
            try:
                answers = await self._in_thread(partial(self._search, batch))
            except Exception as error:  # not a bad query, those are answered one by one
                answers = [Failed(f"{type(error).__name__}: {error}")] * len(batch)
            for waiting, answer in zip(batch, answers, strict=True):
                if not waiting.answer.done():  # its caller may have gone
                    waiting.answer.set_result(answer)

    def _search(self, batch: list[_Waiting]) -> list[Retrieved]:
        start = time.perf_counter()
        ks = [w.k for w in batch]
        answers = sound(self._searcher.search([w.query for w in batch], ks), ks)
        self._seconds += time.perf_counter() - start
        self._queries, self._batches = self._queries + len(batch), self._batches + 1
        return answers

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def ping(self) -> str:
        """Answers when the search thread takes work: a hung one keeps silent."""
        return await self._in_thread(lambda: "pong")

    async def stats(self) -> dict[str, float]:
        """Since the start of this process: queries, batches, queries of a mean batch, seconds of searching."""
        mean = self._queries / self._batches if self._batches else 0.0
        return {
            "queries": float(self._queries),
            "batches": float(self._batches),
            "batch_size": mean,
            "search_s": self._seconds,
        }

    def fingerprint(self) -> str:
        """Identity of what is searched."""
        return self._searcher.fingerprint

    async def apply(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What FaultTolerantActorManager calls. RLlib's own mixin ends the process on any error of `func`."""
        result = func(self, *args, **kwargs)
        return await result if inspect.isawaitable(result) else result
