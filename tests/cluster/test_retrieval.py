"""Queries come back right, each on its own account, whatever stands beside them and whoever dies."""

import asyncio
import math
import os
import pickle
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import ActorUnavailableError

from cluster.client import RetrievalClient
from cluster.index import build_index
from cluster.lucene import MAX_QUERY_CHARACTERS, clean
from cluster.replica import RetrievalReplica
from cluster.retrieval import RetrievalPool, RetrievalUnavailable
from smartrag.choices import Corpus, Stemmer
from smartrag.compose import load
from smartrag.data.passages import Recipe
from smartrag.types import Empty, Failed, Hits, Passage, Retrieved
from tests.cluster.passages import PASSAGES, write
from tests.fault_table import Row

CONFIG = replace(
    load([]).retriever, k1=0.9, b=0.4, replicas=1, threads=2, cpus=1, heap="256m", batch_wait_ms=50, timeout_s=90
)

# ---------------------------------------------------------------------------------------------------------------------
# real Lucene in one Ray actor


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    corpus = write(tmp_path_factory.mktemp("corpus") / "corpus.jsonl")
    recipe = Recipe(stemmer=Stemmer.porter, corpus=Corpus.real, share=1.0)
    build_index(corpus, corpus.parent / "index", recipe, threads=1, k1=0.9, b=0.4)
    return corpus.parent / "index"


@pytest.fixture(scope="module")
def pool(ray_session: None, folder: Path) -> Iterator[RetrievalPool]:
    pool = RetrievalPool(CONFIG, folder, ready_s=180)
    yield pool
    pool.close()


def ask(pool: RetrievalPool, *queries: str, k: int = 4) -> list[Retrieved]:
    client = pool.client()

    async def together() -> list[Retrieved]:
        return await asyncio.gather(*(client(query, k) for query in queries))

    return asyncio.run(together())


def inside(pool: RetrievalPool, work: Callable[[Any], Any]) -> Any:
    """Run `work(replica)` in the actor."""
    return ray.get(pool.handles()[0].apply.remote(work), timeout=60)


def bm25(query: list[str], k1: float = 0.9, b: float = 0.4) -> dict[str, float]:
    """Lucene's BM25 by hand, over words that its stop list and stemmer leave alone."""
    stop = {"a", "is", "the", "and", "of", "to"}
    words = {
        name: [word for word in text.lower().replace(",", "").split() if word not in stop]
        for name, text in PASSAGES.items()
    }
    lengths = {name: len(found) for name, found in words.items()} | {"odd1": 7, "odd2": 8}  # as Lucene splits those
    mean = sum(lengths.values()) / len(lengths)
    scores: dict[str, float] = {}
    for term in query:
        having = [name for name, found in words.items() if term in found]
        idf = math.log(1 + (len(words) - len(having) + 0.5) / (len(having) + 0.5))
        for name in having:
            count = words[name].count(term)
            score = idf * count / (count + k1 * (1 - b + b * lengths[name] / mean))
            scores[name] = scores.get(name, 0.0) + score
    return scores


@pytest.mark.slow
@pytest.mark.parametrize("query", ["soup Oslo", "gulf port Hanoi Hanoi", "kiwi", "far south fish"])
def test_scores_are_bm25(pool: RetrievalPool, query: str) -> None:
    (hits,) = ask(pool, query, k=30)
    assert isinstance(hits, Hits)
    expected = bm25(query.lower().split())
    assert {passage.id for passage in hits.passages} == set(expected)
    for passage in hits.passages:  # Anserini rounds to 4 digits and takes 1e-6 off for every tie above
        assert passage.score == pytest.approx(expected[passage.id], abs=1.2e-4)
        assert passage.contents == PASSAGES[passage.id]
    scores = [passage.score for passage in hits.passages]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.slow
def test_contents_come_back_to_the_letter(pool: RetrievalPool) -> None:
    for query, name in [("Zürich 東京", "odd1"), ("braces quoted", "odd2")]:
        (hits,) = ask(pool, query, k=1)
        assert isinstance(hits, Hits)
        assert [(p.id, p.contents) for p in hits.passages] == [(name, PASSAGES[name])]


