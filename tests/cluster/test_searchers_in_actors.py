"""Searchers other than Lucene in real replicas, dense vectors and one of one's own: killed, and back with the same."""

import asyncio
import os
import signal
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import ray

from cluster.retrieval import RetrievalPool, RetrievalUnavailable
from cluster.searcher import prepare
from smartrag.compose import load
from smartrag.config import Retriever
from smartrag.types import Empty, Hits, Passage, Retrieved
from tests.cluster.passages import PASSAGES, write

pytestmark = pytest.mark.slow


class Exact:
    """A searcher of one's own: passages that hold the query, in the order of the file."""

    fingerprint = "exact"

    def __init__(self, settings: Retriever, place: Path | None):
        assert place is not None
        self.passages = {text: name for name, text in PASSAGES.items() if text.splitlines()[0] in place.read_text()}

    def search(self, queries: list[str], ks: list[int]) -> list[Retrieved]:
        found = [[Passage(name, text, 1.0) for text, name in self.passages.items() if q in text] for q in queries]
        return [Hits(tuple(some[:k])) if some else Empty() for some, k in zip(found, ks, strict=True)]


def ask(pool: RetrievalPool, *queries: str) -> list[Retrieved]:
    client = pool.client()

    async def together() -> list[Retrieved]:
        return await asyncio.gather(*(client(query, 3) for query in queries))

    return asyncio.run(together())


@pytest.mark.fault("Q1", "the only replica of another searcher is killed")
@pytest.mark.parametrize(
    "words",
    [
        ["retriever=dense", "retriever.dense.encoder=tests.encoders:letters"],
        ["retriever.searcher=tests.cluster.test_searchers_in_actors:Exact"],
    ],
    ids=["dense", "own"],
)
def test_a_killed_replica_comes_back_with_the_same(ray_session: None, tmp_path: Path, words: list[str]) -> None:
    retriever = replace(load(words).retriever, replicas=1, cpus=1, timeout_s=90)
    place = prepare(retriever, write(tmp_path / "corpus.jsonl"), tmp_path / "cache")
    pool = RetrievalPool(retriever, place, ready_s=120)
    try:
        before = ask(pool, "soup", "Kiwi", "Oslo")
        assert all(isinstance(answer, Hits) for answer in before)
        replica = pool.client()._replicas[0]
        process = ray.get(replica.apply.remote(lambda _: os.getpid()), timeout=60)
        killer = threading.Timer(0.2, os.kill, (process, signal.SIGKILL))
        killer.start()
        killer.join()
        assert ask(pool, "soup", "Kiwi", "Oslo") == before
        assert ray.get(replica.apply.remote(lambda _: os.getpid()), timeout=60) != process
        assert ray.get(replica.fingerprint.remote(), timeout=60) == pool.fingerprint
        assert pool.stats()["queries"] == 3
    finally:
        pool.close()


def test_a_searcher_that_cannot_be_made_says_why(ray_session: None) -> None:
    retriever = load(["retriever.searcher=tests.cluster.test_searchers_in_actors:Exact"]).retriever
    with pytest.raises(RetrievalUnavailable, match=r"a retrieval replica did not start: .*AssertionError"):
        RetrievalPool(retriever, None, ready_s=120)
