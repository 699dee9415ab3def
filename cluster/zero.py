"""DeepSpeed: how ranks join, a model under ZeRO, a frozen one, and full parameters wherever they are split.

Imported only in learner ranks. DeepSpeed itself is imported after `join` has set the environment that it reads.
"""

import ipaddress
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from typing import Any

import psutil
import torch
import torch.distributed as dist
from torch import Tensor, nn

from cluster.disk import Disk
from cluster.meeting import meet
from smartrag import adapters
from smartrag.choices import Precision
from smartrag.config import LearnerGroup
from smartrag.ranks import Ranks

_TAG = "zero"  # DeepSpeed's folder inside a saved engine's
_GATHERED_BYTES = 256 << 20  # of ZeRO-3 parameters made whole at a time


def join(rank: int, count: int, host: str, port: int, *, gpu: bool, node_ip: str, timeout_s: float) -> Ranks:
    """Joins the process group of the learner; blocks until all ranks have."""
    place = {"RANK": rank, "WORLD_SIZE": count, "LOCAL_RANK": 0, "LOCAL_SIZE": 1}
    os.environ |= {name: str(x) for name, x in place.items()}
    os.environ |= {"MASTER_ADDR": host, "MASTER_PORT": str(port), "DS_ACCELERATOR": "cuda" if gpu else "cpu"}
    os.environ["GLOO_SOCKET_IFNAME"] = _interface(node_ip)
    import deepspeed
    import deepspeed.ops

    # Its shared-memory collectives would be compiled here: a minute, a compiler, and a lock that a killed build leaves.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend, patience = "nccl" if gpu else "gloo", timedelta(seconds=timeout_s)
    store = meet(host, port, rank=rank, count=count, timeout_s=timeout_s)
    dist.init_process_group(backend, store=store, rank=rank, world_size=count, timeout=patience)
    deepspeed.init_distributed(backend, auto_mpi_discovery=False, verbose=False)  # finds the group there

    def all_reduce_sum(x: Tensor) -> Tensor:
        dist.all_reduce(x)
        return x

    return Ranks(rank, count, torch.device("cuda" if gpu else "cpu"), all_reduce_sum)


def _interface(ip: str) -> str:
    """Name of the network interface with this address. gloo would guess by the host name, which may mean anything."""
    wanted = "127.0.0.1" if ipaddress.ip_address(ip).is_loopback else ip
    for name, addresses in psutil.net_if_addrs().items():
        if any(a.address == wanted for a in addresses):
            return name
    raise RuntimeError(f"no network interface of this node has its Ray address {ip}")


def _settings(group: LearnerGroup, precision: Precision) -> dict[str, Any]:
    bf16 = precision is Precision.bfloat16
    ours: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,  # of no effect: micro-batches and their number are the caller's
        "gradient_accumulation_steps": 1,
        "gradient_clipping": group.max_grad_norm,
        "zero_optimization": {"stage": group.zero_stage},
        "zero_allow_untested_optimizer": True,
        "bf16": {"enabled": bf16, "check_grad_overflow": bf16},
    }
    if bf16 and group.zero_stage:
        ours["data_types"] = {"grad_accum_dtype": "fp32"}
    return _merged(ours, group.deepspeed)


