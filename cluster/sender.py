"""The learner's end of a weight push: tensors go out of here, `cluster/weights.py` says when."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray
import torch
from ray.actor import ActorHandle

from cluster import meeting
from cluster.wire import Meta, broadcast, buckets, dtype_of, gloo_group, pack
from smartrag.choices import WeightBackend


class PushFailed(RuntimeError):
    """The weights could not be brought to the engines. They are not serving; the push can be repeated."""


class WeightSender:
    """Lives in a learner rank; rank 0 talks to the engines, the others only keep collectives aligned.

    connect(init_info)              once per set of engines, on every rank, concurrently with the engines' `connect`
    send(named_tensors, bucket_mib) every push, on every rank, concurrently with the engines' `receive`
    """

    def __init__(self, rank: int = 0):
        self._rank = rank
        self._backend: WeightBackend | None = None
        self._metadata: list[Meta] = []
        self._group: Any = None  # gloo: a process group; nccl and ipc: vLLM's trainer engine
        self._replay: _Replay | None = None

    def connect(self, init_info: dict[str, Any]) -> None:
        """Form the group `WeightPush` describes; an older one is left. Blocks until all have joined."""
        self._group = None
        self._backend = WeightBackend(init_info["backend"])
        self._metadata = init_info["metadata"]
        host, port, world, timeout_s = (init_info[key] for key in ("host", "port", "world_size", "timeout_s"))
        if self._backend is WeightBackend.gloo:
            self._group = gloo_group(host, port, 0, world, timeout_s) if self._rank == 0 else None
        else:
            meeting.release(port)  # vLLM opens it
            self._replay = _Replay(self._metadata)
            self._group = _vllm_trainer(init_info, self._rank, self._replay)

    def send(self, named_tensors: Iterator[tuple[str, torch.Tensor]], bucket_mib: int) -> None:
        """Send every tensor of `weight_metadata()`, in its order. Raises PushFailed; the iterator is then still run to
        its end, because other ranks may gather for it."""
        if self._backend is None:
            raise PushFailed("send before connect")
        problem = ""
        try:
            if self._backend is not WeightBackend.gloo:
                assert self._replay is not None
                self._replay.tensors = named_tensors
                self._group.send_weights()
            elif self._rank == 0:
                self._send_gloo(named_tensors, bucket_mib)
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
        if problem:
            self._group = None  # outside the handler, whose traceback would keep the group, and so the engines, waiting
        for _ in named_tensors:
            pass
        if problem:
            raise PushFailed(f"the learner could not send its weights: {problem}")

    def _send_gloo(self, tensors: Iterator[tuple[str, torch.Tensor]], bucket_mib: int) -> None:
        if self._group is None:
            raise PushFailed("the transfer group is gone; connect again")
        for bucket in buckets(self._metadata, bucket_mib):
            broadcast(self._group, pack(bucket, tensors))
        if (extra := next(tensors, None)) is not None:
            raise ValueError(f"{extra[0]} is not in the weight metadata; it must list every parameter that is sent")


class _Replay:
    """vLLM's `WeightSource` over the iterator of the current push."""

    def __init__(self, metadata: Sequence[Meta]):
        self._metadata = metadata
        self.tensors: Iterator[tuple[str, torch.Tensor]] = iter(())

    def metadata(self) -> list[Any]:
        from vllm.distributed.weight_transfer.base import ParamMeta

        return [ParamMeta(name, dtype_of(dtype), tuple(shape)) for name, dtype, shape in self._metadata]

    def __iter__(self) -> Iterator[tuple[str, torch.Tensor]]:
        return self.tensors


@dataclass(frozen=True)
class _Engines:
    """vLLM's `VLLMWeightSyncClient`. The driver already makes these calls, but CUDA IPC's, which carry the handles."""

    handles: Sequence[ActorHandle]
    timeout_s: float

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None: ...

    def start_weight_update(self) -> None: ...

    def update_weights(self, update_info: Any) -> None:
        ray.get([h.on_engine.remote("receive", [update_info]) for h in self.handles], timeout=self.timeout_s)

    def finish_weight_update(self, weight_version: str | None = None) -> None: ...


def _vllm_trainer(init_info: dict[str, Any], rank: int, source: Any) -> Any:
    from vllm.distributed.weight_transfer.factory import WeightTransferTrainerFactory
    from vllm.distributed.weight_transfer.ipc_engine import IPCTrainerInitInfo
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo

    size = init_info["buffer_bytes"]
    info = (
        IPCTrainerInitInfo(rank=rank, packed=True, packed_buffer_size_bytes=size)
        if init_info["backend"] == WeightBackend.ipc
        else NCCLTrainerInitInfo(
            rank=rank,
            master_address=init_info["host"],
            master_port=init_info["port"],
            world_size=init_info["world_size"],
            packed_buffer_size_bytes=size,
        )
    )
    client = _Engines(init_info["engines"], init_info["timeout_s"])
    return WeightTransferTrainerFactory.trainer_init(info, client=client, source=source)
