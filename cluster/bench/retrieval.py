"""The retrieval service under many callers against Pyserini's own `batch_search` with as many threads.

A batch with one thread takes up to two cores, and so do the callers what they can get. Where the machine has more cores
than the searcher has threads, each searcher's process is held to as many cores as threads, the callers to the others:
as on a cluster, where replicas and rollout workers stand apart.
"""

import asyncio
import os
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import ray

from cluster.retrieval import RetrievalPool
from cluster.system import connect, inputs
from smartrag.config import Run
from smartrag.experiments.bench import Figure, against, in_turns, percentile, rate
from smartrag.types import Failed, Retrieve

CALLERS = 64
QUERIES = 2048  # a measurement; each is asked once, so no cache knows it
_WARM = 8  # measurements until the JVMs have compiled what they run


def bench(run: Run, path: Path, repeats: int) -> dict[str, Figure]:
    """Queries a second of one replica, and what a query waits (99th percentile) with CALLERS at a time; then the same
    queries once more, which the clients remember."""
    found = inputs(run)
    connect(run)
    measured = measure(run, found.index, [q.text for q in found.data.train], repeats)
    served, lucene_alone, remembered = (
        rate(QUERIES, "queries/s", seconds) for seconds in (measured.service_s, measured.lucene_s, measured.again_s)
    )
    p99, raw_p99 = (percentile([w * 1e3 for w in each], 99, "ms") for each in (measured.waits_s, measured.batches_s))
    return {
        "retrieval_queries": served,
        "lucene_queries": lucene_alone,
        "retrieval_vs_lucene": against(served, "lucene_queries", lucene_alone),
        "lucene_p99": raw_p99,
        "retrieval_p99": against(p99, "lucene_p99", raw_p99),
        "retrieval_remembered": against(remembered, "retrieval_queries", served),
    }


@dataclass(frozen=True, slots=True)
class Searches:
    """Seconds, one measurement each."""

    service_s: list[float]  # QUERIES through the service, CALLERS at a time
    lucene_s: list[float]  # as many as one batch of Lucene's
    again_s: list[float]  # asked again, of the client that asked before
    waits_s: list[float]  # of each query through the service
    batches_s: list[float]  # of a batch of CALLERS, straight into Lucene


def measure(run: Run, index: Path | None, questions: Sequence[str], repeats: int) -> Searches:
    """The service and Lucene in turns, on queries that nobody has asked before; Ray is connected."""
    queries = Queries(questions)
    pool = RetrievalPool(run.retriever, index, ready_s=run.cluster.placement_timeout_s)
    raw: Any = ray.remote(Raw).options(num_cpus=0).remote(run, str(index))
    try:
        client, k = pool.client(), run.retriever.k
        asked: list[list[str]] = []
        again: list[float] = []
        waits: list[float] = []
        batches: list[float] = []

        def service() -> float:
            asked.append(queries.fresh())
            seconds, found = asyncio.run(ask(client, asked[-1], k))
            waits.extend(found)
            again.append(asyncio.run(ask(client, asked[-1], k))[0])
            return seconds

        def lucene() -> float:
            seconds, batch = ray.get(raw.search.remote(asked[-1], k))
            batches.append(batch)
            return seconds

        with _apart(run.retriever.threads, pool.handles()[0], raw):
            for _ in range(_WARM):
                service(), lucene()
            for warm in (waits, batches, again):
                warm.clear()
            ours, theirs = in_turns([service, lucene], repeats)
    finally:
        pool.close()
        ray.kill(raw)
    return Searches(ours, theirs, again, waits, batches)


async def ask(retrieve: Retrieve, queries: Sequence[str], k: int) -> tuple[float, list[float]]:
    """(seconds for all, seconds that each waited) with CALLERS at a time, each of whom asks when it has an answer."""
    left, waited = iter(queries), []

    async def caller() -> None:
        for query in left:
            start = time.perf_counter()
            answer = await retrieve(query, k)
            assert not isinstance(answer, Failed), answer
            waited.append(time.perf_counter() - start)

    start = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(CALLERS)))
    return time.perf_counter() - start, waited


@contextmanager
def _apart(threads: int, *searchers: Any) -> Iterator[None]:
    """Cores of their own for `searchers`, actors each of which takes a turn, and for this process."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) <= threads:
        yield
        return
    for searcher in searchers:
        ray.get(searcher.__ray_call__.remote(_hold_to, cores[:threads]))
    _hold_to(None, cores[threads:])
    try:
        yield
    finally:
        _hold_to(None, cores)


def _hold_to(_actor: Any, cores: Sequence[int]) -> None:
    """All threads of this process, those that it starts later too."""
    for thread in psutil.Process().threads():
        with suppress(ProcessLookupError):
            os.sched_setaffinity(thread.id, cores)


class Queries:
    """Words of the questions, mixed anew: as long as they are, and never twice the same."""

    def __init__(self, questions: Sequence[str]):
        self._questions, self._rng, self._count = questions, random.Random("bench"), 0

    def fresh(self) -> list[str]:
        made = []
        for _ in range(QUERIES):
            self._count += 1
            one, other = self._rng.sample(self._questions, 2)
            half = len(one.split()) // 2
            made.append(" ".join([*one.split()[:half], *other.split()[half:], str(self._count)]))
        return made


class Raw:
    """A LuceneSearcher as Pyserini's users have it, in a process of its own."""

    def __init__(self, run: Run, index: str):
        from cluster.java import start_jvm

        start_jvm(run.retriever.heap)
        import os

        os.environ.setdefault("OPENAI_API_KEY", "unused")  # Pyserini builds a client where it is imported
        from pyserini.search.lucene import LuceneSearcher

        self._searcher = LuceneSearcher(index)
        self._searcher.set_bm25(run.retriever.k1, run.retriever.b)
        self._threads = run.retriever.threads

    def search(self, queries: Sequence[str], k: int) -> tuple[float, float]:
        """(seconds for all queries as one batch, seconds of a batch of CALLERS of them)."""
        start = time.perf_counter()
        self._searcher.batch_search(list(queries), [str(i) for i in range(len(queries))], k=k, threads=self._threads)
        whole = time.perf_counter() - start
        start = time.perf_counter()
        some = list(queries[:CALLERS])
        self._searcher.batch_search(some, [str(i) for i in range(len(some))], k=k, threads=self._threads)
        return whole, time.perf_counter() - start
