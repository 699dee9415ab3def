"""The choreography of a weight push over real gloo groups, with engines that only hold tensors. No vLLM."""

import asyncio
import dataclasses
import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import ray
import torch

from cluster.weights import CanaryFailed, PushFailed, WeightPush, WeightSender
from cluster.wire import broadcast, buckets, empty, gloo_group, pack, unpack
from smartrag.compose import load
from smartrag.config import Cluster

pytestmark = pytest.mark.slow

TP = 2  # workers of one engine, each a rank of the transfer group
IDS = list(range(8))


def digest(tensors: dict[str, torch.Tensor], ids: Sequence[int]) -> list[float]:
    """Stands in for a forward pass: any weight shows in every number."""
    total = sum(float((t.double() * torch.arange(1, t.numel() + 1).view(t.shape)).sum()) for t in tensors.values())
    return [-total / (i + 1) for i in ids[1:]]


class TensorEngine:
    """Takes a push as vLLM's gloo back end does, with TP ranks in threads."""

    def __init__(self) -> None:
        self.name = f"{os.getpid()}-{time.monotonic_ns()}"
        self.log: list[str] = []
        self.fault = ""
        self.tensors: list[dict[str, torch.Tensor]] = [{} for _ in range(TP)]
        self.groups: list[Any] = []

    async def identity(self) -> str:
        return self.name

    async def plan(self, fault: str) -> None:
        self.fault = fault

    async def seen(self) -> list[str]:
        return self.log

    async def on_engine(self, verb: str, *args: Any) -> Any:
        self.log.append(verb)
        return await asyncio.to_thread(getattr(self, f"_{verb}", lambda *_: None), *args)

    def _connect(self, info: dict[str, Any]) -> None:
        def join(rank: int) -> Any:
            return gloo_group(
                info["host"], info["port"], info["rank_offset"] + rank, info["world_size"], info["timeout_s"]
            )

        self.groups = []
        with ThreadPoolExecutor(TP) as threads:
            self.groups = list(threads.map(join, range(TP)))

    def _receive(self, messages: list[dict[str, Any]]) -> None:
        if self.fault == "die":
            os._exit(1)
        refuse, self.fault = self.fault == "refuse", self.fault.removeprefix("refuse")

        def take(rank: int) -> None:
            for i, message in enumerate(messages):
                if refuse and i == 1:
                    raise RuntimeError("planted")
                flat = empty(message["bucket"])
                broadcast(self.groups[rank], flat)
                self.tensors[rank].update(unpack(message["bucket"], flat))

        with ThreadPoolExecutor(TP) as threads:
            list(threads.map(take, range(TP)))

    def _prompt_logprobs(self, ids: Sequence[int]) -> list[float]:
        answers = [digest(tensors, ids) for tensors in self.tensors]
        assert answers[0] == answers[1]
        return [x + (self.fault == "drift") for x in answers[0]]

    def _disconnect(self) -> None:
        self.groups = []


