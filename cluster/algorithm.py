"""The run as an RLlib algorithm: a thin adapter of `smartrag.train.Training`.

It buys what RLlib gives an `Algorithm`: `algorithm.train()`, callbacks, result logging, and Tune on top. RLlib's own
environment runners, modules, learners and checkpoints do not fit language models and are not used.
"""

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.tune import PlacementGroupFactory

from cluster import resume
from cluster.checkpoint import Checkpoints, Damaged
from cluster.learner import LearnerLost
from cluster.mirror import Mirror
from cluster.placement import bundles
from cluster.system import BadInput, System, inputs
from smartrag.compose import as_yaml
from smartrag.config import Run
from smartrag.data.rows import DataError
from smartrag.log import RunFolder, versions
from smartrag.report import page, plot
from smartrag.saving import Saving
from smartrag.tracking import Tracker
from smartrag.train import Training

logger = logging.getLogger("smartrag")


class SmartRAGConfig(AlgorithmConfig):
    """Carries a `Run` as one attribute; RLlib's own settings keep their defaults."""

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__(algo_class=algo_class or SmartRAGPPO)
        self.run: Run | None = None

    def smartrag(self, run: Run) -> "SmartRAGConfig":
        self.run = run
        return self


class SmartRAGPPO(Algorithm):
    """`setup` is a run up to its first PPO step, `step` is one PPO step, `cleanup` leaves nothing behind.

    A driver calls `train` until a result is `done`; so does Tune, whose config names the run: {"run": Run}.
    """

    training: Training
    folder: RunFolder
    _system: System | None = None
    _saving: Saving | None = None
    _mirror: Mirror | None = None  # where `train.mirror` is set
    _furthest = -1  # most steps that were done when the learner was lost
    _restarts = 0  # of the learner since then

    @classmethod
    def get_default_config(cls) -> AlgorithmConfig:
        return SmartRAGConfig()

    @classmethod
    def default_resource_request(cls, config: Any) -> PlacementGroupFactory:
        """What Tune reserves for a trial: nothing for this driver of it, and a bundle for each of its actors."""
        return PlacementGroupFactory([{}, *bundles(config["run"])], strategy="PACK")

    def setup(self, config: AlgorithmConfig) -> None:  # type: ignore[override]  # RLlib itself narrows it so
        """Warm-up and evaluation before PPO, or resume. RLlib's own set-up would build gym environments."""
        assert isinstance(config, SmartRAGConfig)
        assert config.run is not None, "SmartRAGConfig().smartrag(run) names the run"
        self.callbacks, self.env_runner_group, self.offline_data = [], None, None
        self._set_up_metrics()
        run, begun = _begun(config.run)
        try:
            found = inputs(run)
        except BaseException:
            if begun is not None:
                begun.close()
            raise
        self.folder = begun or _new(run)
        store = Checkpoints(self.folder.checkpoints, run.train.keep, self.folder.check_held)
        try:
            if run.train.mirror is not None:
                self._mirror = Mirror(store, self.folder.folder, run.train.mirror, run.name)
            system = self._system = System(run, found).start()
            self.training = Training(
                *(run, found.data, system.rollout, system.learner, system.publish),
                *(self._mirror or store, self.folder),
            )
            self._saving = self.training.saving
            self.folder.track(Tracker(run, asdict(run), self.folder.folder, self.folder.rows()))
            if run.resume is not None:
                self.training.resume(resume.named(run))
                return
            self.training.begin(self.training.lessons(found.prompt, system.retrieval.client()))
        except (DataError, Damaged) as error:  # splits that only a run can tell are empty; a checkpoint, once hashed
            self.cleanup()
            raise BadInput(str(error)) from error
        except BaseException:
            self.cleanup()
            raise

    def step(self) -> dict[str, Any]:
        """One PPO step; when none is left, the run's end: evaluation after PPO, summary.json, pictures, `done`."""
        if not self.training.done:
            return self._train()
        summary = self.training.finish() | {"seconds": dict(self.training.seconds), "versions": versions()}
        self.folder.write("summary.json", json.dumps(summary, indent=2) + "\n")
        plot.curves(self.folder.rows(), summary, self.folder.folder / "curves.png")
        page.write(self.folder.folder)
        self.folder.close(summary)
        if self._mirror is not None:
            self._mirror.settle()
        return {"done": True}

    def _train(self) -> dict[str, Any]:
        """One PPO step. Where the learner is lost in it, the first step that its newest checkpoint lacks."""
        try:
            return self.training.step()
        except LearnerLost as error:
            done, limit = self.training.steps_done, self.training.run.cluster.learner_restarts
            self._restarts = 1 if done > self._furthest else self._restarts + 1
            self._furthest = max(done, self._furthest)
            if self._restarts > limit:
                raise
            logger.warning("%s; a new one goes on from the newest checkpoint (%d of %d)", error, self._restarts, limit)
        self.training.saving.drop()  # new ranks know nothing of what the old ones were writing
        assert self._system is not None
        self._system.restart_learner()
        self.training.resume()
        return self._train()

    def cleanup(self) -> None:
        if self._saving is not None:
            self._saving.close()
        self.folder.close()
        if self._system is not None:
            self._system.close()
            self._system = None
        if self._mirror is not None:
            self._mirror.close()

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """For Tune, a pointer: checkpoints are published by `Training`, whole, verified and shared by all ranks."""
        Path(checkpoint_dir, "run.txt").write_text(str(self.folder.folder))

    def load_checkpoint(self, checkpoint_dir: str) -> None:  # type: ignore[override]
        folder = Path(Path(checkpoint_dir, "run.txt").read_text())
        self.training.store = Checkpoints(folder / "checkpoints", self.training.run.train.keep)
        self.training.resume()


def _begun(run: Run) -> tuple[Run, RunFolder | None]:
    """(the run, the folder of one that is resumed, claimed). Raises what `refused` knows."""
    try:
        run = resume.at_hand(run)
        folder = None if run.resume is None else resume.find(run)
    except ValueError as error:
        raise BadInput(str(error)) from error
    if folder is not None:
        folder.claim()
    return run, folder


def _new(run: Run) -> RunFolder:
    folder = RunFolder.create(run.runs, run.name)
    folder.claim()
    folder.write("config.yaml", as_yaml(run))
    return folder
