"""What a benchmark measured: figures with their spread, and ratios of things that took turns on one machine."""

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.table import Table

from smartrag.arguments import refuse
from smartrag.choices import Part
from smartrag.commands import Bench
from smartrag.compose import load_beside
from smartrag.config import Run
from smartrag.report.terminal import wide


def load(arguments: Sequence[str]) -> tuple[Bench, Run]:
    """The benchmark and the run it measures parts of, from a command line. Raises ConfigError."""
    settings, run, _ = load_beside(Bench, "bench.yaml", arguments)
    problems = [] if settings.only else [f"only must name one or more of {', '.join(Part)}, got []"]
    if not 1 <= settings.repeats <= 1000:
        problems.append(f"repeats must be between 1 and 1000, got {settings.repeats}")
    refuse(problems)
    return settings, run


@dataclass(frozen=True, slots=True)
class Figure:
    """A median over `n` measurements."""

    value: float
    unit: str
    ratio: float | None = None  # value / baseline's value; above 1 is better for rates, worse for seconds and bytes
    baseline: str | None = None  # the figure it is compared with
    n: int = 1
    spread: float = 0.0  # (highest − lowest) / median


def seconds(action: Callable[[], Any]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def in_turns(actions: Sequence[Callable[[], float]], repeats: int) -> list[list[float]]:
    """What each measured, `repeats` times, one after the other: whatever else the machine does meets all alike."""
    found: list[list[float]] = [[] for _ in actions]
    for _ in range(repeats):
        for measured, action in zip(found, actions, strict=True):
            measured.append(action())
    return found


def rate(amount: float, unit: str, measured: Sequence[float]) -> Figure:
    """`amount` done in each of the measured seconds."""
    return _figure([amount / s for s in measured], unit)


def percentile(values: Sequence[float], q: float, unit: str) -> Figure:
    """The q-th percentile of single values, the spread over them left out."""
    return Figure(float(np.percentile(values, q)), unit, n=len(values))


def median(values: Sequence[float], unit: str) -> Figure:
    return _figure(values, unit)


def against(ours: Figure, name: str, theirs: Figure) -> Figure:
    """Our figure with its ratio to theirs, which is called `name`."""
    return Figure(ours.value, ours.unit, ours.value / theirs.value, name, ours.n, ours.spread)


def _figure(values: Sequence[float], unit: str) -> Figure:
    median = statistics.median(values)
    return Figure(median, unit, n=len(values), spread=(max(values) - min(values)) / median)


def as_json(figures: dict[str, Figure]) -> str:
    return json.dumps({name: asdict(figure) for name, figure in figures.items()}, indent=2) + "\n"


def show(figures: dict[str, Figure]) -> None:
    """A table on the terminal."""
    table = Table(title="benchmark", title_justify="left")
    for column, justify in (("figure", "left"), ("value", "right"), ("unit", "left"), ("ratio", "right")):
        table.add_column(column, justify=justify, no_wrap=column in ("figure", "ratio"))  # type: ignore[arg-type]
    for column in ("against", "n", "spread"):
        table.add_column(column, justify="right" if column != "against" else "left")
    for name, f in figures.items():
        ratio = "" if f.ratio is None else f"{f.ratio:.3f}"
        table.add_row(name, f"{f.value:.4g}", f.unit, ratio, f.baseline or "", str(f.n), f"{f.spread:.0%}")
    wide(150).print(table)
