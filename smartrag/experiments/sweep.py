"""From the command line of a sweep to its checked runs: one setting over values and seeds, warmed up once a seed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from types import UnionType
from typing import Any, get_args

from smartrag import compose
from smartrag.arguments import refuse
from smartrag.check import check
from smartrag.commands import Sweep
from smartrag.compose import ConfigError
from smartrag.config import Run

WARMUP = "warm-up"
BETTER = ("reward", "em", "f1")  # measures of a step of which more is better


@dataclass(frozen=True, slots=True)
class Trial:
    """One value under one seed. `run` is what a run of it alone would be; `begun` gives it its place in the sweep."""

    value: float  # as it was written
    seed: int
    run: Run

    @property
    def name(self) -> str:
        return f"{self.value}, seed {self.seed}"


@dataclass(frozen=True, slots=True)
class Plan:
    sweep: Sweep
    base: Run  # with the setting as it is; its warm-up is what the trials start from
    trials: tuple[Trial, ...]  # the first seed's first: a whole curve is there early

    def place(self, home: Path, value: float | None, seed: int) -> Path:
        """Where the run folders of a trial, or of a seed's warm-up (None), lie in the sweep's."""
        return home / f"seed{seed}" / (WARMUP if value is None else f"{self.sweep.setting}_{value}")

    def warmup(self, home: Path, seed: int) -> Run:
        return _placed(replace(self.base, seed=seed), self.place(home, None, seed), home)

    def begun(self, home: Path, trial: Trial, policy: Path | None) -> Run:
        """The run of `trial`, from the warmed-up `policy` (None: from its own model). It goes on where it is begun."""
        run = _placed(trial.run, self.place(home, trial.value, trial.seed), home)
        if policy is not None:
            model = replace(run.model, path=str(policy), fallback=None)
            run = replace(run, model=model, warmup=replace(run.warmup, steps=0))
        return run


def load(arguments: Sequence[str]) -> Plan:
    """What a command line means: names of `Sweep` the sweep, all others the run. Raises ConfigError with every problem;
    all runs are checked."""
    sweep, base, others = compose.load_beside(Sweep, "sweep.yaml", arguments)
    problems = [*_problems(sweep)]
    problems += [f"{a}: a sweep has several; write seeds=[...]" for a in arguments if a.startswith("seed=")]
    if sweep.asha is not None and not 1 <= sweep.grace < base.train.steps:
        problems.append(f"grace must be at least 1 and less than train.steps={base.train.steps}, got {sweep.grace}")
    refuse(problems)
    return Plan(sweep, base, tuple(_trials(sweep, others)))


def _trials(sweep: Sweep, others: Sequence[str]) -> Iterator[Trial]:
    """Raises ConfigError: each problem once, with the values that have it."""
    runs: dict[float, Run] = {}
    found: dict[str, list[str]] = {}
    for value in sweep.values:
        try:
            runs[value] = compose.load([*others, f"{sweep.setting}={value}"])
        except ConfigError as error:
            found.setdefault(str(error), []).append(str(value))
    trials = [Trial(value, seed, replace(run, seed=seed)) for seed in sweep.seeds for value, run in runs.items()]
    for trial in trials:
        for problem in check(trial.run):
            found.setdefault(problem, []).append(trial.name)
    refuse([f"at {'; '.join(at)}: {problem}" for problem, at in found.items()])
    yield from trials


def _problems(sweep: Sweep) -> Iterator[str]:
    numbers = [*_numbers(Run)]
    if sweep.setting not in numbers:
        yield f"setting={sweep.setting}: no number of a run is called so{compose.nearest(sweep.setting, numbers)}"
    elif sweep.setting == "seed" or sweep.setting.startswith("warmup."):
        yield f"setting={sweep.setting} is the warm-up's, from which all trials of a seed start; sweep another"
    for name, given in (("values", sweep.values), ("seeds", sweep.seeds)):
        if not given or len({*given}) < len(given):
            yield f"{name} must hold one or more, each once, got [{','.join(map(str, given))}]"
    if wrong := [value for value in sweep.values if isinstance(value, bool) or not isinstance(value, int | float)]:
        yield f"values must be numbers, got {', '.join(map(repr, wrong))}"
    if sweep.asha not in (None, *BETTER):
        yield f"asha={sweep.asha}: one of {', '.join(BETTER)} is due, or null"
    if sweep.gates is not None:
        from smartrag.experiments.frontier import gate_curves  # brings scipy

        try:
            gate_curves(Path(sweep.gates))
        except (OSError, ValueError) as error:
            yield f"gates={sweep.gates}: {error.strerror if isinstance(error, OSError) else error}"


def _placed(run: Run, place: Path, home: Path) -> Run:
    begun = any((place / "latest" / "checkpoints").glob("step_*"))
    log = replace(run.log, group=run.log.group or home.name, progress=False)
    return replace(run, name=place.name, runs=str(place.parent), log=log, resume="latest" if begun else None)


def _numbers(node: Any, prefix: str = "") -> Iterator[str]:
    """Names of the settings that are one number."""
    for field in fields(node):
        kinds = get_args(field.type) if isinstance(field.type, UnionType) else (field.type,)
        if int in kinds or float in kinds:
            yield prefix + field.name
        for kind in kinds:
            if isinstance(kind, type) and is_dataclass(kind):
                yield from _numbers(kind, f"{prefix}{field.name}.")
