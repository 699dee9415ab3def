"""Who runs which episode next, and what becomes of it when that fails. It has neither clock nor machines.

    waiting -> in flight -> landed, once
       ^           |
       +-- failed, refused, lost, overdue

What fails by itself (a retrieval, a generation given up) has one budget, and an episode whose worker is lost or silent
another, because what ends workers may be its question. After `COMPANY` such losses it flies alone, and if it uses that
budget up it is named: nobody else was there.
"""

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from smartrag.types import EpisodeRequest, PoisonQuestion

COMPANY = 2  # losses of an episode that others of the worker may have caused


class RolloutFailed(RuntimeError):
    """The machines could not bring an episode to its end."""


@dataclass(slots=True, eq=False)
class Flight:
    """One attempt at one episode."""

    request: EpisodeRequest
    worker: int
    deadline: float  # seconds, on the caller's clock
    alone: bool  # nothing else is given to the worker meanwhile
    late: bool = False  # beyond its deadline: run again elsewhere, but the first to come back wins


class Dispatch:
    """Every one of `requests` lands once.

    `concurrency`: flights of one worker. `patience_s`: of a flight. All ends with an episode that fails by itself
    `attempts` times or costs `losses` workers. Times are those of one monotonic clock.

    Raises ValueError when two requests have one id.
    """

    def __init__(
        self, requests: Sequence[EpisodeRequest], *, concurrency: int, attempts: int, losses: int, patience_s: float
    ):
        self._concurrency, self._attempts, self._losses, self._patience_s = concurrency, attempts, losses, patience_s
        self._wanted = {request.id for request in requests}
        if len(self._wanted) != len(requests):
            raise ValueError(
                f"{len(requests)} episodes have only {len(self._wanted)} different ids; every slot needs its own"
            )
        self._waiting = deque(requests)
        self._suspects: deque[EpisodeRequest] = deque()  # wait to fly alone
        self._flights: list[Flight] = []
        self._failed: Counter[str] = Counter()
        self._lost: Counter[str] = Counter()

    @property
    def done(self) -> bool:
        return not self._wanted

    def departures(self, workers: Iterable[int], now: float) -> list[Flight]:
        """What `workers`, those that are healthy, shall begin: the least loaded first, suspects before all others."""
        load = Counter(flight.worker for flight in self._flights if not flight.late)
        taken = {flight.worker for flight in self._flights if flight.alone and not flight.late}
        free = [worker for worker in workers if worker not in taken]
        begun: list[Flight] = []

        def begin(request: EpisodeRequest, worker: int, alone: bool) -> None:
            load[worker] += 1
            begun.append(Flight(request, worker, now + self._patience_s, alone))

        for worker in [worker for worker in free if not load[worker]][: len(self._suspects)]:
            free.remove(worker)
            begin(self._suspects.popleft(), worker, alone=True)
        if self._suspects and free:
            free.remove(min(free, key=load.__getitem__))  # it gets nothing more, and so will soon be idle
        while self._waiting and free:
            worker = min(free, key=load.__getitem__)
            if load[worker] >= self._concurrency:
                break
            begin(self._waiting.popleft(), worker, alone=False)
        self._flights += begun
        return begun

    def landed(self, flight: Flight) -> bool:
        """It brought its episode. False when that is here already: its double was faster."""
        self._flights.remove(flight)
        if flight.request.id not in self._wanted:
            return False
        self._wanted.remove(flight.request.id)
        for queue in (self._waiting, self._suspects):
            if flight.late and flight.request in queue:  # to be run again, which is not needed now
                queue.remove(flight.request)
        return True

    def refused(self, flight: Flight) -> None:
        """It was not even begun."""
        if self._matters(flight):
            self._again(flight.request)

    def failed(self, flight: Flight, why: Exception) -> None:
        """The episode did not come to its end, through no fault of its worker. Raises RolloutFailed."""
        if self._matters(flight):
            self._failed[flight.request.id] += 1
            if self._failed[flight.request.id] >= self._attempts:
                raise RolloutFailed(
                    f"episode {_name(flight)} failed {self._attempts} times, the limit of cluster.episode_attempts; "
                    f"the last time: {_spelled(why)}"
                )
            self._again(flight.request)

    def lost(self, flight: Flight, why: Exception) -> None:
        """The worker is gone, and whatever it was at. Raises PoisonQuestion."""
        if self._matters(flight):
            self._count_loss(flight, why)
            self._again(flight.request)

    def overdue(self, now: float) -> list[Flight]:
        """Flights that have just become late; what they carry will be run again. Raises PoisonQuestion."""
        found = [flight for flight in self._flights if not flight.late and now > flight.deadline]
        for flight in found:
            flight.late = True
            if flight.request.id in self._wanted:
                self._count_loss(flight, TimeoutError(f"no answer in {self._patience_s:g} s"))
                self._again(flight.request)
        return found

    def _matters(self, flight: Flight) -> bool:
        """The flight has ended. Whether what it carried is to be run again: if it was late, that has been seen to."""
        self._flights.remove(flight)
        return not flight.late and flight.request.id in self._wanted

    def _again(self, request: EpisodeRequest) -> None:
        (self._suspects if self._lost[request.id] >= COMPANY else self._waiting).append(request)

    def _count_loss(self, flight: Flight, why: Exception) -> None:
        name = flight.request.id
        self._lost[name] += 1
        if self._lost[name] >= self._losses:
            raise PoisonQuestion(
                f"episode {_name(flight)} cost {self._losses} workers, the limit of cluster.episode_losses, "
                f"{self._losses - COMPANY} of them while nothing else ran there; the last time: {_spelled(why)}. Look "
                "at that question, or at the workers' logs if you think it innocent",
                flight.request.question.id,
            )


def _name(flight: Flight) -> str:
    return f"{flight.request.id} ({flight.request.question.id})"


def _spelled(why: Exception) -> str:
    return f"{type(why).__name__}: {why}"
