"""Every episode lands once, whatever happens to the workers: played through on a clock of its own, seed by seed."""

import heapq
import random
from collections import Counter
from dataclasses import dataclass, field
from itertools import count

import pytest

from cluster.dispatch import Dispatch, Flight, RolloutFailed
from smartrag.types import EpisodeRequest, PoisonQuestion, Question
from tests.fault_table import Row

PATIENCE_S, LOSSES, ATTEMPTS = 10.0, 4, 3


def requests(n: int) -> list[EpisodeRequest]:
    return [EpisodeRequest(f"e{i}", Question(f"q{i}", "?", ("x",)), 1, 1) for i in range(n)]


@dataclass
class World:
    """Workers that answer, crash and hang by the seed. An event is (time, number, flight, what happens)."""

    seed: int
    poison: str | None = None  # an episode that ends whichever worker runs it
    crashes: int = 0  # of workers, at any time, that no episode is to blame for
    hangs: int = 0  # flights that answer only long after their deadline, if ever
    stumbles: int = 0  # episodes that fail by themselves, once
    workers: int = 3
    episodes: int = 30
    concurrency: int = 4
    landed: Counter[str] = field(default_factory=Counter)
    company: dict[int, list[Flight]] = field(default_factory=dict)  # worker -> what is aboard, late flights too

    def play(self) -> None:
        """Raises what `Dispatch` raises."""
        rng, numbers = random.Random(self.seed), count()
        dispatch = Dispatch(
            requests(self.episodes),
            concurrency=self.concurrency,
            attempts=ATTEMPTS,
            losses=LOSSES,
            patience_s=PATIENCE_S,
        )
        away: dict[int, float] = {}  # worker -> when it is back
        self.company = {worker: [] for worker in range(self.workers)}
        events: list[tuple[float, int, Flight, str]] = []
        now = 0.0
        for tick in count():
            assert tick < 5000, "no end in sight"
            healthy = [worker for worker in self.company if away.get(worker, 0.0) <= now]
            for flight in dispatch.departures(healthy, now):
                assert flight.worker in healthy
                self._aboard(flight)
                heapq.heappush(events, (now + rng.uniform(0.1, 3.0), next(numbers), flight, self._fate(flight, rng)))
            if dispatch.done:
                return
            if events and rng.random() < 0.9:
                now, _, flight, fate = heapq.heappop(events)
                self._happen(dispatch, events, away, flight, fate, now)
            else:
                now += 1.0
            if self.crashes and rng.random() < 0.02:
                self.crashes -= 1
                self._crash(dispatch, events, away, rng.randrange(self.workers), now)
            dispatch.overdue(now)

    def _aboard(self, flight: Flight) -> None:
        others = [f for f in self.company[flight.worker] if not f.late]
        assert len(others) < self.concurrency
        assert not any(f.alone for f in others)
        assert not (flight.alone and others)
        self.company[flight.worker].append(flight)

    def _fate(self, flight: Flight, rng: random.Random) -> str:
        if flight.request.id == self.poison:
            return "crash"
        if self.hangs and rng.random() < 0.1:
            self.hangs -= 1
            return "hang"
        if self.stumbles and rng.random() < 0.1:
            self.stumbles -= 1
            return "fail"
        return "land"

    def _happen(self, dispatch: Dispatch, events: list, away: dict, flight: Flight, fate: str, now: float) -> None:
        if flight not in self.company[flight.worker]:
            return  # it went down with its worker
        match fate:
            case "hang":
                heapq.heappush(events, (now + 3 * PATIENCE_S, len(events) + 10**6 + self.hangs, flight, "land"))
            case "crash":
                self._crash(dispatch, events, away, flight.worker, now)
            case "fail":
                self.company[flight.worker].remove(flight)
                dispatch.failed(flight, OSError("no retrieval"))
            case "land":
                self.company[flight.worker].remove(flight)
                self.landed[flight.request.id] += dispatch.landed(flight)

    def _crash(self, dispatch: Dispatch, events: list, away: dict, worker: int, now: float) -> None:
        away[worker] = now + 2.0
        down, self.company[worker] = self.company[worker], []
        for flight in down:
            dispatch.lost(flight, ConnectionError("the worker died"))


