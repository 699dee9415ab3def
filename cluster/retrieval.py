"""Retrieval as a service: the pool that starts replicas, keeps them and hands out clients."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayError
from ray.rllib.utils.actor_manager import FaultTolerantActorManager
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.client import RetrievalClient, reason
from cluster.java import HOME_VARIABLE
from cluster.replica import RetrievalReplica
from cluster.searcher import absolute
from smartrag.config import Retriever

_MAX_CONCURRENCY = 8192  # calls one replica holds; Ray queues the rest, pings included


class RetrievalUnavailable(RuntimeError):
    """The retrieval replicas did not start, or do not serve the same index."""


class RetrievalPool:
    """The replicas as Ray actors: started together, restarted by Ray when they die, one index among them all."""

    def __init__(
        self,
        retriever: Retriever,
        place: Path | None,
        *,
        ready_s: float,
        strategies: Sequence[PlacementGroupSchedulingStrategy] = (),
    ) -> None:
        """Start `retriever.replicas` replicas over `place`. `strategies`: where each stands, if it matters.

        Waits at most `ready_s` seconds. Raises RetrievalUnavailable with what is wrong, and leaves nothing running.
        """
        self._retriever = retriever
        variables = {name: os.environ[name] for name in (HOME_VARIABLE,) if name in os.environ}
        options: dict[str, Any] = {
            "num_cpus": retriever.cpus,
            "max_restarts": -1,
            "max_task_retries": 0,  # the client asks again itself, and elsewhere
            "max_concurrency": _MAX_CONCURRENCY,
            "runtime_env": {"env_vars": variables},
        }
        replica = ray.remote(RetrievalReplica)
        read = None if place is None else str(place.expanduser().absolute())  # actors start elsewhere
        handles: list[Any] = []
        for i in range(retriever.replicas):
            where = {"scheduling_strategy": strategies[i]} if strategies else {}
            handles.append(replica.options(**options, **where).remote(absolute(retriever), read))
        self._replicas = FaultTolerantActorManager(handles)
        try:
            self.fingerprint = self._ready(ready_s)
        except BaseException:
            self.close()
            raise

    def _ready(self, ready_s: float) -> str:
        """Wait for every replica; the fingerprint they agree on."""
        handles: list[Any] = self.handles()
        try:
            fingerprints = ray.get([handle.fingerprint.remote() for handle in handles], timeout=ready_s)
        except GetTimeoutError:
            raise RetrievalUnavailable(
                f"{len(handles)} retrieval replicas of {self._retriever.cpus:g} CPUs were not ready within "
                f"{ready_s:g} s; the cluster has {ray.available_resources().get('CPU', 0):g} of "
                f"{ray.cluster_resources().get('CPU', 0):g} CPUs free. Too few: lower retriever.replicas or "
                "retriever.cpus, or add nodes. Enough: they start slowly or die on the way (Ray's log of worker deaths "
                "says which); raise cluster.placement_timeout_s or retriever.heap"
            ) from None
        except RayError as error:
            raise RetrievalUnavailable(f"a retrieval replica did not start: {reason(error)}") from error
        if len(set(fingerprints)) > 1:
            raise RetrievalUnavailable(
                f"the retrieval replicas hold different indexes ({', '.join(sorted(set(fingerprints)))}); "
                "give retriever.index a folder that is the same on every node"
            )
        return fingerprints[0]

    def handles(self) -> list[ActorHandle]:
        """All replicas, lost ones too."""
        return list(self._replicas.actors().values())

    def client(self) -> "RetrievalClient":
        known = self._retriever
        return RetrievalClient(
            self.handles(), timeout_s=known.timeout_s, attempts=known.attempts, remember=known.remember
        )

    def restore(self) -> list[int]:
        """Ping all replicas; the numbers of those that serve. A hung one is killed, and Ray starts it again.

        Waits at most `retriever.timeout_s` seconds. A replica that is starting again answers with an error at once;
        only one that hangs keeps silent.
        """
        everyone = set(self._replicas.actor_ids())
        results: Any = self._replicas.foreach_actor(
            "ping", healthy_only=False, timeout_seconds=self._retriever.timeout_s, mark_healthy=True
        )
        for number in everyone - {result.actor_id for result in results}:
            self._replicas.set_actor_state(number, healthy=False)
            ray.kill(self._replicas.actors()[number], no_restart=False)
        return self._replicas.healthy_actor_ids()

    def stats(self) -> dict[str, float]:
        """Sums over the replicas that answer within `retriever.timeout_s` seconds, and how many those are."""
        results = self._replicas.foreach_actor("stats", timeout_seconds=self._retriever.timeout_s)
        rows = [result.get() for result in results.ignore_errors()]
        total = {name: sum(row[name] for row in rows) for name in ("queries", "batches", "search_s")}
        mean = total["queries"] / total["batches"] if total["batches"] else 0.0
        return {**total, "batch_size": mean, "replicas": float(len(rows))}

    def close(self) -> None:
        for handle in self.handles():
            ray.kill(handle)
        self._replicas.clear()