@pytest.mark.slow
def test_ties_are_cut_in_the_order_of_ids(pool: RetrievalPool) -> None:
    for k, names in [(5, ["tie10", "tie2", "tie9", "tiea", "tieb"]), (2, ["tie10", "tie2"])]:
        for hits in ask(pool, *["plum"] * 3, k=k):
            assert isinstance(hits, Hits)
            assert [passage.id for passage in hits.passages] == names


@pytest.mark.slow
def test_nothing_found_and_nothing_asked_are_empty(pool: RetrievalPool) -> None:
    assert ask(pool, "zebra", "the", "", " \n\t", "\x00\ud800", "?!") == [Empty()] * 6


BAD = {
    "terms": " ".join(f"w{i}" for i in range(1100)),
    "letters": "x" * 100_000,
    "chinese": "".join(chr(0x4E00 + i) for i in range(5000)),
    "surrogate": "Oslo \ud800 soup",
    "nul": "Oslo\x00soup",
    "syntax": 'AND OR NOT (( contents:* [a TO "b^2~ \\ && || ! Oslo/',
    "empty": "",
    "emoji": "\U0001f600" * 2000,
}


@pytest.mark.fault("Q10", "queries that no analyser was made for")
@pytest.mark.slow
def test_bad_queries_leave_their_batch_alone(pool: RetrievalPool) -> None:
    (alone,) = ask(pool, "soup Oslo")
    asked = ("soup Oslo", *BAD.values(), "soup Oslo")
    before = pool.stats()
    first, *others, last = inside(pool, lambda replica: replica.search_all([(query, 4) for query in asked]))
    after = pool.stats()
    assert after["batches"] - before["batches"] == 1
    assert ask(pool, *asked) == [first, *others, last]  # in messages as a client makes them
    assert after["queries"] - before["queries"] == len(BAD) + 1  # the empty one never goes to Lucene
    assert first == last == alone
    outcome = dict(zip(BAD, others, strict=True))
    assert not any(isinstance(answer, Failed) for answer in others)
    assert outcome["surrogate"] == outcome["nul"]
    assert isinstance(outcome["nul"], Hits)
    assert outcome["nul"].passages[0].id == "food0"
    assert isinstance(outcome["chinese"], Hits)  # one of its first 512 characters is in a passage
    assert outcome["chinese"].passages[0].id == "odd1"
    assert isinstance(outcome["syntax"], Hits)  # operators are words like any other
    assert {outcome[name] for name in ("terms", "letters", "empty", "emoji")} == {Empty()}


@pytest.mark.slow
def test_what_lucene_refuses_is_the_only_failure(pool: RetrievalPool) -> None:
    """Past `clean`, which keeps such queries away: Anserini throws away the whole batch for one of them."""

    def raw(replica: Any) -> Any:
        return replica._in_thread(partial(replica._searcher.search, ["soup Oslo", *BAD.values()], [4] * (len(BAD) + 1)))

    (alone,) = ask(pool, "soup Oslo")
    good, *others = inside(pool, raw)
    assert good == alone
    failed = {name: answer.reason for name, answer in zip(BAD, others, strict=True) if isinstance(answer, Failed)}
    assert set(failed) == {"terms", "chinese", "surrogate"}
    assert failed["terms"].startswith("Lucene refused the query 'w0 w1 w2")


@pytest.mark.slow
def test_k_is_at_least_one(pool: RetrievalPool) -> None:
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        ask(pool, "Oslo", k=0)
    with pytest.raises(ValueError, match="k must be at least 1, got -3"):
        ray.get(pool.handles()[0].search.remote("Oslo", -3), timeout=60)


@pytest.mark.fault("Q1", "the only replica is killed with queries in flight")
@pytest.mark.slow
def test_a_killed_replica_comes_back_and_no_query_is_lost(pool: RetrievalPool, row: Row) -> None:
    """One replica of one: the client waits for Ray to start it again. 32 queries are in flight when it dies."""
    queries = ["soup Oslo", "plum", "port Hanoi", "zebra"] * 8
    expected, fingerprint = ask(pool, *queries), pool.fingerprint
    process = inside(pool, lambda _: os.getpid())
    inside(pool, lambda replica: replica._thread.submit(time.sleep, 1.0) and None)  # so that they are in flight
    killer = threading.Timer(0.5, os.kill, (process, signal.SIGKILL))
    killer.start()
    start = time.monotonic()
    assert ask(pool, *queries) == expected
    row.trial(recovery_s=time.monotonic() - start)
    assert inside(pool, lambda _: os.getpid()) != process
    assert inside(pool, lambda replica: replica.fingerprint()) == fingerprint
    assert pool.restore() == [0]
    assert time.monotonic() - start < CONFIG.timeout_s
    killer.join()


