"""Which worker a question goes to, what becomes of it when that one is lost, and when nobody is let in at all.

Workers are scripted; no Ray runs.
"""

import asyncio
import socket
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import RayActorError, RayTaskError

from cluster import door
from cluster.door import Asker
from cluster.serving import _check
from cluster.system import BadInput
from smartrag.compose import load
from smartrag.config import Run
from smartrag.episode import QuestionTooLong
from smartrag.serving.refusal import Refused
from smartrag.serving.request import Asked
from smartrag.serving.settings import settings
from smartrag.types import ActionKind, EpisodeFailed, EpisodeRequest, Turn
from tests import toys

ASKED = Asked("Who?", 0.0, None, False, False)
SEARCH, ANSWER = toys.finished(1, ActionKind.ANSWER).turns


class Worker:
    """A handle of an actor: each call of `turns` plays the next script, in which an error is raised, a turn yielded and
    an event waited for. Without a script it answers at once."""

    def __init__(self, *scripts: list[Any], back: bool = True):
        self.scripts, self.back = deque(scripts), back
        self.calls: list[tuple[EpisodeRequest, float, int | None]] = []
        self.turns = SimpleNamespace(options=self._options)
        self.identity = SimpleNamespace(remote=self._identity)

    def _options(self, num_returns: str) -> Any:
        assert num_returns == "streaming"
        return SimpleNamespace(remote=self._remote)

    def _remote(self, *call: Any) -> AsyncIterator[Awaitable[Turn]]:
        self.calls.append(call)
        return self._play(self.scripts.popleft() if self.scripts else [ANSWER])

    async def _play(self, script: list[Any]) -> AsyncIterator[Awaitable[Turn]]:
        for step in script:
            if isinstance(step, asyncio.Event):
                await step.wait()
            else:
                yield _settled(step)

    async def _identity(self) -> str:
        if not self.back:
            raise RayActorError()
        return "another"


async def _settled(step: Turn | Exception) -> Turn:
    if isinstance(step, Exception):
        raise step
    return step