class TensorLearner:
    def __init__(self) -> None:
        self.sender = WeightSender()
        self.round = 0
        self.fault = ""
        self.drained = False

    def tensors(self) -> dict[str, torch.Tensor]:
        shapes = {"a": (300, 1000), "b": (7,), "c": (500, 500), "d": (3, 3)}
        dtypes = {"b": torch.bfloat16}
        generator = torch.Generator().manual_seed(self.round)
        return {n: torch.randn(s, generator=generator).to(dtypes.get(n, torch.float32)) for n, s in shapes.items()}

    def plan(self, fault: str) -> None:
        self.fault = fault

    def was_drained(self) -> bool:
        return self.drained

    def weight_metadata(self) -> list[tuple[str, str, tuple[int, ...]]]:
        return [(n, str(t.dtype).removeprefix("torch."), tuple(t.shape)) for n, t in self.tensors().items()]

    def connect_weights(self, init_info: dict[str, Any]) -> None:
        self.sender.connect(init_info)

    def send_weights(self, bucket_mib: int) -> None:
        self.round += 1
        self.sender.send(self._stream(), bucket_mib)

    def _stream(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, tensor in self.tensors().items():
            yield name, tensor[:1] if self.fault == "shape" and name == "c" else tensor
        self.drained = True

    def prompt_logprobs(self, token_ids: Sequence[int]) -> list[float]:
        return digest(self.tensors(), token_ids)


class Members:
    """The pool's part."""

    def __init__(self, count: int):
        make = ray.remote(TensorEngine).options(num_cpus=0.1, max_restarts=-1, max_task_retries=0, max_concurrency=8)
        self.actors = {i: make.remote() for i in range(count)}
        self.reported: list[int] = []

    def handles(self) -> dict[int, Any]:
        return self.actors

    def lost(self, worker: int) -> None:
        self.reported.append(worker)


@dataclasses.dataclass
class Scene:
    members: Members
    learner: Any
    push: WeightPush

    def seen(self, worker: int) -> list[str]:
        return ray.get(self.members.actors[worker].seen.remote())


def cluster() -> Cluster:
    made = load([]).cluster
    engine = dataclasses.replace(made.engine, tensor_parallel=TP)
    return dataclasses.replace(made, engine=engine, bucket_mib=1, call_timeout_s=20.0, canary_tolerance=1e-6)


@pytest.fixture
def scene(ray_session: None) -> Iterator[Scene]:
    members = Members(2)
    learner = ray.remote(TensorLearner).options(num_cpus=0.1).remote()
    ray.get([actor.identity.remote() for actor in members.actors.values()])
    yield Scene(members, learner, WeightPush(members, [learner], cluster(), IDS))
    for actor in (*members.actors.values(), learner):
        ray.kill(actor)


ROUND = ["pause", "start_update", "receive", "finish_update", "prompt_logprobs", "resume"]


def test_two_engines_get_every_weight_in_the_documented_order(scene: Scene) -> None:
    report = scene.push(1)
    assert report["canary_gap"] == 0
    assert report["engines"] == 2
    assert 0 < report["transfer_seconds"] < report["seconds"]
    scene.push(2)
    assert scene.seen(0) == scene.seen(1) == ["connect", *ROUND, *ROUND]  # connected once


@pytest.mark.fault("V1", "an engine restarts between two pushes")
def test_a_restarted_engine_is_taken_into_a_new_group(scene: Scene) -> None:
    scene.push(1)
    ray.kill(scene.members.actors[1], no_restart=False)
    deadline = time.monotonic() + 60
    while scene.push(2)["engines"] < 2:  # while it is away the push goes on without it, and says so
        assert 1 in scene.members.reported
        assert time.monotonic() < deadline
        time.sleep(1)
    seen = scene.seen(1)
    if seen[0] == "disconnect":  # it was back before the push that missed it was repeated
        del seen[0]
    assert seen == ["connect", *ROUND]


@pytest.mark.fault("V2", "an engine dies or refuses in a weight push")
@pytest.mark.parametrize("fault", ["die", "refuse"])
def test_a_push_that_breaks_off_is_repeated(scene: Scene, fault: str) -> None:
    ray.get(scene.members.actors[1].plan.remote(fault))
    start = time.monotonic()
    report = scene.push(1)
    assert time.monotonic() - start < 15  # nobody waited for a timeout
    assert report["canary_gap"] == 0
    if fault == "die":
        assert 1 in scene.members.reported
    else:
        assert report["engines"] == 2
        assert "disconnect" in scene.seen(0)
        assert "disconnect" in scene.seen(1)


@pytest.mark.fault("V4", "an engine holds other weights than the learner")
def test_a_drifted_engine_is_named_and_nobody_serves(scene: Scene) -> None:
    ray.get(scene.members.actors[1].plan.remote("drift"))
    with pytest.raises(CanaryFailed, match=r"engine 1 does not hold.*gap 1 is above cluster.canary_tolerance=1e-06"):
        scene.push(1)
    assert scene.seen(0)[-1] == scene.seen(1)[-1] == "void"
    assert "resume" not in scene.seen(0) + scene.seen(1)


def test_weights_that_are_not_as_declared_fail_at_once_with_their_name(scene: Scene) -> None:
    ray.get(scene.learner.plan.remote("shape"))
    start = time.monotonic()
    with pytest.raises(PushFailed, match=r"declares c float32 \(500, 500\), the learner sends c .*\(1, 500\)"):
        scene.push(1)
    assert time.monotonic() - start < 30
    assert ray.get(scene.learner.was_drained.remote())  # other ranks gather for every tensor
    ray.get(scene.learner.plan.remote(""))
    assert scene.push(2)["engines"] == 2


def test_buckets_hold_one_dtype_and_keep_the_order() -> None:
    metadata = [("a", "float32", (400, 400)), ("b", "float32", (10,)), ("c", "bfloat16", (3, 3)), ("d", "float32", ())]
    made = buckets(metadata, 1)
    assert [[name for name, _, _ in bucket] for bucket in made] == [["a", "b"], ["c"], ["d"]]
    assert [[name for name, _, _ in b] for b in buckets([("big", "float32", (1 << 20,))] * 2, 1)] == [["big"], ["big"]]
    tensors = {name: torch.randn(shape).to(getattr(torch, dtype)) for name, dtype, shape in metadata}
    stream = iter(tensors.items())
    for bucket in made:
        for name, tensor in unpack(bucket, pack(bucket, stream)):
            assert torch.equal(tensor, tensors[name])
