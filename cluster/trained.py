"""Trained policies at work: those who ask them (`ask`, `evaluate`) go through the same episodes as training."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.checkpoint import Checkpoints
from cluster.mirror import fetch
from cluster.refusal import REFUSALS, refused
from cluster.system import Inputs, System, inputs
from smartrag.compose import change, load
from smartrag.config import Run
from smartrag.files import is_uri
from smartrag.log import run_and_checkpoint
from smartrag.origin import PACKAGE


@dataclass(frozen=True, slots=True)
class Trained:
    """What answers: the settings, and the weights they are asked under."""

    run: Run
    weights: Path | None  # the policy/ of a checkpoint; None: the model that `run.model` names
    home: Path | None  # the run's folder; None without one


def find(path: str, overrides: Sequence[str]) -> Trained:
    """The newest policy of a run, that of one of its checkpoints, or a model (folder or hub id), under its own settings
    changed by `overrides`. The copy of a run that a URI names is fetched into runs/ first.

    Raises ConfigError; FileNotFoundError when a run's folder holds no checkpoint; Unreadable and Damaged when its files
    are not what the run wrote; what `mirror.fetch` does.
    """
    copied = is_uri(path) and not path.startswith(PACKAGE)
    home, named = run_and_checkpoint(fetch(path, Path(load([]).runs)) if copied else Path(path))
    if (home / "config.yaml").is_file():
        run = change(home / "config.yaml", overrides)
        checkpoint, _ = Checkpoints(home / "checkpoints", run.train.keep).load(named)
        return Trained(run, checkpoint / "policy", home)
    if home.is_dir() and not (home / "config.json").is_file():
        raise FileNotFoundError(f"{path} is neither the folder of a run (no config.yaml) nor a model (no config.json)")
    return Trained(load([*overrides, f"model.path={path}"]), None, None)


def serve(
    path: str,
    overrides: Sequence[str],
    use: Callable[[Trained, Inputs, System], None],
    check: Callable[[Trained], None] = lambda _: None,
) -> int:
    """Starts engines and retrieval with what `find` finds, hands them to `use`, stops them. Returns the exit code.

    `check` is asked before anything is started, and raises BadInput where it should not be.
    """
    try:
        trained = find(path, overrides)
        check(trained)
        found = inputs(trained.run, model=trained.weights)
        system = System(trained.run, found, learn=False).start()
        try:
            use(trained, found, system)
        finally:
            system.close()
    except REFUSALS as error:
        return refused(error)
    return 0