@pytest.fixture(autouse=True)
def cancelled(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Attempts that the Door has told Ray to cancel."""
    found: list[Any] = []
    monkeypatch.setattr(ray, "cancel", found.append)
    return found


def play(test: Callable[[Run], Awaitable[None]], concurrency: int = 1) -> None:
    asyncio.run(test(load([f"cluster.engine.concurrency={concurrency}", "algorithm.quota=3", "retriever.k=4"])))


async def gathered(asker: Asker, asked: Asked = ASKED, id: str = "e") -> list[Turn]:
    return [turn async for turn in asker.ask(asked, id)]


async def refused(asker: Asker) -> tuple[int, str]:
    with pytest.raises(Refused) as error:
        await gathered(asker)
    return error.value.said.status, error.value.said.code


def test_a_question_becomes_an_episode_of_the_runs_settings() -> None:
    async def test(run: Run) -> None:
        worker = Worker([SEARCH, ANSWER])
        asker: Any = Asker([worker], run, 0)  # type: ignore[list-item]
        assert await gathered(asker, Asked("Who?", 0.5, 9, True, False), "id-1") == [SEARCH, ANSWER]
        [(request, temperature, most)] = worker.calls
        assert (request.id, request.question.text, request.quota, request.k) == ("id-1", "Who?", 3, 4)
        assert (request.greedy, temperature, most) == (False, 0.5, 9)
        await gathered(asker)
        assert worker.calls[1][0].greedy

    play(test)


def test_the_least_loaded_takes_it_and_the_rest_wait_or_are_refused() -> None:
    async def test(run: Run) -> None:
        gate = asyncio.Event()
        workers = [Worker(*[[gate, ANSWER]] * 2) for _ in range(2)]
        asker: Any = Asker(workers, run, 2)  # type: ignore[arg-type]
        under_way = [asyncio.create_task(gathered(asker, id=f"e{i}")) for i in range(6)]
        await asyncio.sleep(0.01)
        assert [len(worker.calls) for worker in workers] == [2, 2]
        assert asker._waiting == 2
        assert await refused(asker) == (429, "rate_limit_exceeded")
        under_way[5].cancel()  # its client has gone
        await asyncio.sleep(0.01)
        assert asker._waiting == 1
        gate.set()
        assert await asyncio.gather(*under_way[:5]) == [[ANSWER]] * 5
        assert (asker._load, asker._waiting) == ([0, 0], 0)

    play(test, concurrency=2)


def test_a_lost_workers_question_goes_on_elsewhere_and_nothing_is_seen_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(door, "_ASK_AGAIN_S", 0.02)

    async def test(run: Run) -> None:
        lost, other = Worker([SEARCH, RayActorError()], back=False), Worker([SEARCH, ANSWER])
        asker: Any = Asker([lost, other], run, 0)  # type: ignore[list-item]
        assert await gathered(asker) == [SEARCH, ANSWER]
        assert [call[0].id for call in (*lost.calls, *other.calls)] == ["e", "e"]
        assert asker.engines() == (1, 2)
        assert await gathered(asker) == [ANSWER]
        assert len(lost.calls) == 1, "nothing goes to a worker that is lost"
        lost.back = True
        await asyncio.sleep(0.1)
        assert asker.engines() == (2, 2)

    play(test)


def test_a_question_that_ends_workers_does_not_end_them_all() -> None:
    async def test(run: Run) -> None:
        workers = [Worker([RayActorError()], back=False) for _ in range(4)]
        asker: Any = Asker(workers, run, 0)  # type: ignore[arg-type]
        assert await refused(asker) == (503, "unavailable")
        assert asker.engines() == (2, 4)

    play(test)


def test_without_workers_it_says_so_at_once() -> None:
    async def test(run: Run) -> None:
        asker: Any = Asker([Worker([RayActorError()], back=False)], run, 9)  # type: ignore[list-item]
        assert await refused(asker) == (503, "unavailable")
        assert await refused(asker) == (503, "unavailable")
        [task] = asker._lost.values()
        task.cancel()

    play(test)


def test_who_waits_for_a_worker_that_is_lost_is_not_left_waiting() -> None:
    async def test(run: Run) -> None:
        gate = asyncio.Event()
        asker: Any = Asker([Worker([gate, RayActorError()], back=False)], run, 9)  # type: ignore[list-item]
        both = [asyncio.create_task(refused(asker)) for _ in range(2)]
        await asyncio.sleep(0.01)
        gate.set()
        assert await asyncio.wait_for(asyncio.gather(*both), 5) == [(503, "unavailable")] * 2

    play(test)


def test_another_course_of_the_episode_is_not_glued_to_the_first(cancelled: list[Any]) -> None:
    async def test(run: Run) -> None:
        asker: Any = Asker([Worker([SEARCH, RayActorError()]), Worker([ANSWER])], run, 0)  # type: ignore[list-item]
        assert await refused(asker) == (503, "unavailable")
        assert len(cancelled) == 1

    play(test)


@pytest.mark.parametrize(
    ("cause", "status", "code"),
    [
        (QuestionTooLong("takes 900 of 256 tokens"), 400, "context_length_exceeded"),
        (EpisodeFailed("retrieval failed"), 503, "unavailable"),
    ],
)
def test_what_a_worker_raises_is_told_as_far_as_it_is_the_clients(cause: Exception, status: int, code: str) -> None:
    async def test(run: Run) -> None:
        asker: Any = Asker([Worker([RayTaskError("turns", "traceback", cause)])], run, 0)  # type: ignore[list-item]
        assert await refused(asker) == (status, code)
        assert asker.engines() == (1, 1)

    play(test)


def test_a_client_that_goes_takes_its_episode_along(cancelled: list[Any]) -> None:
    async def test(run: Run) -> None:
        asker: Any = Asker([Worker([SEARCH, asyncio.Event()], [asyncio.Event()])], run, 0)  # type: ignore[list-item]
        turns = asker.ask(ASKED, "e")
        assert await anext(turns) == SEARCH
        await turns.aclose()
        waits = asyncio.create_task(gathered(asker))
        await asyncio.sleep(0.01)
        waits.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waits
        assert len(cancelled) == 2
        assert asker._load == [0]

    play(test)


def test_what_would_be_unsafe_is_refused_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(BadInput, match=f"cannot listen on host=127.0.0.1 port={port}"):
            _check(settings(["run", f"port={port}"])[0], load([]))
        with pytest.raises(BadInput, match=r"cannot listen on host=192\.0\.2\.1"):  # nobody's (RFC 5737)
            _check(settings(["run", "host=192.0.2.1"])[0], load([]))
    free = settings(["run", f"port={port}"])[0]
    _check(free, load([]))
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with pytest.raises(BadInput, match="RAY_AUTH_MODE is disabled"):
        _check(free, load([]))
    monkeypatch.delenv("RAY_AUTH_MODE")
    with pytest.raises(BadInput, match="RAY_AUTH_MODE is not set"):
        _check(free, load(["cluster.address=head:6379"]))
