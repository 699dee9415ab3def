"""Where the parts of a run stand: one placement group holds a bundle for every learner rank, engine and replica.

The group is reserved whole before anything starts, so a run that does not fit says so at once instead of half-starting.
"""

from dataclasses import dataclass

import ray
from ray.util.placement_group import (
    PlacementGroup,
    get_current_placement_group,
    placement_group,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from smartrag.config import Run


class DoesNotFit(RuntimeError):
    """The cluster cannot hold the run."""


@dataclass(frozen=True, slots=True)
class Seats:
    """A placement group and which of its bundles belong to whom."""

    group: PlacementGroup
    ours: bool  # else it is a trial's, and Tune removes it
    learners: range
    engines: range
    replicas: range

    def strategy(self, bundle: int) -> PlacementGroupSchedulingStrategy:
        return PlacementGroupSchedulingStrategy(self.group, placement_group_bundle_index=bundle)

    def release(self) -> None:
        if self.ours:
            remove_placement_group(self.group)


def bundles(run: Run, *, learn: bool = True) -> list[dict[str, float]]:
    """Resources of every actor: learner ranks first (none when not `learn`), then engines, then replicas."""
    learners = [_bundle(run.learner.cpus, run.learner.gpus)] * (run.learner.ranks if learn else 0)
    engines = [_bundle(run.cluster.engine.cpus, run.cluster.engine.gpus)] * run.cluster.engine.workers
    replicas = [_bundle(run.retriever.cpus, 0)] * run.retriever.replicas
    return [*learners, *engines, *replicas]


def reserve(run: Run, *, learn: bool = True) -> Seats:
    """Reserves the bundles. Raises DoesNotFit, with what was asked and what there is, after the bounded wait.

    A trial of Tune stands in a group of these very bundles already (`SmartRAGPPO.default_resource_request`).
    """
    wanted = bundles(run, learn=learn)
    trial = get_current_placement_group()
    group = trial or placement_group(wanted, strategy="PACK", name="smartrag")
    if trial is None and not group.wait(run.cluster.placement_timeout_s):
        remove_placement_group(group)
        raise DoesNotFit(
            f"the run needs {_total(wanted)} in {len(wanted)} bundles; after {run.cluster.placement_timeout_s:.0f} s "
            f"the cluster has {_spell(ray.cluster_resources())}, {_spell(ray.available_resources())} of them free; "
            "lower learner.ranks, cluster.engine.workers or retriever.replicas (or their cpus and gpus), or add nodes"
        )
    ranks = run.learner.ranks if learn else 0
    engines = ranks + run.cluster.engine.workers
    return Seats(group, trial is None, range(ranks), range(ranks, engines), range(engines, len(wanted)))


def _bundle(cpus: float, gpus: float) -> dict[str, float]:
    return {"CPU": cpus, "GPU": gpus} if gpus else {"CPU": cpus}


def _total(wanted: list[dict[str, float]]) -> str:
    return _spell({name: sum(b.get(name, 0) for b in wanted) for name in ("CPU", "GPU")})


def _spell(resources: dict[str, float]) -> str:
    return f"{resources.get('CPU', 0):g} CPUs and {resources.get('GPU', 0):g} GPUs"
