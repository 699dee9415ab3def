"""What both ends of a weight push agree on: how tensors are cut into messages, and the gloo group they travel in."""

import math
import os
from collections.abc import Iterator, Sequence
from datetime import timedelta
from itertools import islice

import psutil
import torch
import torch.distributed as dist

from cluster.meeting import meet

JOIN_S = 120.0  # for everybody to come to a new group; a push that fails is begun again

Meta = tuple[str, str, Sequence[int]]  # Hugging Face name, dtype ("float32"), shape


def dtype_of(name: str) -> torch.dtype:
    """ "float32" or "torch.float32" -> torch.float32. Raises ValueError when it is neither."""
    dtype = getattr(torch, name.removeprefix("torch."), None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{name!r} is no torch dtype; weight metadata must say e.g. 'float32'")
    return dtype


def bytes_of(meta: Meta) -> int:
    _, dtype, shape = meta
    return math.prod(shape) * dtype_of(dtype).itemsize


def buckets(metadata: Sequence[Meta], bucket_mib: int) -> list[list[Meta]]:
    """The parameters, in order, in messages of one dtype and at most `bucket_mib` MiB (one tensor may exceed it)."""
    limit = bucket_mib << 20
    found: list[list[Meta]] = []
    room = 0
    for meta in metadata:
        size, dtype = bytes_of(meta), meta[1]
        if not found or size > room or dtype != found[-1][0][1]:
            found.append([])
            room = limit
        found[-1].append(meta)
        room -= size
    return found


def pack(bucket: Sequence[Meta], tensors: Iterator[tuple[str, torch.Tensor]]) -> torch.Tensor:
    """The next `len(bucket)` tensors as one flat CPU tensor. Raises ValueError when they are not as declared."""
    flat = []
    for (name, dtype, shape), (sent, tensor) in zip(bucket, islice(tensors, len(bucket)), strict=True):
        if sent != name or tuple(tensor.shape) != tuple(shape) or tensor.dtype != dtype_of(dtype):
            raise ValueError(
                f"weight metadata declares {name} {dtype} {tuple(shape)}, the learner sends {sent} {tensor.dtype} "
                f"{tuple(tensor.shape)}; weight_metadata() and send_weights() must list the same parameters"
            )
        flat.append(tensor.detach().to("cpu").reshape(-1))
    return torch.cat(flat)


def empty(bucket: Sequence[Meta]) -> torch.Tensor:
    """Room for one bucket."""
    return torch.empty(sum(math.prod(shape) for _, _, shape in bucket), dtype=dtype_of(bucket[0][1]))


def unpack(bucket: Sequence[Meta], flat: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    """The named tensors of a bucket, as views of `flat`."""
    parts = flat.split([math.prod(shape) for _, _, shape in bucket])
    return [(name, part.view(tuple(shape))) for (name, _, shape), part in zip(bucket, parts, strict=True)]


def use_interface_of(ip: str) -> None:
    """Make gloo, NCCL and vLLM in this process talk through the network interface that owns `ip`.

    Left alone they ask what the host's own name resolves to, which may be the loopback. What is already set stays.
    """
    owners = [n for n, addresses in psutil.net_if_addrs().items() if any(a.address == ip for a in addresses)]
    for name in owners[:1]:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
        os.environ.setdefault("NCCL_SOCKET_IFNAME", name)
    os.environ.setdefault("VLLM_HOST_IP", ip)


def gloo_group(host: str, port: int, rank: int, world_size: int, timeout_s: float) -> dist.ProcessGroupGloo:
    """A group of its own, beside whatever torch.distributed runs in this process. Rank 0 opens `port` on `host`.

    Blocks until all have joined. Raises RuntimeError when that takes longer than JOIN_S, and in every later collective
    after `timeout_s`. It is left by dropping the last reference: that
    closes the sockets and frees every peer at once, which `shutdown()` and `abort()` do not.
    """
    store = meet(host, port, rank=rank, count=world_size, timeout_s=min(timeout_s, JOIN_S))
    return dist.ProcessGroupGloo(dist.PrefixStore("weights", store), rank, world_size, timedelta(seconds=timeout_s))


def broadcast(group: dist.ProcessGroupGloo, flat: torch.Tensor) -> None:
    """`flat` of rank 0 goes to everyone, in place. Raises RuntimeError when a peer is gone, or silent too long."""
    options = dist.BroadcastOptions()
    options.rootRank = 0
    group.broadcast([flat.view(torch.uint8)], options).wait()  # type: ignore[attr-defined]
