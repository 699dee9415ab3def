"""Who asks the retrieval service: queries that wait together travel together, and an answer once got is remembered."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayError

from smartrag.types import Failed, Retrieved

_FIRST_BACKOFF_S, _LONGEST_BACKOFF_S = 0.05, 1.0
_CALLS = 2  # messages on their way to one replica: one that it works at, and the next
_FEW, _MANY = 8, 256  # queries of one message: fewer are not worth dividing, more would make all wait for the last

Key = tuple[str, int]  # query, k; the pool sees to it that all replicas search one and the same index


class RetrievalClient:
    """Implements `smartrag.types.Retrieve` over replicas. Picklable; every holder counts its own queries in flight, and
    remembers the `remember` answers that were asked for last."""

    def __init__(self, replicas: Sequence[ActorHandle], *, timeout_s: float, attempts: int, remember: int) -> None:
        self._replicas, self._timeout_s, self._attempts = tuple(replicas), timeout_s, attempts
        self._remember = remember
        self._lanes = [_Lane(replica) for replica in self._replicas]
        self._known: OrderedDict[Key, Retrieved] = OrderedDict()
        self._turn = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return _client, (self._replicas, self._timeout_s, self._attempts, self._remember)

    async def __call__(self, query: str, k: int) -> Retrieved:
        """Ask replicas until one answers: `attempts` times, each at most `timeout_s` seconds. Then Failed says why.

        Raises ValueError for k < 1.
        """
        check_k(k)
        if (query, k) in self._known:
            self._known.move_to_end((query, k))
            return self._known[query, k]
        avoid: set[int] = set()
        why = ""
        for _ in range(self._attempts):
            answer = await self._attempt(query, k, avoid)
            if not isinstance(answer, Failed):
                self._keep((query, k), answer)
                return answer
            why = answer.reason
        return Failed(f"no retrieval after {self._attempts} attempts: {why}")

    def _keep(self, key: Key, answer: Retrieved) -> None:
        if self._remember:
            self._known[key] = answer
            if len(self._known) > self._remember:
                self._known.popitem(last=False)

    async def _attempt(self, query: str, k: int, avoid: set[int]) -> Retrieved:
        """One answer, or Failed. A dead replica is not an answer: ask another, or wait for it to come back."""
        end = time.monotonic() + self._timeout_s
        pause = _FIRST_BACKOFF_S
        while True:
            number = self._pick(avoid)
            avoid.add(number)
            try:
                return await asyncio.wait_for(self._lanes[number].ask(query, k), max(end - time.monotonic(), 0.001))
            except TimeoutError:
                return Failed(f"retrieval replica {number} did not answer within {self._timeout_s:g} s")
            except RayActorError as error:
                if time.monotonic() + pause >= end:
                    return Failed(f"retrieval replica {number} is away: {reason(error)}")
            except RayError as error:
                return Failed(f"retrieval replica {number} failed: {reason(error)}")
            await asyncio.sleep(pause)
            pause = min(2 * pause, _LONGEST_BACKOFF_S)

    def _pick(self, avoid: set[int]) -> int:
        """Of those that have not failed us yet the one with the fewest queries of ours, in turn among equals."""
        count = len(self._replicas)
        if len(avoid) == count:
            avoid.clear()
        self._turn += 1
        order = [(self._turn + i) % count for i in range(count)]
        return min((i for i in order if i not in avoid), key=lambda i: self._lanes[i].in_flight)


class _Lane:
    """From one holder to one replica. A message costs milliseconds, a query less than one."""

    def __init__(self, replica: ActorHandle) -> None:
        self._replica: Any = replica
        self._waiting: list[tuple[str, int, asyncio.Future[Retrieved]]] = []
        self._calls: set[asyncio.Task[None]] = set()
        self.in_flight = 0

    async def ask(self, query: str, k: int) -> Retrieved:
        """What the replica answers. Raises what Ray raises of the message that the query travels in."""
        answer: asyncio.Future[Retrieved] = asyncio.get_running_loop().create_future()
        self._waiting.append((query, k, answer))
        if len(self._calls) < _CALLS:
            call = asyncio.create_task(self._carry())
            self._calls.add(call)
            call.add_done_callback(self._calls.discard)
        self.in_flight += 1
        try:
            return await answer
        finally:
            self.in_flight -= 1

    async def _carry(self) -> None:
        """Message after message, until nobody waits."""
        await asyncio.sleep(0)  # who asks in the same moment comes along
        while self._waiting:
            # A share of all that are on their way: one message is searched while the other travels.
            count = min(max(_FEW, self.in_flight // _CALLS), _MANY)
            batch, self._waiting = self._waiting[:count], self._waiting[count:]
            asked = [(query, k) for query, k, answer in batch if not answer.done()]
            left = [answer for *_, answer in batch if not answer.done()]
            try:
                answers: Sequence[Retrieved] = await self._replica.search_all.remote(asked)
            except Exception as error:
                _settle(left, [error] * len(left))
            else:
                _settle(left, answers)


def _settle(waiting: Sequence["asyncio.Future[Retrieved]"], results: Sequence[Retrieved | Exception]) -> None:
    for answer, result in zip(waiting, results, strict=True):
        if answer.done():  # whoever asked has gone
            continue
        if isinstance(result, Exception):
            answer.set_exception(result)
        else:
            answer.set_result(result)


def check_k(k: int) -> None:
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")


def reason(error: Exception) -> str:
    """The line that matters of a Ray error, whose text is mostly a remote traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _client(replicas: Sequence[ActorHandle], timeout_s: float, attempts: int, remember: int) -> RetrievalClient:
    return RetrievalClient(replicas, timeout_s=timeout_s, attempts=attempts, remember=remember)