@pytest.mark.fault("R1", "workers crash, hang and stumble at random")
@pytest.mark.parametrize("workers", [1, 3])
def test_whatever_happens_every_episode_lands_once(workers: int, row: Row, trials: int) -> None:
    for seed in range(1000 * trials):
        rng = random.Random(f"world/{seed}")
        world = World(
            seed,
            crashes=rng.randrange(LOSSES - 1),
            hangs=rng.randrange(2),
            stumbles=rng.randrange(ATTEMPTS),
            workers=workers,
            concurrency=rng.choice([1, 2, 8]),
        )
        if world.crashes + world.hangs >= LOSSES:
            world.hangs = 0
        world.play()
        assert world.landed == Counter(f"e{i}" for i in range(30)), f"seed {seed}"
        row.trial(lost=30 - len(world.landed), doubled=world.landed.total() - len(world.landed))


@pytest.mark.fault("R5", "a question ends every worker it comes to")
@pytest.mark.parametrize("workers", [1, 3])
def test_the_question_that_ends_workers_is_named_and_no_other(workers: int, row: Row, trials: int) -> None:
    for seed in range(500 * trials):
        poison = random.Random(f"poison/{seed}").randrange(30)
        world = World(seed, poison=f"e{poison}", workers=workers, concurrency=8)
        with pytest.raises(PoisonQuestion) as caught:
            world.play()
        assert caught.value.question == f"q{poison}", f"seed {seed}"
        assert max(world.landed.values(), default=1) == 1
        row.trial()


@pytest.mark.fault("R6", "an episode fails by itself, and its workers too")
def test_an_episode_that_fails_by_itself_has_its_own_budget() -> None:
    dispatch = Dispatch(requests(1), concurrency=1, attempts=ATTEMPTS, losses=LOSSES, patience_s=1.0)
    for _ in range(ATTEMPTS - 1):
        (flight,) = dispatch.departures([0], 0.0)
        assert not flight.alone
        dispatch.failed(flight, OSError("no retrieval"))
    for _ in range(LOSSES - 1):  # these are counted apart
        (flight,) = dispatch.departures([0], 0.0)
        dispatch.lost(flight, ConnectionError("the worker died"))
    (flight,) = dispatch.departures([0], 0.0)
    assert flight.alone
    with pytest.raises(RolloutFailed, match=r"e0 \(q0\) failed 3 times.*OSError: no retrieval"):
        dispatch.failed(flight, OSError("no retrieval"))


def test_suspects_fly_alone_one_after_the_other_while_others_go_on() -> None:
    dispatch = Dispatch(requests(6), concurrency=2, attempts=1, losses=LOSSES, patience_s=9.0)
    old = dispatch.departures([0], 0.0)  # e0, e1
    for flight in old:
        dispatch.lost(flight, ConnectionError())
    ahead = dispatch.departures([0, 1], 0.0)  # e2 to e5
    for flight in ahead:
        assert dispatch.landed(flight)
    for flight in dispatch.departures([0], 0.0):
        dispatch.lost(flight, ConnectionError())
    (first,) = dispatch.departures([0], 0.0)
    assert (first.request.id, first.alone) == ("e0", True)
    assert dispatch.departures([0], 0.0) == []
    (second,) = dispatch.departures([0, 1], 0.0)
    assert (second.request.id, second.worker, second.alone) == ("e1", 1, True)
    assert dispatch.landed(first)
    assert dispatch.landed(second)
    assert dispatch.done


@pytest.mark.fault("R7", "an episode comes back after it was given up on")
def test_a_late_one_that_comes_back_first_is_not_run_again() -> None:
    dispatch = Dispatch(requests(1), concurrency=1, attempts=1, losses=LOSSES, patience_s=1.0)
    (flight,) = dispatch.departures([0], 0.0)
    assert dispatch.overdue(1.5) == [flight]
    assert dispatch.landed(flight)
    assert dispatch.done
    assert dispatch.departures([0], 2.0) == []


@pytest.mark.fault("R7", "a worker dies with an episode that was given up on")
def test_a_late_one_whose_worker_then_dies_is_run_again_once() -> None:
    dispatch = Dispatch(requests(1), concurrency=2, attempts=1, losses=LOSSES, patience_s=1.0)
    (flight,) = dispatch.departures([0], 0.0)
    dispatch.overdue(1.5)
    dispatch.lost(flight, ConnectionError())
    assert len(dispatch.departures([1, 2], 2.0)) == 1
