"""The retrieval service under many callers against Pyserini's own `batch_search` with as many threads."""

import asyncio
import random
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray

from cluster.retrieval import RetrievalPool
from cluster.system import connect, inputs
from smartrag.config import Run
from smartrag.experiments.bench import Figure, against, in_turns, percentile, rate
from smartrag.types import Failed, Retrieve

CALLERS = 64
_QUERIES = 2048  # a measurement; each is asked once, so no cache knows it


def bench(run: Run, path: Path, repeats: int) -> dict[str, Figure]:
    """Queries a second of one replica, and what a query waits (99th percentile) with CALLERS at a time; then the same
    queries once more, which the clients remember."""
    found = inputs(run)
    connect(run)
    queries = Queries([q.text for q in found.data.train])
    pool = RetrievalPool(run.retriever, found.index, ready_s=run.cluster.placement_timeout_s)
    raw: Any = ray.remote(Raw).options(num_cpus=0).remote(run, str(found.index))
    try:
        client, k = pool.client(), run.retriever.k
        waits: list[float] = []
        raw_waits: list[float] = []
        asked: list[list[str]] = []
        again: list[float] = []

        def service() -> float:
            asked.append(queries.fresh())
            seconds, found = asyncio.run(ask(client, asked[-1], k))
            waits.extend(found)
            again.append(asyncio.run(ask(client, asked[-1], k))[0])
            return seconds

        def lucene() -> float:
            seconds, batch = ray.get(raw.search.remote(asked[-1], k))
            raw_waits.append(batch)
            return seconds

        service(), lucene()  # the JVM compiles what it runs
        for warm in (waits, raw_waits, again):
            warm.clear()
        ours, theirs = in_turns([service, lucene], repeats)
    finally:
        pool.close()
        ray.kill(raw)
    served, lucene_alone, remembered = (rate(_QUERIES, "queries/s", s) for s in (ours, theirs, again))
    p99, raw_p99 = (percentile([w * 1e3 for w in each], 99, "ms") for each in (waits, raw_waits))
    return {
        "retrieval_queries": served,
        "lucene_queries": lucene_alone,
        "retrieval_vs_lucene": against(served, "lucene_queries", lucene_alone),
        "lucene_p99": raw_p99,
        "retrieval_p99": against(p99, "lucene_p99", raw_p99),
        "retrieval_remembered": against(remembered, "retrieval_queries", served),
    }


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


class Queries:
    """Words of the questions, mixed anew: as long as they are, and never twice the same."""

    def __init__(self, questions: Sequence[str]):
        self._questions, self._rng, self._count = questions, random.Random("bench"), 0

    def fresh(self) -> list[str]:
        made = []
        for _ in range(_QUERIES):
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