def _merged(ours: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    both = {name: _merged(ours[name], x) for name, x in over.items() if isinstance(ours.get(name), dict)}
    return ours | over | both


def whole(params: Sequence[nn.Parameter], *, write: bool = False) -> AbstractContextManager[Any]:
    """Within it, ZeRO-3 parameters are complete; with `write`, what rank 0 writes to them reaches every rank.

    A collective. Does nothing to parameters that are not split.
    """
    if not any(hasattr(p, "ds_id") for p in params):
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(list(params), modifier_rank=0 if write else None)


def groups(params: Sequence[nn.Parameter]) -> Iterator[Sequence[int]]:
    """Indices of `params`, in order, cut so that a group's parameters can be whole at the same time."""
    group: list[int] = []
    size = 0
    for i, p in enumerate(params):
        bytes_ = getattr(p, "ds_numel", p.numel()) * p.element_size()
        if group and size + bytes_ > _GATHERED_BYTES:
            yield group
            group, size = [], 0
        group.append(i)
        size += bytes_
    yield group


def named_tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every parameter once (tied ones under their first name), whole, adapters merged into what they adapt.

    All ranks must run it to its end.
    """
    parts = adapters.parts(module)
    for group in groups([part.weight for part in parts]):
        with whole([p for i in group for p in parts[i].parameters]):
            for i in group:
                yield parts[i].name, parts[i].merged()


def metadata(module: nn.Module) -> list[tuple[str, str, tuple[int, ...]]]:
    """(name, type, shape) of each tensor that `named_tensors` gives, in its order."""
    named = [(part.name, part.weight) for part in adapters.parts(module)]
    return [(name, str(p.dtype).removeprefix("torch."), tuple(getattr(p, "ds_shape", p.shape))) for name, p in named]


@torch.no_grad()
def copy_parameters(source: Sequence[nn.Parameter] | Sequence[Tensor], target: Sequence[nn.Parameter]) -> None:
    """target <- source, parameter by parameter; either side may be split. A collective."""
    for group in groups(target):
        theirs, mine = [source[i] for i in group], [target[i] for i in group]
        with whole([p for p in theirs if isinstance(p, nn.Parameter)]), whole(mine, write=True):
            for x, p in zip(theirs, mine, strict=True):
                p.data.copy_(x)


class AdamW(torch.optim.AdamW):
    """torch's own (DeepSpeed's would be compiled at start), but a group of rate 0 is left as it is, moments and count
    of steps included: a step without it is not one in which its gradient was 0."""

    def step(self, closure: Any = None) -> Any:
        groups = self.param_groups
        self.param_groups = [group for group in groups if group["lr"] > 0]
        try:
            return super().step(closure)
        finally:
            self.param_groups = groups


class ZeroEngine:
    """A module under ZeRO with AdamW; a `smartrag.ranks.Engine`.

    `parts`: which of its modules are trained, by the name of their learning rate. `disk`: where what is saved goes.
    """

    def __init__(
        self,
        module: nn.Module,
        parts: Mapping[str, nn.Module],
        group: LearnerGroup,
        precision: Precision,
        disk: Disk,
    ):
        import deepspeed

        from cluster.snapshot import Snapshot

        self.module = module
        self._stage = group.zero_stage
        self._adam = AdamW(
            [
                {"params": [p for p in part.parameters() if p.requires_grad], "name": name}
                for name, part in parts.items()
            ],
            lr=0.0,  # until they are set
            betas=(0.9, group.beta2),
            weight_decay=group.weight_decay,
            fused=group.gpus > 0 or None,
        )
        self._engine, *_ = deepspeed.initialize(
            model=module, optimizer=self._adam, config=_settings(group, precision), dist_init_required=False
        )
        self._engine.checkpoint_engine = Snapshot(self._engine._config, disk)

    def forward(self, *inputs: Any) -> Any:
        return self._engine(*inputs)

    def backward(self, loss: Tensor, last: bool) -> None:
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(loss)

    def step(self) -> float:
        """See `Engine.step`. ZeRO skips a step of non-finite norm itself; stage 0 (data parallelism) does not."""
        norm = float("nan")
        if self._stage == 0:
            norm = float(nn.utils.get_total_norm([p.grad for p in self.module.parameters() if p.grad is not None]))
            if norm != norm or norm == float("inf"):
                self._engine.zero_grad()
                return norm
        self._engine.step()
        return norm if self._stage == 0 else float(self._engine.get_global_grad_norm())

    def set_learning_rates(self, rates: Mapping[str, float]) -> None:
        """By name of a part. Nothing is trained before they are set; a part of rate 0 stays as it is."""
        for group in self._adam.param_groups:
            group["lr"] = rates[group["name"]]

    def forget_moments(self) -> None:
        """AdamW as if it had never stepped."""
        for state in self._adam.state.values():
            for x in state.values():
                x.zero_()

    @torch.no_grad()
    def fold_adapters(self) -> None:
        """W <- W + (α / r) B A and B <- 0: the adapters move into the frozen weights and start again. A collective."""
        for part in adapters.parts(self.module):
            if part.adapter is not None:
                with whole(part.parameters, write=True):
                    part.weight.copy_(part.merged())
                    part.adapter[1].zero_()
        if hasattr(self._engine.optimizer, "refresh_fp32_params"):  # it steps copies, which still hold the old B
            self._engine.optimizer.refresh_fp32_params()

    @torch.no_grad()
    def forward_without_adapters(self, *inputs: Any) -> Any:
        with adapters.disabled(self.module):
            return self._engine(*inputs)

    def save(self, folder: str) -> None:
        """A collective; `folder` must be one that all ranks share. Written once `disk` says so."""
        self._engine.save_checkpoint(folder, tag=_TAG, save_latest=False)

    def load(self, folder: str) -> None:
        """A collective. Unpickles: call it on verified files only."""
        loaded, _ = self._engine.load_checkpoint(folder, tag=_TAG)
        if loaded is None:
            raise ValueError(f"DeepSpeed found nothing to load in {folder}")


def freeze(module: nn.Module, group: LearnerGroup, precision: Precision, device: torch.device) -> Callable[..., Any]:
    """The forward of a module that is not trained; split over ranks where the trained ones are (ZeRO-3)."""
    module.requires_grad_(False)
    if group.zero_stage < 3:
        return module.to(device)
    import deepspeed

    engine, *_ = deepspeed.initialize(model=module, config=_settings(group, precision), dist_init_required=False)
    return engine