@pytest.mark.slow
def test_pool_says_why_it_cannot_start(ray_session: None, tmp_path: Path) -> None:
    with pytest.raises(RetrievalUnavailable, match=r"did not start: .*no Lucene index at .* \(no such folder\)"):
        RetrievalPool(CONFIG, tmp_path / "absent", ready_s=60)
    with pytest.raises(
        RetrievalUnavailable, match=r"2 retrieval replicas of 64 CPUs were not ready within 0\.5 s; .* of 4"
    ):
        RetrievalPool(replace(CONFIG, cpus=64, replicas=2), tmp_path / "absent", ready_s=0.5)


# ---------------------------------------------------------------------------------------------------------------------
# batching, with a Lucene that is not there


class Slow:
    """Answers every query with itself; the batches it saw are kept."""

    fingerprint = "f"

    def __init__(self, *_: Any, **__: Any) -> None:
        self.batches: list[list[str]] = []

    def search(self, queries: list[str], ks: list[int]) -> list[Retrieved]:
        self.batches.append(list(queries))
        time.sleep(0.02)
        if "broken" in queries:
            raise RuntimeError("planted")
        return [Hits((Passage(query, "", float(k)),)) for query, k in zip(queries, ks, strict=True)]


@pytest.fixture
def replica(monkeypatch: pytest.MonkeyPatch) -> RetrievalReplica:
    monkeypatch.setattr("cluster.replica.open_searcher", Slow)
    return RetrievalReplica(replace(CONFIG, max_batch=8, batch_wait_ms=5), "unused")


def test_queries_that_wait_together_go_together(replica: RetrievalReplica) -> None:
    async def run() -> list[Retrieved]:
        return await asyncio.gather(*(replica.search(f"q{i}", i + 1) for i in range(20)))

    for i, answer in enumerate(asyncio.run(run())):
        assert answer == Hits((Passage(f"q{i}", "", i + 1.0),))
    lucene: Any = replica._searcher
    assert [len(batch) for batch in lucene.batches] == [8, 8, 4]
    stats = asyncio.run(replica.stats())
    assert (stats["queries"], stats["batches"], stats["batch_size"]) == (20, 3, 20 / 3)
    assert stats["search_s"] > 0.05


def test_a_caller_that_leaves_disturbs_nobody(replica: RetrievalReplica) -> None:
    async def run() -> Retrieved:
        leaving = asyncio.create_task(replica.search("leaving", 1))
        staying = asyncio.create_task(replica.search("staying", 1))
        await asyncio.sleep(0.01)
        leaving.cancel()
        return await staying

    assert asyncio.run(run()) == Hits((Passage("staying", "", 1.0),))


@pytest.mark.fault("Q2", "Lucene breaks under a batch")
def test_a_broken_lucene_is_a_failure_and_not_a_hang(replica: RetrievalReplica) -> None:
    assert asyncio.run(asyncio.wait_for(replica.search("broken", 1), 5)) == Failed("RuntimeError: planted")
    assert asyncio.run(replica.search("fine", 1)) == Hits((Passage("fine", "", 1.0),))


def test_clean_keeps_the_words_and_bounds_the_rest() -> None:
    assert clean("  what\x00is\ud800\n the “Ørsted” 東京? ") == "what is the “Ørsted” 東京?"
    assert len(clean("x" * 10**6)) == MAX_QUERY_CHARACTERS
    assert clean("\x00" * 10**6 + "late") == ""
    assert clean(clean("a\tb " * 400)) == clean("a\tb " * 400)


# ---------------------------------------------------------------------------------------------------------------------
# the client, with replicas that play a part


class Part:
    """Looks like an actor handle; plays `script`, then answers."""

    def __init__(self, *script: Any) -> None:
        self.script, self.calls = list(script), 0
        self.asked: list[tuple[str, int]] = []
        self.search_all = SimpleNamespace(remote=self._play)

    async def _play(self, asked: Sequence[tuple[str, int]]) -> list[Retrieved]:
        self.calls += 1
        self.asked += asked
        step = self.script.pop(0) if self.script else Empty()
        if isinstance(step, float):
            await asyncio.sleep(step)
        if isinstance(step, Exception):
            raise step
        return [step if isinstance(step, Failed | Hits) else Empty()] * len(asked)


