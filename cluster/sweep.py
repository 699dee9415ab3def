"""A sweep from its warm-ups to its frontier, with Tune. All of it is in folders, so one that was stopped goes on.

runs/<name>/sweeps/<id>/           latest -> <id>
    config.yaml                    the run that the trials vary
    seed<S>/warm-up/<run>/         one warm-up a seed, from which all trials start
    seed<S>/<setting>_<value>/<run>/  run folders, one a trial
                                   stopped.json in those that ASHA stopped
    frontier.json frontier.png     what came of it
    tune/                          Tune's own; error.txt of trials that failed

Tune runs the warm-ups, then the trials, as many at a time as the cluster holds. What is done and what is begun, the run
folders say: `Tuner.restore` would bring back Tune's own memory of it, which can only be older than they are. Nor does
ASHA remember, in a sweep that is resumed, trials that ended before.

Exit codes are those of `driver.py`, 7 where a warm-up or a trial failed and 130 where it was interrupted.
"""

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ray import tune
from ray.tune import Callback
from ray.tune.schedulers import ASHAScheduler
from tqdm import tqdm

from cluster.algorithm import SmartRAGPPO
from cluster.home import find
from cluster.placement import reserve
from cluster.refusal import REFUSALS, refused, show_log
from cluster.system import BadInput, connect, inputs
from smartrag.config import Run
from smartrag.exits import TRIAL_FAILED
from smartrag.experiments import frontier
from smartrag.experiments.frontier import Outcome
from smartrag.experiments.sweep import Plan, Trial
from smartrag.files import write_whole
from smartrag.log import RunFolder

logger = logging.getLogger("smartrag")

INTERRUPTED = 130
STOPPED = "stopped.json"


class WarmUp(SmartRAGPPO):
    """The first stage alone, all of which is `setup`."""

    def step(self) -> dict[str, Any]:
        return {"done": True}


def sweep(plan: Plan) -> int:
    """Runs what has not been run yet, prints the table and returns the exit code."""
    show_log()
    os.environ["RAY_CHDIR_TO_TRIAL_DIR"] = "0"  # relative paths of a run mean the same in a trial
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # Tune's older output can be silenced
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"  # metrics.jsonl has the numbers
    try:
        inputs(plan.base)
        connect(plan.base)
        reserve(plan.base).release()  # Tune would wait for ever for a cluster that cannot hold one trial
        home = _home(plan)
    except REFUSALS as error:
        return refused(error)
    failed = _fit(WarmUp, list(_warmups(plan, home)), plan, home)
    failed |= _fit(SmartRAGPPO, list(_trials(plan, home)), plan, home)
    told = _report(plan, home)
    if told["points"]:
        frontier.picture(told, _gates(plan, home), home / "frontier.png")
        print(frontier.as_text(told))
    for name, why in failed.items():
        logger.error("%s failed: %s", name, why)
    missing = len(plan.trials) - len(told["points"]) - len(told["stopped"])
    if missing:
        logger.error("%d trials are not done; the same command with resume=%s goes on", missing, home)
    logger.info("all of it is in %s", home)
    return TRIAL_FAILED if failed else INTERRUPTED if missing else 0


def _home(plan: Plan) -> Path:
    """The sweep's folder; one to resume must be of the same setting."""
    home, setting = find(plan.base, "sweep"), plan.sweep.setting
    if not (home / "frontier.json").is_file():
        _write(home, frontier.as_json(setting, [], {}))
    begun = json.loads((home / "frontier.json").read_text(encoding="utf-8"))["setting"]
    if begun != setting:
        raise BadInput(f"{home} is a sweep of {begun}, not of {setting}; leave out `resume` to start a new one")
    return home


def _warmups(plan: Plan, home: Path) -> Iterator[Run]:
    """Those that are not done; none where the run has no warm-up."""
    if plan.base.warmup.steps:
        for seed in plan.sweep.seeds:
            if _policy(plan, home, seed) is None:
                yield plan.warmup(home, seed)


def _trials(plan: Plan, home: Path) -> Iterator[Run]:
    """Those that are not done and have a policy to start from."""
    for trial in plan.trials:
        policy = _policy(plan, home, trial.seed)
        ended = _summary(plan, home, trial) or _stopped(plan, home, trial)
        if ended is None and (policy is not None or not plan.base.warmup.steps):
            yield plan.begun(home, trial, policy)


def _policy(plan: Plan, home: Path, seed: int) -> Path | None:
    """The weights that the warm-up of `seed` left; None when it is not done (a checkpoint is whole or not there)."""
    policy = plan.place(home, None, seed) / "latest" / "checkpoints" / "step_00000000" / "policy"
    return policy.resolve() if policy.is_dir() else None


def _summary(plan: Plan, home: Path, trial: Trial) -> Path | None:
    """summary.json of a trial that is done."""
    path = plan.place(home, trial.value, trial.seed) / "latest" / "summary.json"
    return path.resolve() if path.is_file() else None


