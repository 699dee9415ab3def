"""An ablation from its warm-ups to its table. All of it is in folders, so one that was stopped goes on where it stood.

runs/<name>/ablations/<id>/        latest -> <id>
    config.yaml                    the run that the rows vary
    seed<S>/warm-up/<run>/         one warm-up a seed, from which all rows start
    seed<S>/<row>/<run>/           run folders, one a row; `composed` holds an evaluation alone
    ablation.json ablation.png     what came of it
"""

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from cluster.checkpoint import Checkpoints
from cluster.driver import drive
from cluster.home import find
from cluster.refusal import REFUSALS, refused, show_log
from cluster.system import System, inputs
from smartrag.choices import Role
from smartrag.commands import Ablation
from smartrag.compose import as_yaml, from_yaml
from smartrag.config import Run
from smartrag.evaluation.evaluate import MEASURES
from smartrag.exam import Exam
from smartrag.experiments import ablation
from smartrag.experiments.ablation import COMPOSED, ROWS, WARMUP, Outcome, row_run
from smartrag.files import write_whole
from smartrag.log import RunFolder, versions
from smartrag.origin import resolve
from smartrag.types import Gate

logger = logging.getLogger("smartrag")


def ablate(settings: Ablation, run: Run) -> int:
    """Runs what has not been run yet, prints the table and returns the exit code: that of the first run that failed."""
    show_log()
    try:
        inputs(run)
        home = find(run, "ablation")
    except REFUSALS as error:
        return refused(error)
    work = list(_work(settings, run, home))
    for number, (name, act) in enumerate(work, start=1):
        logger.info("%d of %d: %s", number, len(work), name)
        if code := act():
            logger.info("stopped; the same command with resume=%s goes on", home)
            return code
        _report(settings, run, home)
    outcomes = list(_outcomes(settings, run, home))
    ablation.picture(outcomes, home / "ablation.png")
    print(ablation.as_text(outcomes, _episodes(run)))
    logger.info("all of it is in %s", home)
    return 0


def _work(settings: Ablation, run: Run, home: Path) -> Iterator[tuple[str, Callable[[], int]]]:
    """(what it is, how to do it) in order: a seed's warm-up, its trainings, and then what is put together of them."""
    for seed in settings.seeds:
        if run.warmup.steps:
            yield f"seed {seed}, warm-up", partial(_warm_up, run, home, seed)
        for row in ROWS:
            if row in settings.rows:
                yield f"seed {seed}, training {row}", partial(_train, run, home, row, seed)
        if COMPOSED in settings.rows:
            yield f"seed {seed}, {COMPOSED}", partial(_put_together, run, home, settings.rows, seed)


def _warm_up(run: Run, home: Path, seed: int) -> int:
    if _policy(home, WARMUP, seed) is not None:
        return 0
    return drive(replace(run, name=WARMUP, runs=str(home / f"seed{seed}"), seed=seed, resume=None), warmup_only=True)


def _train(run: Run, home: Path, row: str, seed: int) -> int:
    """One row, or what is left of it."""
    if _summary(home, row, seed) is not None:
        return 0
    begun = _policy(home, row, seed) is not None
    own = row_run(run, row, seed, _start(run, home, seed), home / f"seed{seed}")
    return drive(replace(own, resume="latest" if begun else None))


def _put_together(run: Run, home: Path, rows: Sequence[str], seed: int) -> int:
    """Evaluates the policies of the single rows, each in its own role, on the questions of all other rows."""
    start = _start(run, home, seed)
    parts = {role: path for role in Role if role in rows and (path := _policy(home, role, seed)) is not None}
    told = {str(role): str(path) for role, path in parts.items()}
    if (_summary(home, COMPOSED, seed) or {}).get("parts") == told:
        return 0
    players = {role: parts.get(role, start) for role in Role}
    own = row_run(run, COMPOSED, seed, start, home / f"seed{seed}")
    try:
        first = players[Role.decision]
        found = inputs(own, model=first)
        found = replace(found, frozen={role: path for role, path in players.items() if path != first})
        system = System(own, found, learn=False).start()
    except REFUSALS as error:
        return refused(error)
    folder = RunFolder.create(own.runs, own.name)
    folder.write("config.yaml", as_yaml(own))
    try:
        after = Exam(own, found.data, system.rollout, folder).test("after", own.train.steps, Gate.POLICY)
    finally:
        system.close()
    folder.write("summary.json", json.dumps({"after": after, "parts": told, "versions": versions()}, indent=2) + "\n")
    return 0


def _report(settings: Ablation, run: Run, home: Path) -> None:
    """ablation.json of all that is there by now."""
    outcomes = list(_outcomes(settings, run, home))
    warmup = {o.seed: from_yaml(Path(o.run, "config.yaml")).model.path for o in outcomes}
    told = ablation.as_json(outcomes, _episodes(run), warmup)
    write_whole(home / "ablation.json", json.dumps(told, indent=2) + "\n")


def _outcomes(settings: Ablation, run: Run, home: Path) -> Iterator[Outcome]:
    """Every row that is done; before those of a seed its warm-up, as the first of them found it."""
    for seed in settings.seeds:
        first = True
        for row in (row for row in (*ROWS, COMPOSED) if row in settings.rows):
            summary = _summary(home, row, seed)
            if summary is None:
                continue
            own = RunFolder(_latest(home, row, seed).resolve())
            if first and "before" in summary:
                first = False
                yield _outcome(own, WARMUP, seed, 0, summary["before"], "before")
            trainings = len(summary["parts"]) if row == COMPOSED else 1
            yield _outcome(own, row, seed, trainings * _episodes(run), summary["after"], "after")


def _outcome(own: RunFolder, row: str, seed: int, episodes: int, found: Mapping[str, Any], name: str) -> Outcome:
    measures = {measure: found[measure] for measure in ("n", *MEASURES)}
    return Outcome(row, seed, str(own.folder), episodes, measures, own.evaluation(name))


def _latest(home: Path, row: str, seed: int) -> Path:
    return home / f"seed{seed}" / row / "latest"


def _summary(home: Path, row: str, seed: int) -> dict[str, Any] | None:
    """What a row came to; None while it is not done."""
    path = _latest(home, row, seed) / "summary.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _policy(home: Path, row: str, seed: int) -> Path | None:
    """The newest weights of a row, as a Hugging Face folder; None when it has saved none."""
    checkpoint = Checkpoints(_latest(home, row, seed).resolve() / "checkpoints", keep=1).latest()
    return None if checkpoint is None else checkpoint / "policy"


def _start(run: Run, home: Path, seed: int) -> Path:
    """The weights that all rows of a seed begin as."""
    warm = (
        _policy(home, WARMUP, seed) if run.warmup.steps else resolve(run.model, Path(run.cache).expanduser() / "models")
    )
    assert warm is not None, "the warm-up comes first"
    return warm


def _episodes(run: Run) -> int:
    return run.train.steps * run.train.episodes
