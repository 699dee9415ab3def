"""A weight push as the driver conducts it. What leaves the learner is in `cluster/sender.py`."""

import time
from collections.abc import Sequence
from typing import Any, Protocol

import ray
import torch
from ray.actor import ActorHandle
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from cluster import meeting
from cluster.sender import PushFailed, WeightSender
from cluster.wire import Meta, buckets, bytes_of
from smartrag.choices import WeightBackend
from smartrag.config import Cluster

__all__ = ["CanaryFailed", "PushFailed", "WeightPush", "WeightSender"]

ATTEMPTS = 3  # of one push; an engine that is gone is left out of the next
REACH_S = 30.0  # an engine that does not say who it is within this is left out of the push
GRACE_S = 15.0  # the peers' own timeouts come first: they know better what went wrong


class CanaryFailed(RuntimeError):
    """An engine's log-probs are not the learner's: it does not hold the learner's weights. It is not serving."""


class Engines(Protocol):
    """Who is to be pushed to; `RolloutPool` is one. Handles are actors with `identity` and `on_engine`."""

    def handles(self) -> dict[int, ActorHandle]: ...

    def lost(self, worker: int) -> None:
        """This engine took no part in a push: it must not be given work before it has."""


class WeightPush:
    """Implements `Publish`.

    for every engine:  pause (generations that have begun are kept), start_update
    at the same time:  learner.send_weights, and the canary's log-probs  |  every engine receives
    for every engine:  finish_update(version): caches are reset, kept generations go on, nothing is handed out yet
    canary:            log-probs of a fixed prompt, every engine's against the learner's own
    for every engine:  resume — or void, and CanaryFailed

    `learners` are the actors of all ranks, rank 0 first, with weight_metadata, connect_weights, send_weights and
    prompt_logprobs. The transfer group is made anew, on a fresh port, when the set of engine processes has changed.
    """

    def __init__(self, engines: Engines, learners: Sequence[ActorHandle], cluster: Cluster, canary_ids: Sequence[int]):
        self._engines, self._learners, self._cluster = engines, learners, cluster
        self._canary_ids = list(canary_ids)
        self._metadata: list[Meta] = []
        self._members: dict[int, str] = {}  # of the transfer group: incarnation of each engine
        self._sending: list[ray.ObjectRef] = []  # of the transfer that runs, or ran last

    def __call__(self, version: int) -> dict[str, float]:
        """Push the learner's weights as `version`. Returns seconds, the largest canary gap (nats), and engines reached.

        Raises CanaryFailed; PushFailed when it failed `ATTEMPTS` times or no engine is left.
        """
        problems: list[str] = []
        for _ in range(ATTEMPTS):
            members = self._reach()
            try:
                return self._push(members, version)
            except RayError as error:
                self._disconnect(members)
                problems = self._complaints() or [_brief(error)]
        raise PushFailed(
            f"version {version} could not be pushed in {ATTEMPTS} attempts; the last: {'; '.join(problems)}"
        )

    def _push(self, members: dict[int, str], version: int) -> dict[str, float]:
        start = time.perf_counter()
        if members != self._members:
            self._connect(members)
        self._each("pause")
        self._each("start_update")
        sending = time.perf_counter()
        own = self._transfer()
        sent = time.perf_counter()
        self._each("finish_update", version)
        gap = self._canary(own)
        self._each("resume")
        end = time.perf_counter()
        return {
            "seconds": end - start,
            "transfer_seconds": sent - sending,
            "canary_gap": gap,
            "engines": len(members),
        }

    def _reach(self) -> dict[int, str]:
        """Incarnations of the engines that answer; the others are reported lost. Waits if all are away."""
        patience_s = self._cluster.placement_timeout_s
        deadline = time.monotonic() + patience_s
        while not (members := self._answering()):
            if time.monotonic() > deadline:
                raise PushFailed(
                    f"no engine answered within cluster.placement_timeout_s={patience_s:g}; see their logs"
                )
            time.sleep(1.0)
        return members

    def _answering(self) -> dict[int, str]:
        refs: dict[int, Any] = {worker: handle.identity.remote() for worker, handle in self._engines.handles().items()}
        ray.wait(list(refs.values()), num_returns=len(refs), timeout=REACH_S)
        members: dict[int, str] = {}
        for worker, ref in refs.items():
            try:
                members[worker] = ray.get(ref, timeout=0.1)
            except RayError:
                self._engines.lost(worker)
        return members

    def _connect(self, members: dict[int, str]) -> None:
        self._members = {}
        timeout_s = self._cluster.call_timeout_s
        first = self._learners[0]
        self._metadata = gather("weight metadata", [first.weight_metadata.remote()], timeout_s)[0]
        host, port = gather("a free port", [first.__ray_call__.remote(rendezvous)], timeout_s)[0]
        handles = self._engines.handles()
        tp = self._cluster.engine.tensor_parallel
        largest = max(bytes_of(meta) for meta in self._metadata)
        common = {
            "backend": self._cluster.weights.value,
            "host": host,
            "port": port,
            "world_size": 1 + tp * len(members),
            "timeout_s": timeout_s,
            "buffer_bytes": max(self._cluster.bucket_mib << 20, largest),
        }
        ours = common | {
            "metadata": self._metadata,
            "engines": [handles[w] for w in members] if self._cluster.weights is WeightBackend.ipc else [],
        }
        refs = [learner.connect_weights.remote(ours) for learner in self._learners]
        for i, worker in enumerate(members):  # every engine has ranks of its own; one offset for all would collide
            refs.append(handles[worker].on_engine.remote("connect", _engine_init(common, rank_offset=1 + i * tp)))
        gather("the transfer group", refs, timeout_s + GRACE_S)
        self._members = members

    def _transfer(self) -> list[Any]:
        """Returns what will be the learners' log-probs of the canary, which each sets about as soon as it has sent."""
        refs: list[Any] = [learner.send_weights.remote(self._cluster.bucket_mib) for learner in self._learners]
        if self._cluster.weights is not WeightBackend.ipc:
            messages = _messages(self._cluster, self._metadata)
            handles = self._engines.handles()
            refs += [handles[worker].on_engine.remote("receive", messages) for worker in self._members]
        self._sending = refs
        own: list[Any] = [learner.prompt_logprobs.remote(self._canary_ids) for learner in self._learners]
        gather("the transfer", refs, self._cluster.call_timeout_s + GRACE_S)
        return own

    def _canary(self, own: Sequence[Any]) -> float:
        """The largest gap between an engine and the learner, whose answers are `own`."""
        handles = self._engines.handles()
        refs = [*own]
        refs += [handles[worker].on_engine.remote("prompt_logprobs", self._canary_ids) for worker in self._members]
        answers = gather("the canary", refs, self._cluster.call_timeout_s)
        learner = torch.tensor(answers[0], dtype=torch.float64)
        worst = 0.0
        for worker, answer in zip(self._members, answers[len(self._learners) :], strict=True):
            engine = torch.tensor(answer, dtype=torch.float64)
            if engine.shape != learner.shape:
                raise ValueError(f"canary: {len(learner)} log-probs of the learner, {len(engine)} of engine {worker}")
            gaps = (engine - learner).abs().nan_to_num(nan=torch.inf)
            gap, at = float(gaps.max()), int(gaps.argmax())
            if gap > self._cluster.canary_tolerance:
                self._each("void")
                raise CanaryFailed(
                    f"engine {worker} does not hold the learner's weights: log-prob of canary token {at + 1} is "
                    f"{engine[at]:.4f} there and {learner[at]:.4f} in the learner; gap {gap:.2g} is above "
                    f"cluster.canary_tolerance={self._cluster.canary_tolerance:g}"
                )
            worst = max(worst, gap)
        return worst

    def _disconnect(self, members: dict[int, str]) -> None:
        """Tear the transfer group down after a failure; an engine that cannot leave it is restarted."""
        self._members = {}
        handles = self._engines.handles()
        refs: dict[int, Any] = {worker: handles[worker].on_engine.remote("disconnect") for worker in members}
        ray.wait(list(refs.values()), num_returns=len(refs), timeout=self._cluster.call_timeout_s + GRACE_S)
        for worker, ref in refs.items():
            try:
                ray.get(ref, timeout=0.1)
            except (GetTimeoutError, RayTaskError):
                self._engines.lost(worker)
                ray.kill(handles[worker], no_restart=False)
            except RayError:
                self._engines.lost(worker)

    def _complaints(self) -> list[str]:
        """What went wrong in the transfer, everywhere: the first error to be seen is seldom the one to mend."""
        refs, self._sending = self._sending, []
        ended, _ = ray.wait(refs, num_returns=len(refs), timeout=GRACE_S) if refs else ([], [])
        found = []
        for ref in refs:
            try:
                if ref in ended:
                    ray.get(ref)
            except RayError as error:
                found.append(_brief(error))
        return found

    def _each(self, verb: str, *args: Any) -> None:
        handles = self._engines.handles()
        refs = [handles[worker].on_engine.remote(verb, *args) for worker in self._members]
        gather(verb, refs, self._cluster.call_timeout_s)


