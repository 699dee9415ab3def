"""A weight push against the fewest copies that its bytes need: out of one process and into another, over one wire.

On CPUs that is one message of all bytes through gloo between two processes, without engines, pauses, packing or canary.
"""

from pathlib import Path
from typing import Any

import ray
import torch

from cluster.system import System, inputs
from cluster.weights import rendezvous
from cluster.wire import Meta, broadcast, bytes_of, gloo_group, use_interface_of
from smartrag.choices import WeightBackend
from smartrag.config import Run
from smartrag.experiments.bench import Figure, against, in_turns, median, seconds


def bench(run: Run, path: Path, repeats: int) -> dict[str, Figure]:
    """Seconds of a push of the run's policy to its engines, of its transfer alone, and of the copies."""
    found = inputs(run)
    system = System(run, found).start()
    try:
        metadata: list[Meta] = ray.get(system.learner.ranks[0].weight_metadata.remote())
        size = sum(map(bytes_of, metadata))
        transfers: list[float] = []

        def push() -> float:
            figures = system.publish(0)
            transfers.append(figures["transfer_seconds"])
            return figures["seconds"]

        push()  # forms the group
        transfers.clear()
        if run.cluster.weights is not WeightBackend.gloo:
            (pushed,) = in_turns([push], repeats)
            return _figures(size, pushed, transfers)
        wire = Wire(size)
        pushed, copied = in_turns([push, wire.send], repeats)
        wire.close()
    finally:
        system.close()
    found_figures = _figures(size, pushed, transfers)
    copies = median(copied, "s")
    return found_figures | {
        "copy_seconds": copies,
        "push_vs_copy": against(found_figures["push_seconds"], "copy_seconds", copies),
        "transfer_vs_copy": against(found_figures["transfer_seconds"], "copy_seconds", copies),
    }


def _figures(size: int, pushed: list[float], transfers: list[float]) -> dict[str, Figure]:
    return {
        "push_seconds": median(pushed, "s"),
        "transfer_seconds": median(transfers, "s"),
        "push_rate": median([size / 1e9 / s for s in transfers], "GB/s"),
    }


class Wire:
    """Two processes and `size` bytes that one sends and the other takes."""

    def __init__(self, size: int):
        end: Any = ray.remote(End).options(num_cpus=0)
        self._ends = [end.remote(size), end.remote(size)]
        host, port = ray.get(self._ends[0].__ray_call__.remote(rendezvous))
        ray.get([e.join.remote(host, port, rank) for rank, e in enumerate(self._ends)])
        self.send()

    def send(self) -> float:
        return seconds(lambda: ray.get([e.move.remote() for e in self._ends]))

    def close(self) -> None:
        for end in self._ends:
            ray.kill(end)


class End:
    def __init__(self, size: int):
        torch.set_num_threads(1)
        self._bytes = torch.zeros(size, dtype=torch.uint8)
        self._group: Any = None

    def join(self, host: str, port: int, rank: int) -> None:
        use_interface_of(ray.util.get_node_ip_address())
        self._group = gloo_group(host, port, rank, 2, 60.0)

    def move(self) -> None:
        broadcast(self._group, self._bytes)