def _stopped(plan: Plan, home: Path, trial: Trial) -> int | None:
    """Steps of a trial that was stopped early."""
    path = plan.place(home, trial.value, trial.seed) / "latest" / STOPPED
    return json.loads(path.read_text(encoding="utf-8"))["step"] if path.is_file() else None


def _fit(trainable: type[tune.Trainable], runs: Sequence[Run], plan: Plan, home: Path) -> dict[str, str]:
    """Runs them, as many at a time as fit, with frontier.json written after each. Returns why each that failed did."""
    if not runs:
        return {}
    bar = tqdm(
        total=len(runs),
        desc="warm-up" if trainable is WarmUp else "trials",
        disable=not plan.base.log.progress,
        mininterval=0.1 if sys.stderr.isatty() else 10,
    )
    with bar:
        watch = _Progress(bar, lambda: _report(plan, home))
        results = tune.Tuner(
            trainable,
            param_space={"run": tune.grid_search(list(runs))},
            tune_config=tune.TuneConfig(
                trial_dirname_creator=lambda trial: trial.trial_id,
                scheduler=None if trainable is WarmUp else _scheduler(plan),
            ),
            run_config=tune.RunConfig(name="tune", storage_path=str(home), verbose=0, callbacks=[watch]),
        ).fit()
    errors = [results[i].error for i in range(len(results))]  # in the order of the runs
    return {_label(run): _reason(error) for run, error in zip(runs, errors, strict=False) if error is not None}


def _scheduler(plan: Plan) -> ASHAScheduler | None:
    """Asynchronous successive halving (Li et al. 2020, arXiv 1810.05934), if the sweep wants trials to be stopped."""
    if plan.sweep.asha is None:
        return None
    os.environ["TUNE_DISABLE_STRICT_METRIC_CHECKING"] = "1"  # a trial's last result is its end, and no step
    return ASHAScheduler(
        time_attr="step",
        metric=plan.sweep.asha,
        mode="max",
        grace_period=plan.sweep.grace,
        max_t=plan.base.train.steps,
        reduction_factor=2,
        stop_last_trials=False,  # after its last step a trial is evaluated
    )


class _Progress(Callback):
    """One bar over all trials, and what the one that was heard of last is at."""

    def __init__(self, bar: tqdm, done: Callable[[], Any]):
        self._bar, self._done = bar, done

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: dict[str, Any], **info: Any) -> None:
        if "reward" in result:
            self._bar.set_postfix_str(
                f"{_label(trial.config['run'])} step {result['step']}: "
                f"reward {result['reward']:.2f}, EM {result['em']:.2f}, "
                f"retrievals {result['retrievals_per_question']:.2f}"
            )

    def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        run = trial.config["run"]
        folder, step = Path(run.runs) / run.name / "latest", trial.last_result.get("step")
        early = step is not None and not (folder / "summary.json").is_file()
        if early:
            write_whole(folder / STOPPED, json.dumps({"step": step}) + "\n")
        self._done()
        self._bar.update()
        logger.info("%s is %s", _label(run), f"behind, and stopped after {step} steps" if early else "done")

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self._bar.update()
        logger.error("%s failed", _label(trial.config["run"]))


def _label(run: Run) -> str:
    """E.g. seed0/reward.retrieval_-0.2."""
    return f"{Path(run.runs).name}/{run.name}"


def _reason(error: Exception) -> str:
    """The line that matters of an error, whose text is mostly a remote traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _report(plan: Plan, home: Path) -> dict[str, Any]:
    """frontier.json of all trials that are done by now."""
    outcomes = []
    for trial in plan.trials:
        if (path := _summary(plan, home, trial)) is not None:
            columns = RunFolder(path.parent).evaluation("after")
            summary = json.loads(path.read_text(encoding="utf-8"))
            outcomes.append(Outcome(trial.value, trial.seed, str(path.parent), summary, columns))
    policies = {seed: str(p) for seed in plan.sweep.seeds if (p := _policy(plan, home, seed)) is not None}
    stopped = [
        {"value": trial.value, "seed": trial.seed, "step": step}
        for trial in plan.trials
        if (step := _stopped(plan, home, trial)) is not None
    ]
    told = frontier.as_json(plan.sweep.setting, outcomes, policies, stopped)
    _write(home, told)
    return told


def _write(home: Path, told: Mapping[str, Any]) -> None:
    write_whole(home / "frontier.json", json.dumps(told, indent=2) + "\n")


def _gates(plan: Plan, home: Path) -> dict[str, list[dict[str, float]]]:
    """Threshold curves of `gates`, else of the newest evaluation of a warm-up that has some, else none."""
    if plan.sweep.gates is not None:
        return frontier.gate_curves(Path(plan.sweep.gates))
    found = [
        path
        for seed in plan.sweep.seeds
        for path in plan.place(home, None, seed).glob("latest/evaluations/*/evaluation.json")
        if json.loads(path.read_text(encoding="utf-8")).get("gates")
    ]
    return frontier.gate_curves(max(found, key=lambda path: path.stat().st_mtime)) if found else {}
