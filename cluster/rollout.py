"""The pool of rollout workers: every episode to one of them, exactly once, whatever happens to them."""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError
from ray.rllib.utils.actor_manager import FaultTolerantActorManager
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.weights import gather
from cluster.worker import RolloutWorker, StaleWorker
from smartrag.config import Cluster
from smartrag.types import Episode, EpisodeFailed, EpisodeRequest

TICK_S = 1.0  # between two looks at deadlines and lost workers
PROBE_EVERY_S = 3.0  # between two looks after lost workers
PROBE_WAIT_S = 2.0  # for a lost worker to answer; the others' episodes are not collected meanwhile
SILENCE_S = 10.0  # a worker that let an episode time out and does not answer for so long is restarted
CLOSE_S = 15.0  # for engines to end by themselves
HEADROOM = 16  # calls a worker takes beside its episodes: pings, weight pushes, episodes given up on


class RolloutFailed(RuntimeError):
    """The machines could not bring an episode to its end."""


@dataclass(slots=True)
class _Flight:
    """One call of one episode."""

    request: EpisodeRequest
    worker: int
    deadline: float  # time.monotonic()
    late: bool = False  # beyond its deadline: run again elsewhere, but the first to come back wins


class RolloutPool:
    """Implements `Rollout` over Ray actors of `worker` (a RolloutWorker class), each built with `args`.

    Each episode is a call of its own to a healthy worker. Lost workers are restarted by Ray; before one gets episodes
    again `on_restored` is called with the numbers of those that came back: set it to bring them the current weights.
    One iteration at a time.
    """

    def __init__(
        self,
        cluster: Cluster,
        worker: type[RolloutWorker],
        args: Sequence[Any],
        *,
        env: Mapping[str, str] | None = None,
        strategies: Sequence[PlacementGroupSchedulingStrategy] = (),
    ):
        """Starts the workers and waits until all are ready. `strategies`: where each stands, if it matters.

        Raises RolloutFailed when that takes longer than `cluster.placement_timeout_s`.
        """
        self._cluster = cluster
        self.on_restored: Callable[[list[int]], Any] | None = None
        engine = cluster.engine
        options: dict[str, Any] = {
            "num_cpus": engine.cpus,
            "num_gpus": engine.gpus,
            "max_restarts": -1,
            "max_task_retries": 0,  # an episode is run again by us, elsewhere and counted
            "max_concurrency": 2 * engine.concurrency + HEADROOM,
            "runtime_env": {"env_vars": dict(env or {})},
        }
        actors: list[Any] = []
        for i in range(engine.workers):
            where = {"scheduling_strategy": strategies[i]} if strategies else {}
            actors.append(ray.remote(worker).options(**options, **where).remote(*args))
        self._manager = FaultTolerantActorManager(actors)
        self._trusted: dict[int, str] = {}  # the process of each worker that holds the current weights
        self._suspects: dict[int, float] = {}  # when one of its episodes timed out, if it has finished none since
        self._probe_at = 0.0
        self._alive_at = time.monotonic()
        self._wait_until_ready()

    def __call__(self, requests: Sequence[EpisodeRequest]) -> Iterator[Episode]:
        """Every episode exactly once, as they finish.

        Raises RolloutFailed when one failed `cluster.episode_attempts` times or no worker comes back; what else a
        worker raises is a bug and comes through as it is.
        """
        wanted = {request.id for request in requests}
        if len(wanted) != len(requests):
            raise ValueError(
                f"{len(requests)} episodes have only {len(wanted)} different ids; every slot needs its own"
            )
        waiting = deque(requests)
        flights: dict[ray.ObjectRef, _Flight] = {}
        failures: Counter[str] = Counter()
        try:
            while wanted:
                self._restore()
                self._submit(waiting, flights)
                for ref in _landed(flights):
                    flight = flights.pop(ref)
                    result = self._result(ref, flight)
                    if flight.request.id not in wanted:
                        continue  # its double was faster
                    if isinstance(result, Episode):
                        wanted.remove(flight.request.id)
                        yield result
                    elif not flight.late:
                        self._again(flight.request, result, waiting, failures)
                for flight in self._overdue(flights):
                    problem = TimeoutError(
                        f"no answer from worker {flight.worker} in {self._cluster.call_timeout_s:g} s"
                    )
                    self._again(flight.request, problem, waiting, failures)
        finally:
            for ref in flights:
                ray.cancel(ref)

    def handles(self) -> dict[int, ActorHandle]:
        """All workers, lost ones too."""
        return dict(self._manager.actors())

    def lost(self, worker: int) -> None:
        """This worker may hold other weights than the rest: it gets no episodes before it has been restored."""
        self._trusted.pop(worker, None)
        self._manager.set_actor_state(worker, False)

    def rest(self) -> None:
        """Engines that share GPUs with the learner give them up; the next weight push wakes them."""
        if not self._cluster.colocated:
            return
        refs = [handle.on_engine.remote("sleep") for handle in self.handles().values()]
        ray.get(refs, timeout=self._cluster.call_timeout_s)

    def close(self) -> None:
        """Ends the workers, their engines first: these are processes of their own, and would for a while outlive the
        workers and hold on to memory that whoever comes next needs."""
        handles = self.handles()
        refs: list[Any] = [handles[worker].close.remote() for worker in self._trusted]
        if refs:
            ray.wait(refs, num_returns=len(refs), timeout=CLOSE_S)
        for handle in handles.values():
            ray.kill(handle)
        self._manager.clear()

    def _submit(self, waiting: deque[EpisodeRequest], flights: dict[ray.ObjectRef, _Flight]) -> None:
        load = Counter(flight.worker for flight in flights.values() if not flight.late)
        healthy = self._manager.healthy_actor_ids()
        handles = self._manager.actors()
        while waiting and healthy:
            worker = min(healthy, key=lambda w: load[w])
            if load[worker] >= self._cluster.engine.concurrency:
                return
            load[worker] += 1
            request = waiting.popleft()
            ref = handles[worker].run_episode.remote(request, self._trusted[worker])
            flights[ref] = _Flight(request, worker, time.monotonic() + self._cluster.call_timeout_s)

    def _result(self, ref: ray.ObjectRef, flight: _Flight) -> Episode | Exception:
        """The episode, or why the infrastructure did not bring it."""
        try:
            episode = ray.get(ref)
        except EpisodeFailed as error:
            return error
        except StaleWorker as error:
            self.lost(flight.worker)
            return error
        except RayTaskError:
            raise
        except RayError as error:  # the worker, or its node, is gone
            self.lost(flight.worker)
            return error
        self._suspects.pop(flight.worker, None)
        return episode

    def _again(
        self, request: EpisodeRequest, problem: Exception, waiting: deque[EpisodeRequest], failures: Counter[str]
    ) -> None:
        failures[request.id] += not isinstance(problem, StaleWorker)  # that one was never begun
        if failures[request.id] >= self._cluster.episode_attempts:
            cause = problem.cause if isinstance(problem, RayTaskError) else problem
            raise RolloutFailed(
                f"episode {request.id} ({request.question.id}) failed {failures[request.id]} times, the limit of "
                f"cluster.episode_attempts; the last time: {type(cause).__name__}: {cause}"
            ) from problem
        waiting.append(request)

    def _overdue(self, flights: Mapping[ray.ObjectRef, _Flight]) -> list[_Flight]:
        """Flights that have just become late. Their workers are looked after; the second time they are restarted."""
        now = time.monotonic()
        found = [flight for flight in flights.values() if not flight.late and now > flight.deadline]
        for flight in found:
            flight.late = True
        for worker in {flight.worker for flight in found}:
            self._manager.set_actor_state(worker, False)
            if worker in self._suspects:
                self._restart(worker)
            else:
                self._suspects[worker] = now
        return found

    def _restore(self) -> None:
        """Workers that were lost and answer again get the current weights, then episodes.

        Raises RolloutFailed when no worker has been healthy for `cluster.placement_timeout_s`.
        """
        lost = set(self._manager.actor_ids()) - set(self._manager.healthy_actor_ids())
        now = time.monotonic()
        if len(lost) < self._manager.num_actors():
            self._alive_at = now
        elif now - self._alive_at > self._cluster.placement_timeout_s:
            raise RolloutFailed(f"all {len(lost)} rollout workers are lost and none came back; {_resources()}")
        if not lost or now < self._probe_at:
            return
        answered = lost.intersection(self._manager.probe_unhealthy_actors(timeout_seconds=PROBE_WAIT_S))
        self._probe_at = time.monotonic() + PROBE_EVERY_S
        for worker in lost - answered:
            if now - self._suspects.get(worker, now) > SILENCE_S:
                self._restart(worker)
        names = self._identities(answered, PROBE_WAIT_S)
        fresh = [worker for worker, name in names.items() if self._trusted.get(worker) != name]
        for worker, name in names.items():
            self._trusted[worker] = name
            self._manager.set_actor_state(worker, True)
        if fresh and self.on_restored is not None:
            self.on_restored(fresh)  # a weight push; it calls `lost` for those it did not reach

    def _restart(self, worker: int) -> None:
        del self._suspects[worker]
        ray.kill(self._manager.actors()[worker], no_restart=False)

    def _identities(self, workers: Iterable[int], timeout_s: float) -> dict[int, str]:
        refs = {self._manager.actors()[worker].identity.remote(): worker for worker in workers}
        ready, _ = ray.wait(list(refs), num_returns=len(refs), timeout=timeout_s) if refs else ([], [])
        names = {}
        for ref in ready:
            with suppress(RayError):
                names[refs[ref]] = ray.get(ref)
        return names

    def _wait_until_ready(self) -> None:
        engine = self._cluster.engine
        try:
            handles = self.handles()
            refs = [handle.identity.remote() for handle in handles.values()]
            names = gather("rollout workers", refs, self._cluster.placement_timeout_s)
        except RayError as error:
            self.close()
            cause = error.cause if isinstance(error, RayTaskError) else error
            raise RolloutFailed(
                f"the rollout workers ({engine.workers} of {engine.cpus:g} CPUs and {engine.gpus:g} GPUs each) did not "
                f"start: {cause}; {_resources()}"
            ) from error
        self._trusted = dict(zip(handles, names, strict=True))


def _landed(flights: Mapping[ray.ObjectRef, _Flight]) -> list[ray.ObjectRef]:
    """Calls that have ended; waits a moment for the first."""
    if not flights:
        time.sleep(TICK_S)
        return []
    refs = list(flights)
    first, _ = ray.wait(refs, timeout=TICK_S)
    return ray.wait(refs, num_returns=len(refs), timeout=0)[0] if first else []


def _resources() -> str:
    return f"the cluster has {ray.cluster_resources()}, of which {ray.available_resources()} are free"