def _engine_init(common: dict[str, Any], rank_offset: int) -> dict[str, Any]:
    """What an engine's back end wants to know to join: fields of GlooInit, or of vLLM's NCCL and IPC init infos."""
    host, port, world_size, size = (common[key] for key in ("host", "port", "world_size", "buffer_bytes"))
    where = {"rank_offset": rank_offset, "world_size": world_size}
    match WeightBackend(common["backend"]):
        case WeightBackend.gloo:
            return where | {"host": host, "port": port, "timeout_s": common["timeout_s"]}
        case WeightBackend.nccl:
            packed = {"packed": True, "packed_buffer_size_bytes": size}
            return where | {"master_address": host, "master_port": port} | packed
        case WeightBackend.ipc:
            return {"packed": True}


def _messages(cluster: Cluster, metadata: Sequence[Meta]) -> list[dict[str, Any]]:
    """The messages of one push as the engines' back end is told of them (vLLM packs NCCL's buckets by itself)."""
    if cluster.weights is WeightBackend.gloo:
        return [{"bucket": bucket} for bucket in buckets(metadata, cluster.bucket_mib)]
    names, dtypes, shapes = zip(*metadata, strict=True)
    return [
        {
            "names": list(names),
            "dtype_names": [name.removeprefix("torch.") for name in dtypes],
            "shapes": [list(shape) for shape in shapes],
        }
    ]


def gather(what: str, refs: Sequence[ray.ObjectRef], timeout_s: float) -> list[Any]:
    """Results in order. Raises the first error that happens (not the first in order), or GetTimeoutError."""
    deadline = time.monotonic() + timeout_s
    pending = list(refs)
    while pending:
        ready, pending = ray.wait(pending, timeout=max(0.0, deadline - time.monotonic()))
        if not ready:
            raise GetTimeoutError(f"{what}: {len(pending)} of {len(refs)} did not answer within {timeout_s:g} s")
        ray.get(ready)
    return ray.get(list(refs))


def rendezvous(_actor: Any) -> tuple[str, int]:
    """Where others can meet an actor: address of its node, and a port that it holds. For `actor.__ray_call__`."""
    host = ray.util.get_node_ip_address()
    return host, meeting.hold(host)


def _brief(error: Exception) -> str:
    cause = error.cause if isinstance(error, RayTaskError) else error
    return f"{type(cause).__name__}: {cause}"