def client(*parts: Part, timeout_s: float = 0.3, attempts: int = 2, remember: int = 0) -> RetrievalClient:
    handles: Any = parts
    return RetrievalClient(handles, timeout_s=timeout_s, attempts=attempts, remember=remember)


def away() -> ActorUnavailableError:
    return ActorUnavailableError("planted", b"0" * 16)


@pytest.mark.fault("Q1", "a replica is dead")
def test_a_dead_replica_costs_one_pause() -> None:
    dead, alive = Part(*[away()] * 99), Part()
    for _ in range(4):
        assert asyncio.run(client(dead, alive)("q", 1)) == Empty()
    assert alive.calls == 4
    assert dead.calls <= 4


def test_a_lone_replica_is_waited_for_within_one_attempt() -> None:
    back = Part(away(), away())
    assert asyncio.run(client(back, attempts=1)("q", 1)) == Empty()
    assert back.calls == 3


@pytest.mark.fault("Q9", "a replica keeps silent")
def test_a_hung_replica_costs_one_timeout() -> None:
    hung = Part(9.0, 9.0)
    start = time.monotonic()
    assert asyncio.run(client(hung, Part())("q", 1)) == Empty()
    assert time.monotonic() - start < 1.0


@pytest.mark.fault("Q11", "all replicas are away")
def test_giving_up_says_why_and_in_time() -> None:
    start = time.monotonic()
    for part, reason in [
        (Part(*[away()] * 99), "no retrieval after 2 attempts: retrieval replica 0 is away: .*planted"),
        (Part(9.0, 9.0), r"no retrieval after 2 attempts: retrieval replica 0 did not answer within 0\.3 s"),
        (Part(Failed("first"), Failed("Lucene refused")), "no retrieval after 2 attempts: Lucene refused"),
    ]:
        answer = asyncio.run(client(part)("q", 1))
        assert isinstance(answer, Failed)
        assert re.search(reason, answer.reason)
    assert time.monotonic() - start < 3.0


def test_load_is_spread_evenly_and_queries_that_wait_travel_together() -> None:
    parts = [Part(*[0.05] * 99) for _ in range(4)]

    async def run() -> None:
        even = client(*parts)
        await asyncio.gather(*(even(f"q{i}", 1) for i in range(40)))
        await asyncio.gather(*(even(f"r{i}", 1) for i in range(40)))
        assert [lane.in_flight for lane in even._lanes] == [0] * 4

    asyncio.run(run())
    assert [len(part.asked) for part in parts] == [20] * 4
    assert len({query for part in parts for query, _ in part.asked}) == 80
    assert all(part.calls <= 4 for part in parts), "ten queries at a time in at most two messages"


def test_an_answer_is_remembered_and_a_failure_is_not() -> None:
    part = Part(Failed("planted"), Hits((Passage("p", "", 1.0),)))

    async def run() -> list[Retrieved]:
        asking = client(part, attempts=1, remember=2)
        return [await asking(query, k) for query, k in [("a", 1)] * 3 + [("a", 2), ("b", 1), ("a", 2), ("a", 1)]]

    answers = asyncio.run(run())
    assert isinstance(answers[0], Failed)
    assert answers[1] == answers[2] == Hits((Passage("p", "", 1.0),))
    # The third is known, k counts, and with room for two the oldest, ("a", 1), has gone when it is asked again.
    assert part.asked == [("a", 1), ("a", 1), ("a", 2), ("b", 1), ("a", 1)]


def test_a_pickled_client_starts_with_nothing_in_flight() -> None:
    original = client(Part(), timeout_s=3.0, attempts=5, remember=7)
    original._lanes[0].in_flight = 7
    rebuild, given = original.__reduce__()
    copy = rebuild(*given)
    assert (copy._timeout_s, copy._attempts, copy._remember, copy._lanes[0].in_flight) == (3.0, 5, 7, 0)
    empty = pickle.loads(pickle.dumps(RetrievalClient((), timeout_s=3.0, attempts=5, remember=7)))
    assert (empty._timeout_s, empty._attempts, empty._remember, empty._lanes) == (3.0, 5, 7, [])
