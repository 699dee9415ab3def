"""The pool of rollout workers: every episode to one of them, exactly once, whatever happens to them."""

import logging
import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayError, RayTaskError
from ray.rllib.utils.actor_manager import FaultTolerantActorManager
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.dispatch import Dispatch, Flight, RolloutFailed
from cluster.weights import gather
from cluster.worker import RolloutWorker, StaleWorker
from smartrag.config import Cluster
from smartrag.types import Episode, EpisodeFailed, EpisodeRequest

logger = logging.getLogger("smartrag")

TICK_S = 0.1  # between two looks at deadlines and lost workers
PROBE_EVERY_S = 3.0  # between two looks after lost workers
PROBE_WAIT_S = 2.0  # for a lost worker to answer; the others' episodes are not collected meanwhile
SILENCE_S = 10.0  # a worker that let an episode time out and does not answer for so long is restarted
CLOSE_S = 15.0  # for engines to end by themselves
HEADROOM = 16  # calls a worker takes beside its episodes: pings, weight pushes, episodes given up on


class RolloutPool:
    """Implements `Rollout` over Ray actors of `worker` (a RolloutWorker class), each built with `args`.

    Each episode is a call of its own to a healthy worker. Lost workers are restarted by Ray; before one gets episodes
    again `on_restored` is called with the numbers of those that came back: set it to bring them the current weights.
    While the learner is at work there are none to bring, and they wait for the next push.
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
        self._learning = False  # the learner is, so its weights are on their way from one version to the next
        self._suspects: dict[int, float] = {}  # when one of its episodes timed out, if it has finished none since
        self._probe_at = 0.0
        self._alive_at = time.monotonic()
        self._wait_until_ready()

    def __call__(self, requests: Sequence[EpisodeRequest]) -> Generator[Episode | None]:
        """Every episode exactly once, as they finish; None where none has for a moment.

        Raises RolloutFailed when one failed `cluster.episode_attempts` times or no worker comes back, PoisonQuestion
        when one cost `cluster.episode_losses` workers; what else a worker raises is a bug and comes through as it is.
        """
        cluster = self._cluster
        dispatch = Dispatch(
            requests,
            concurrency=cluster.engine.concurrency,
            attempts=cluster.episode_attempts,
            losses=cluster.episode_losses,
            patience_s=cluster.call_timeout_s,
        )
        flights: dict[ray.ObjectRef, Flight] = {}
        try:
            while not dispatch.done:
                self._restore()
                handles, now = self._manager.actors(), time.monotonic()
                for flight in dispatch.departures(self._manager.healthy_actor_ids(), now):
                    call = handles[flight.worker].run_episode.remote(flight.request, self._trusted[flight.worker])
                    flights[call] = flight
                landed = _landed(flights)
                for ref in landed:
                    if (episode := self._result(ref, flights.pop(ref), dispatch)) is not None:
                        yield episode
                if not landed:
                    yield None
                self._look_after({flight.worker for flight in dispatch.overdue(time.monotonic())})
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

    def revive(self, patience_s: float) -> int:
        """How many workers answer within `patience_s` seconds; those that keep silent are started again. For who asks
        the workers himself; one that Ray is starting answers with an error at once."""
        handles: list[Any] = list(self.handles().values())
        asked = {handle.ping.remote(): handle for handle in handles}
        answered, silent = ray.wait(list(asked), num_returns=len(asked), timeout=patience_s)
        for ref in silent:
            ray.kill(asked[ref], no_restart=False)
        alive = 0
        for ref in answered:
            with suppress(RayError):
                ray.get(ref)
                alive += 1
        return alive

    def rest(self) -> None:
        """The learner is about to work. Engines that share GPUs with it give them up; the next push wakes them."""
        self._learning = True
        if not self._cluster.colocated:
            return
        refs = [handle.on_engine.remote("sleep") for handle in self.handles().values()]
        ray.get(refs, timeout=self._cluster.call_timeout_s)

    def pushed(self) -> None:
        """The weights that the learner came to are out."""
        self._learning = False

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

    def _result(self, ref: ray.ObjectRef, flight: Flight, dispatch: Dispatch) -> Episode | None:
        """The episode, if this flight is the first to bring it."""
        try:
            episode = ray.get(ref)
        except EpisodeFailed as error:
            dispatch.failed(flight, error.cause if isinstance(error, RayTaskError) else error)
        except StaleWorker:
            self.lost(flight.worker)
            dispatch.refused(flight)
        except RayTaskError:
            raise
        except RayError as error:  # the worker, or its node, is gone
            self.lost(flight.worker)
            dispatch.lost(flight, error)
        else:
            self._suspects.pop(flight.worker, None)
            return episode if dispatch.landed(flight) else None
        return None

    def _look_after(self, late: Iterable[int]) -> None:
        """Workers one of whose episodes has just become late are to be asked; the second time they are restarted."""
        for worker in late:
            self._manager.set_actor_state(worker, False)
            if worker in self._suspects:
                self._restart(worker)
            else:
                self._suspects[worker] = time.monotonic()

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
        if self._learning and fresh:  # they live, and wait for the next push
            self._alive_at = time.monotonic()
            names = {worker: name for worker, name in names.items() if worker not in fresh}
            fresh = []
        for worker, name in names.items():
            self._trusted[worker] = name
            self._manager.set_actor_state(worker, True)
        if fresh and self.on_restored is not None:
            self.on_restored(fresh)  # a weight push; it calls `lost` for those it did not reach

    def _restart(self, worker: int) -> None:
        del self._suspects[worker]
        logger.warning(
            "rollout worker %d does not answer and is started again; its engine's stacks are in worker-*.err of Ray's "
            "logs on its node",
            worker,
        )
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


def _landed(flights: Mapping[ray.ObjectRef, Flight]) -> list[ray.ObjectRef]:
    """Calls that have ended; waits a moment for the first."""
    if not flights:
        time.sleep(TICK_S)
        return []
    refs = list(flights)
    first, _ = ray.wait(refs, timeout=TICK_S)
    return ray.wait(refs, num_returns=len(refs), timeout=0)[0] if first else []


def _resources() -> str:
    return f"the cluster has {ray.cluster_resources()}, of which {ray.available_resources()} are free"
