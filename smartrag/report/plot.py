"""Pictures of runs and evaluations, for people who would rather look than read."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from smartrag.report.record import SYSTEMS

CURVES = (
    ("reward", "reward per question"),
    ("em", "exact match"),
    ("retrievals_per_question", "retrievals per question"),
    ("hit_rate", "hit rate of retrievals"),
    ("kl_ref", "KL to the reference, nats a token"),
)


def curves(rows: Sequence[Mapping[str, Any]], summary: Mapping[str, Any], path: Path) -> None:
    """Five curves over the training steps, with the test figures beside them, and retrieval by popularity."""
    figure, axes = canvas(2, 3, size=(15, 8))
    for axis, (name, title) in zip(axes.flat, CURVES, strict=False):
        points = [(row["step"], row[name]) for row in rows if name in row]
        if points:
            steps, values = zip(*points, strict=True)
            axis.plot(steps, values, color="0.75", linewidth=1)
            axis.plot(steps, smooth(values), color="C0", label="training")
        for i, system in enumerate(SYSTEMS):
            figures = (summary.get(system) or {}).get(name)
            if figures:
                axis.axhline(figures["mean"], color=f"C{i + 1}", linestyle="--", linewidth=1, label=f"test: {system}")
        axis.set(title=title, xlabel="PPO step")
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=7)
    _popularity(axes.flat[-1], summary)
    figure.savefig(path, dpi=110)


def accuracy_and_cost(figures: Mapping[str, Any], path: Path) -> None:
    """frontier.png of an evaluation: what each threshold of each gate gives for its retrievals, and the systems."""
    figure, axes = canvas(1, 2, size=(14, 6))
    for axis, measure in zip(axes.flat, ("em", "reward"), strict=True):
        for gate, found in figures.get("gates", {}).items():
            points = found["curve"]
            cost = [point["retrievals_per_question"] for point in points]
            label = f"{gate} (area {found['auc'][measure]:.3f})"
            axis.plot(cost, [point[measure] for point in points], linewidth=1, label=label)
        for marker, (system, found) in zip("*ovs^D", figures["systems"].items(), strict=False):
            x, y = found["retrievals_per_question"], found[measure]
            error = [[y["mean"] - y["low"]], [y["high"] - y["mean"]]]
            axis.errorbar(x["mean"], y["mean"], yerr=error, fmt=marker, color="k", markersize=9, mfc="w", label=system)
        axis.set(title=measure.upper() if measure == "em" else measure, xlabel="retrievals per question")
        axis.legend(fontsize=7)
    figure.savefig(path, dpi=110)


def decision(figures: Mapping[str, Any], path: Path) -> None:
    """decision.png of an evaluation: when the policy retrieves, and what each perfect role would gain."""
    figure, axes = canvas(1, 2, size=(12, 5))
    by = figures["systems"]["policy"]["by"]
    names, shares = [], []
    for kind in ("popularity", "hops", "dataset"):
        for value, means in by.get(kind, {}).items():
            names.append(f"{kind} {value}")
            shares.append(means["retrievals_per_question"])
    axes.flat[0].barh(names[::-1], shares[::-1])
    axes.flat[0].set(title="retrievals per question of the policy")
    roles = figures["decision"]["counterfactuals"]
    for offset, measure in ((-0.2, "em"), (0.2, "reward")):
        gains = [role["gain"][measure] for role in roles.values()]
        means = [gain["mean"] for gain in gains]
        error = [[g["mean"] - g["low"] for g in gains], [g["high"] - g["mean"] for g in gains]]
        axes.flat[1].bar([i + offset for i in range(len(roles))], means, 0.4, yerr=error, label=measure)
    axes.flat[1].set_xticks(range(len(roles)), [f"perfect {role}" for role in roles])
    axes.flat[1].set(title="gain over the policy")
    axes.flat[1].legend()
    figure.savefig(path, dpi=110)


def canvas(rows: int, columns: int, size: tuple[float, float], sharey: bool = False) -> tuple[Any, Any]:
    """A figure of its own, known to no global state, and its axes as an array."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, sharey=sharey)


def _popularity(axis: Any, summary: Mapping[str, Any]) -> None:
    width = 0.4
    for i, system in enumerate(("before", "after")):
        shares = (summary.get(system) or {}).get("retrieval_rate_by_popularity_fifth")
        if shares:
            axis.bar([f + (i - 0.5) * width for f in range(5)], shares, width, color=f"C{i + 1}", label=system)
            axis.legend(fontsize=7)
    axis.set(title="share of questions that retrieve", xlabel="fifth of popularity, least known first", ylim=(0, 1))
    axis.set_xticks(range(5))


def smooth(values: Sequence[float]) -> list[float]:
    """Gaussian-weighted means of neighbours, a fortieth of the steps wide (one standard deviation), without lag."""
    from scipy.ndimage import gaussian_filter1d

    return list(gaussian_filter1d(np.asarray(values, float), max(1.0, len(values) / 40), mode="nearest"))
