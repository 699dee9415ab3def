"""Retrieval as a service: replicas that batch queries into a searcher, and the pool that keeps them."""

import asyncio
import inspect
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import ray
from ray.exceptions import GetTimeoutError, RayError
from ray.rllib.utils.actor_manager import FaultTolerantActorManager
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.client import RetrievalClient, check_k, reason
from cluster.java import HOME_VARIABLE
from cluster.lucene import clean
from cluster.searcher import absolute, open_searcher, sound
from smartrag.config import Retriever
from smartrag.types import Empty, Failed, Retrieved

_MAX_CONCURRENCY = 8192  # calls one replica holds; Ray queues the rest, pings included
T = TypeVar("T")


class RetrievalUnavailable(RuntimeError):
    """The retrieval replicas did not start, or do not serve the same index."""


# ---------------------------------------------------------------------------------------------------------------------
# one replica


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
        check_k(k)
        if not (cleaned := clean(query)):
            return Empty()
        answer: asyncio.Future[Retrieved] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(cleaned, k, answer))
        if self._drainer is None or self._drainer.done():
            self._drainer = asyncio.create_task(self._drain())
        return await answer

    async def search_all(self, asked: Sequence[tuple[str, int]]) -> list[Retrieved]:
        """`search` of each (query, k)."""
        return list(await asyncio.gather(*(self.search(query, k) for query, k in asked)))

    async def _drain(self) -> None:
        """Search until nobody waits. Ends instead of idling, so that it never outlives its event loop."""
        while self._waiting:
            if len(self._waiting) < self._max_batch:
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


# ---------------------------------------------------------------------------------------------------------------------
# the driver's side


class RetrievalPool:
    """The replicas as Ray actors: started together, restarted by Ray when they die, one index among them all."""

    def __init__(
        self,
        retriever: Retriever,
        place: Path | None,
        *,
        ready_s: float,
        strategies: Sequence[PlacementGroupSchedulingStrategy] = (),
    ) -> None:
        """Start `retriever.replicas` replicas over `place`. `strategies`: where each stands, if it matters.

        Waits at most `ready_s` seconds. Raises RetrievalUnavailable with what is wrong, and leaves nothing running.
        """
        self._retriever = retriever
        variables = {name: os.environ[name] for name in (HOME_VARIABLE,) if name in os.environ}
        options: dict[str, Any] = {
            "num_cpus": retriever.cpus,
            "max_restarts": -1,
            "max_task_retries": 0,  # the client asks again itself, and elsewhere
            "max_concurrency": _MAX_CONCURRENCY,
            "runtime_env": {"env_vars": variables},
        }
        replica = ray.remote(RetrievalReplica)
        read = None if place is None else str(place.expanduser().absolute())  # actors start elsewhere
        handles: list[Any] = []
        for i in range(retriever.replicas):
            where = {"scheduling_strategy": strategies[i]} if strategies else {}
            handles.append(replica.options(**options, **where).remote(absolute(retriever), read))
        self._replicas = FaultTolerantActorManager(handles)
        try:
            self.fingerprint = self._ready(ready_s)
        except BaseException:
            self.close()
            raise

    def _ready(self, ready_s: float) -> str:
        """Wait for every replica; the fingerprint they agree on."""
        handles = list(self._replicas.actors().values())
        try:
            fingerprints = ray.get([handle.fingerprint.remote() for handle in handles], timeout=ready_s)
        except GetTimeoutError:
            raise RetrievalUnavailable(
                f"{len(handles)} retrieval replicas of {self._retriever.cpus:g} CPUs were not ready within "
                f"{ready_s:g} s; the cluster has {ray.available_resources().get('CPU', 0):g} of "
                f"{ray.cluster_resources().get('CPU', 0):g} CPUs free. Too few: lower retriever.replicas or "
                "retriever.cpus, or add nodes. Enough: they start slowly or die on the way (Ray's log of worker deaths "
                "says which); raise cluster.placement_timeout_s or retriever.heap"
            ) from None
        except RayError as error:
            raise RetrievalUnavailable(f"a retrieval replica did not start: {reason(error)}") from error
        if len(set(fingerprints)) > 1:
            raise RetrievalUnavailable(
                f"the retrieval replicas hold different indexes ({', '.join(sorted(set(fingerprints)))}); "
                "give retriever.index a folder that is the same on every node"
            )
        return fingerprints[0]

    def client(self) -> "RetrievalClient":
        handles = tuple(self._replicas.actors().values())
        known = self._retriever
        return RetrievalClient(handles, timeout_s=known.timeout_s, attempts=known.attempts, remember=known.remember)

    def restore(self) -> list[int]:
        """Ping all replicas; the numbers of those that serve. A hung one is killed, and Ray starts it again.

        Waits at most `retriever.timeout_s` seconds. A replica that is starting again answers with an error at once;
        only one that hangs keeps silent.
        """
        everyone = set(self._replicas.actor_ids())
        results: Any = self._replicas.foreach_actor(
            "ping", healthy_only=False, timeout_seconds=self._retriever.timeout_s, mark_healthy=True
        )
        for number in everyone - {result.actor_id for result in results}:
            self._replicas.set_actor_state(number, healthy=False)
            ray.kill(self._replicas.actors()[number], no_restart=False)
        return self._replicas.healthy_actor_ids()

    def stats(self) -> dict[str, float]:
        """Sums over the replicas that answer within `retriever.timeout_s` seconds, and how many those are."""
        results = self._replicas.foreach_actor("stats", timeout_seconds=self._retriever.timeout_s)
        rows = [result.get() for result in results.ignore_errors()]
        total = {name: sum(row[name] for row in rows) for name in ("queries", "batches", "search_s")}
        mean = total["queries"] / total["batches"] if total["batches"] else 0.0
        return {**total, "batch_size": mean, "replicas": float(len(rows))}

    def close(self) -> None:
        for handle in self._replicas.actors().values():
            ray.kill(handle)
        self._replicas.clear()
