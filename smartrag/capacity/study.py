"""launch/capacity.py: traced runs held against their simulation, or fleets projected; table, JSON, picture."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table
from tqdm import tqdm

from smartrag.arguments import refuse
from smartrag.capacity.fit import Measured, fit, read
from smartrag.capacity.pipeline import Outcome, Services, simulate
from smartrag.capacity.projection import POLICIES, Cell, project
from smartrag.commands import Capacity
from smartrag.compose import alone
from smartrag.exits import BAD_INPUT
from smartrag.files import new_folder, write_whole
from smartrag.report.plot import canvas
from smartrag.report.terminal import wide

_MAY_BE_0 = {
    *("max_staleness", "passage_tokens", "restart_s", "iteration_overhead_s", "message_s", "send_s"),
    *("step_overhead_s", "episode_overhead_s", "push_overhead_s"),
}


def load(arguments: Sequence[str]) -> Capacity:
    """Raises ConfigError with all that is wrong."""
    asked = alone(Capacity, "capacity.yaml", arguments)
    names = ", ".join(POLICIES)
    problems = [f"policies: there is no {name!r}; there are {names}" for name in asked.policies if name not in POLICIES]
    if too_few := [n for n in asked.gpus if n < 2]:
        problems.append(f"gpus must be at least 2 each, one to learn and one to generate; got {too_few}")
    if abs(sum(asked.searches) - 1) > 0.01 or min(asked.searches, default=-1) < 0:
        problems.append(f"searches are shares of the episodes, and their sum is 1; got {asked.searches}")
    values = {name: value for name, value in asdict(asked).items() if isinstance(value, int | float)}
    problems += [f"{name} must not be below 0, got {value}" for name, value in values.items() if value < 0]
    problems += [
        f"{name} must be above 0, got 0" for name, value in values.items() if value == 0 and name not in _MAY_BE_0
    ]
    refuse(problems)
    return asked


def run(asked: Capacity) -> int:
    """Prints the table, writes capacity.json (and capacity.png) and returns the exit code."""
    try:
        measured = [read(Path(folder)) for folder in asked.measured]
    except (ValueError, OSError) as error:  # Unusable, or no run at all
        print(error, file=sys.stderr)
        return BAD_INPUT
    home = new_folder(Path(asked.out).expanduser().resolve())
    if measured:
        services = fit(measured[0])
        outcomes = [simulate(services, m.layout, m.episodes, steps=len(m.steps)) for m in measured]
        _show_measured(measured, outcomes)
        found = _measured_json(services, measured, outcomes)
    else:
        grid = [(name, gpus) for name in asked.policies for gpus in asked.gpus]
        cells = [project(name, gpus, asked) for name, gpus in tqdm(grid, desc="simulating", unit="fleet")]
        fitting = [cell for cell in cells if cell is not None]
        if fitting:
            _show_cells(fitting)
            _draw(fitting, home / "capacity.png")
        for (name, gpus), cell in zip(grid, cells, strict=True):
            if cell is None:
                print(f"{name} does not fit {gpus} GPUs of {asked.memory / 1e9:g} GB")
        found = {"assumed": asdict(asked), "cells": [asdict(cell) for cell in fitting]}
    write_whole(home / "capacity.json", json.dumps(found, indent=2) + "\n")
    print(f"all of it is in {home}")
    return 0


def _measured_json(services: Services, measured: Sequence[Measured], outcomes: Sequence[Outcome]) -> dict[str, Any]:
    runs = []
    for m, o in zip(measured, outcomes, strict=True):
        told = {"step_s": m.step_s, "rollout_s": m.rollout_s, "simulated": asdict(o)}
        runs.append({"run": m.name, "layout": asdict(m.layout), **told})
    return {"services": asdict(services), "runs": runs}


def _show_measured(measured: Sequence[Measured], outcomes: Sequence[Outcome]) -> None:
    table = Table(title="measured and simulated; service times are those of the first run", title_justify="left")
    table.add_column("run", justify="left")
    for column in ("episodes", "staleness", "step, s", "simulated", "off by", "rollout, s", "simulated"):
        table.add_column(column, justify="right")
    for m, o in zip(measured, outcomes, strict=True):
        off = o.step_s / m.step_s - 1
        told = (f"{m.step_s:.2f}", f"{o.step_s:.2f}", f"{off:+.1%}", f"{m.rollout_s:.2f}", f"{o.rollout_s:.2f}")
        table.add_row("/".join(Path(m.name).parts[-2:]), str(m.layout.episodes), str(m.layout.max_staleness), *told)
    wide(150).print(table)


def _show_cells(cells: Sequence[Cell]) -> None:
    """Busy: shares of the time, learner and engines. Slowest: what shortens the step most if it takes half as long.
    Orchestration: what shortens it if it takes no time at all."""
    table = Table(title="fleets, each shared between learner and engines as is fastest", title_justify="left")
    table.add_column("policy")
    for column in ("GPUs: learner", "engines", "episodes/s", "a GPU", "step, s", "busy"):
        table.add_column(column, justify="right")
    table.add_column("slowest")
    for column in ("orches-\ntration", "search threads\nan engine GPU", "checkpoint\nevery, min", "goodput"):
        table.add_column(column, justify="right")
    for cell in cells:
        o = cell.outcome
        table.add_row(
            *(cell.policy, str(cell.learner_gpus), f"{cell.engines} x {cell.tensor_parallel}"),
            *(f"{o.episodes_a_second:,.0f}", f"{_rate(cell):.2f}", f"{o.step_s:.1f}"),
            *(f"{o.learner_busy:.2f}, {o.engines_busy:.2f}", f"{cell.slowest}, {cell.gain:.0%}"),
            *(f"{cell.orchestration:.1%}", f"{cell.threads_per_engine_gpu:.2g}"),
            *(f"{cell.save_every_s / 60:.0f}", f"{cell.goodput:.3f}"),
        )
    wide(150).print(table)


def _draw(cells: Sequence[Cell], path: Path) -> None:
    figure, axes = canvas(1, 3, size=(15, 4.5))
    panels = (
        ("episodes a second and GPU, of the smallest fleet's", lambda cell, first: _rate(cell) / _rate(first)),
        ("share of the time that the learner is busy", lambda cell, _: cell.outcome.learner_busy),
        ("search threads for each GPU of an engine", lambda cell, _: cell.threads_per_engine_gpu),
    )
    for axis, (title, value) in zip(axes.flat, panels, strict=True):
        for name in dict.fromkeys(cell.policy for cell in cells):
            own = [cell for cell in cells if cell.policy == name]
            axis.plot([cell.gpus for cell in own], [value(cell, own[0]) for cell in own], marker="o", label=name)
        axis.set_xscale("log", base=2)
        sizes = sorted({cell.gpus for cell in cells})
        axis.set_xticks(sizes, [f"{size:,}" for size in sizes])
        axis.set(title=title, xlabel="GPUs")
        axis.set_ylim(bottom=0)
    axes.flat[0].legend(title="policy")
    figure.savefig(path, dpi=110)


def _rate(cell: Cell) -> float:
    return cell.outcome.episodes_a_second / cell.gpus
