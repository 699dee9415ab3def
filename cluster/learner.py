"""The learner as the driver sees it: a group of `ranks` processes that answers as one.

LearnerGroup.update(trajectories) -> minibatches -> one share a rank -> LearnerRank.update -> smartrag.update
"""

import itertools
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError, RayError, RayTaskError

from cluster.rank import LearnerRank
from cluster.weights import gather, rendezvous
from smartrag import batch
from smartrag.config import Run
from smartrag.types import Trajectory
from smartrag.update import update_seed

logger = logging.getLogger("smartrag")

STARTS = 3  # of ranks that end at once
RETRY_S = 3.0  # between two of them


class LearnerLost(RuntimeError):
    """A rank died, fell silent or went astray. All ranks have been ended; go on from a checkpoint with a new group."""


class LearnerGroup:
    """All ranks as one `Learner`. `ranks` are the actors, rank 0 first, for `cluster.weights.WeightPush`.

    `path` is the model's folder, the same on every node. `strategies` say where each rank stands; else Ray does.

    Raises LearnerLost when a rank dies or does not answer in time; the group is then ended.
    """

    def __init__(self, run: Run, path: Path, strategies: Sequence[Any] | None = None):
        self.run, self._path, self._strategies = run, path, strategies
        self.ranks: list[ActorHandle] = []
        self._start_by(time.monotonic())

    def restart(self) -> None:
        """New ranks in the seats of the old ones, which end; they know nothing until they have loaded a checkpoint.

        For a while Ray may offer seats on a node that is no more: ranks that end at once are started again, elsewhere
        as soon as Ray has noticed, until `cluster.placement_timeout_s` are over.
        """
        self._start_by(time.monotonic() + self.run.cluster.placement_timeout_s)

    def _start_by(self, deadline: float) -> None:
        """Ranks that end as they start are started again until then, and STARTS times in any case: a library that
        cannot be loaded this once, on one node of many, is no reason to end a run that has waited for its seats."""
        for start in itertools.count(1):
            self.close()
            try:
                return self._start()
            except LearnerLost as error:
                died = isinstance(error.__cause__, RayActorError)
                if not died or (start >= STARTS and time.monotonic() > deadline):
                    raise
                logger.warning("%s; it is started again", error)
            time.sleep(RETRY_S)

    def _start(self) -> None:
        group = self.run.learner
        actor: Any = ray.remote(LearnerRank)
        for rank in range(group.ranks):
            options: dict[str, Any] = {"num_cpus": group.cpus, "num_gpus": group.gpus, "max_restarts": 0}
            if self._strategies is not None:
                options["scheduling_strategy"] = self._strategies[rank]
            self.ranks.append(actor.options(**options).remote(self.run, self._path, rank))
        start_s = self.run.cluster.placement_timeout_s  # imports and loading take longer than any later call
        host, port = self._wait("address", [self.ranks[0].__ray_call__.remote(rendezvous)], start_s)[0]
        self._wait("start", [actor.start.remote(host, port) for actor in self.ranks], start_s)

    def imitate(self, trajectories: Sequence[Trajectory], learning_rate: float) -> dict[str, float]:
        if len(trajectories) < len(self.ranks):
            raise ValueError(f"{len(trajectories)} trajectories cannot be shared by {len(self.ranks)} learner ranks")
        shares = batch.shards(trajectories, len(self.ranks))
        return self._each("imitate", [(share, learning_rate) for share in shares])[0]

    def snapshot_reference(self) -> None:
        self._all("snapshot_reference")

    def update(self, trajectories: Sequence[Trajectory], step: int) -> dict[str, float]:
        """One PPO update; metrics are over all ranks. Minibatches do not depend on the number of ranks, and a rank may
        get nothing of some. There are fewer of them when there are fewer trajectories than that.

        Every `learner.check_every` steps raises LearnerLost when the ranks do not hold the same parameters afterwards.
        """
        if not trajectories:
            raise ValueError("no trajectories to learn from")
        count = min(self.run.algorithm.minibatches, len(trajectories))
        parts = batch.minibatches(trajectories, count, update_seed(self.run.seed, step))
        dealt = [batch.shards(part, len(self.ranks)) for part in parts]
        shares = [([part[rank] for part in dealt], step) for rank in range(len(self.ranks))]
        metrics = self._each("update", shares)[0]
        if (every := self.run.learner.check_every) and (step + 1) % every == 0:
            self._compare(step)
        return metrics

    def save(self, folder: str) -> None:
        self._all("save", folder)

    def load(self, folder: str) -> None:
        self._all("load", folder)

    def export(self, folder: str) -> None:
        self._all("export", folder)

    def written(self, *, wait: bool) -> bool:
        return all(self._all("written", wait))

    def param_hash(self) -> str:
        return self._all("param_hash")[0]

    def prompt_logprobs(self, token_ids: Sequence[int]) -> list[float]:
        return self._all("prompt_logprobs", list(token_ids))[0]

    def check(self) -> None:
        """Raises LearnerLost when a rank does not answer."""
        self._wait("presence", [rank.__ray_ready__.remote() for rank in self.ranks], self.run.cluster.call_timeout_s)

    def _compare(self, step: int) -> None:
        hashes = self._all("trained_hash")
        if len(set(hashes)) > 1:
            self.close()
            told = ", ".join(f"rank {rank}: {found[:12]}" for rank, found in enumerate(hashes))
            raise LearnerLost(
                f"after step {step + 1} the learner's ranks hold different parameters ({told}); a device or its memory "
                "is at fault, if it happens again"
            )

    def close(self) -> None:
        for actor in self.ranks:
            ray.kill(actor)
        self.ranks = []

    def _all(self, method: str, *args: Any) -> list[Any]:
        return self._each(method, [args] * len(self.ranks))

    def _each(self, method: str, args: Sequence[Sequence[Any]]) -> list[Any]:
        if not self.ranks:
            raise LearnerLost(f"{method}: the learner has ended")
        refs = [getattr(actor, method).remote(*a) for actor, a in zip(self.ranks, args, strict=True)]
        return self._wait(method, refs, self.run.cluster.call_timeout_s)

    def _wait(self, what: str, refs: Sequence[ray.ObjectRef], timeout_s: float) -> list[Any]:
        try:
            return gather(f"the learner's {what}", refs, timeout_s)
        except RayError as error:
            self.close()  # ranks that wait for one that failed would wait forever
            cause = error.cause if isinstance(error, RayTaskError) else error
            if isinstance(cause, ValueError):
                raise cause from None
            said = str(cause).strip().partition("\n")[0]  # Ray says more, of no use here
            raise LearnerLost(f"the learner failed in {what}: {type(cause).__name__}: {said}") from error
