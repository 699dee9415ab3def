"""The frontier: what the policies of a sweep reach against what they retrieve, as JSON, a picture and a table.

frontier.json   {"setting", "warmup": {seed: policy}, "points": [point], "curve": [point of all seeds],
                 "stopped": [{"value", "seed", "step"}]}
point           {"value", "seed", "run", measure: {"mean", "low", "high"}, "before", "never", "always": {measure: ...}}

A point is the policy after training, evaluated at its own value of the setting: rewards at different prices are in
different money, so the picture shows exact match and F1.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from smartrag.evaluation.evaluate import MEASURES, pooled
from smartrag.log import COLUMNS
from smartrag.report.plot import canvas
from smartrag.report.terminal import spelled

RETRIEVALS = "retrievals_per_question"
OTHERS = ("before", "never", "always")  # systems of a run beside its trained policy; the gates may not be evaluated
_PANELS = (("em", "exact match"), ("f1", "F1"))


@dataclass(frozen=True, slots=True)
class Outcome:
    """One trial that is done."""

    value: float
    seed: int
    run: str  # its folder
    summary: Mapping[str, Any]  # summary.json
    columns: Mapping[str, np.ndarray]  # COLUMNS -> [n] values of the trained policy, one a test question, in one order


def as_json(
    setting: str, outcomes: Sequence[Outcome], warmup: Mapping[int, str], stopped: Sequence[Mapping[str, float]] = ()
) -> dict[str, Any]:
    """frontier.json. `stopped`: trials that ended early, and when. `curve` holds the mean over the seeds of each
    question, with the interval over questions: the seeds are these, the questions a sample."""
    points = [
        {
            "value": o.value,
            "seed": o.seed,
            "run": o.run,
            **_measures(o.summary["after"]),
            **{system: _measures(o.summary[system]) for system in OTHERS if system in o.summary},
        }
        for o in outcomes
    ]
    curve = []
    for value in sorted({o.value for o in outcomes}):
        members = [o for o in outcomes if o.value == value]
        figures = {name: pooled([o.columns[name] for o in members]) for name in COLUMNS}
        curve.append({"value": value, "seeds": [o.seed for o in members], **figures})
    policies = {str(seed): policy for seed, policy in warmup.items()}
    return {"setting": setting, "warmup": policies, "points": points, "curve": curve, "stopped": [*stopped]}


def gate_curves(path: Path) -> dict[str, list[dict[str, float]]]:
    """Gate -> the points of its threshold curve, of an evaluation.json. Raises OSError, ValueError when it has none."""
    found = json.loads(path.read_text(encoding="utf-8"))
    gates = found.get("gates") if isinstance(found, dict) else None
    if not gates:
        raise ValueError(f"{path} holds no gates; give the evaluation.json of an evaluation")
    return {gate: [p for p in of.get("curve") or () if p.get(RETRIEVALS) is not None] for gate, of in gates.items()}


def as_text(frontier: Mapping[str, Any]) -> str:
    """A row for each value over its seeds, with 95 % intervals over questions."""
    table = Table(title=f"after training, by {frontier['setting']}, mean [95 % interval]", box=box.SIMPLE)
    for name in (frontier["setting"], "seeds", "retrievals", "em", "f1", "reward at its own value"):
        table.add_column(name, justify="right")
    for row in frontier["curve"]:
        shown = [spelled(row[name]) for name in (RETRIEVALS, "em", "f1", "reward")]
        table.add_row(f"{row['value']:g}", str(len(row["seeds"])), *shown)
    console = Console(width=126)
    with console.capture() as capture:
        console.print(table)
        for at in frontier["stopped"]:
            console.print(f"stopped after {at['step']} steps: {at['value']:g}, seed {at['seed']}")
        for system in OTHERS:
            found = [p[system] for p in frontier["points"] if system in p]
            if found:
                means = [np.mean([f[name]["mean"] for f in found]) for name in (RETRIEVALS, "em", "f1")]
                told = "{:.3f} retrievals, em {:.3f}, f1 {:.3f}".format(*means)
                console.print(f"{system}, mean of {len(found)} runs: {told}")
    return capture.get()


def picture(frontier: Mapping[str, Any], gates: Mapping[str, Sequence[Mapping[str, float]]], path: Path) -> None:
    """Exact match and F1 against retrievals per question: the curve of the swept policies, each run as a dot, the runs'
    fixed gates, and the threshold curves of other `gates`."""
    figure, axes = canvas(1, len(_PANELS), size=(13, 6))
    for axis, (measure, title) in zip(axes.flat, _PANELS, strict=True):
        for i, (gate, points) in enumerate(gates.items()):
            known = sorted((p[RETRIEVALS], p[measure]) for p in points if p.get(measure) is not None)
            if known:
                axis.plot(*zip(*known, strict=True), ".--", color=f"C{i + 4}", linewidth=1, label=f"gate: {gate}")
        _fixed(axis, frontier["points"], measure)
        _swept(axis, frontier, measure)
        axis.set(title=title, xlabel="retrievals per question")
        axis.grid(alpha=0.3)
    axes.flat[-1].legend(fontsize=8, loc="lower right")
    figure.savefig(path, dpi=110)


def _swept(axis: Any, frontier: Mapping[str, Any], measure: str) -> None:
    found = [(p[RETRIEVALS]["mean"], p[measure]["mean"]) for p in frontier["points"]]
    axis.plot(*zip(*found, strict=True), ".", color="0.6", label="one run")
    rows = frontier["curve"]
    x, y = ([row[name]["mean"] for row in rows] for name in (RETRIEVALS, measure))
    bars = (
        [[abs(row[name]["mean"] - row[name][end]) for row in rows] for end in ("low", "high")]
        for name in (RETRIEVALS, measure)
    )
    xerr, yerr = bars
    axis.errorbar(
        x, y, xerr=xerr, yerr=yerr, fmt="o-", color="C0", capsize=3, label=f"trained, by {frontier['setting']}"
    )
    for row, at in zip(rows, zip(x, y, strict=True), strict=True):
        axis.annotate(f"{row['value']:g}", at, textcoords="offset points", xytext=(6, -11), fontsize=8, color="C0")


def _fixed(axis: Any, points: Sequence[Mapping[str, Any]], measure: str) -> None:
    for i, (system, marker) in enumerate(zip(OTHERS, "sv^", strict=True), start=1):
        found = [(p[system][RETRIEVALS]["mean"], p[system][measure]["mean"]) for p in points if system in p]
        if found:
            axis.plot(*zip(*found, strict=True), marker, color=f"C{i}", alpha=0.6, label=system)


def _measures(of: Mapping[str, Any]) -> dict[str, Any]:
    return {name: of[name] for name in MEASURES if name in of}
