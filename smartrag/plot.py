"""curves.png: what changed over a run, for people who would rather look than read."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_CURVES = (
    ("reward", "reward per question"),
    ("em", "exact match"),
    ("retrievals_per_question", "retrievals per question"),
    ("hit_rate", "hit rate of retrievals"),
    ("kl_ref", "KL to the reference, nats a token"),
)
_POINTS = ("before", "after", "never", "always")


def curves(rows: Sequence[Mapping[str, Any]], summary: Mapping[str, Any], path: Path) -> None:
    """Five curves over the training steps, with the test figures beside them, and retrieval by popularity."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 3, figsize=(15, 8), constrained_layout=True)
    for axis, (name, title) in zip(axes.flat, _CURVES, strict=False):
        points = [(row["step"], row[name]) for row in rows if name in row]
        if points:
            steps, values = zip(*points, strict=True)
            axis.plot(steps, values, color="0.75", linewidth=1)
            axis.plot(steps, _smooth(values), color="C0", label="training")
        for i, system in enumerate(_POINTS):
            figures = (summary.get(system) or {}).get(name)
            if figures:
                axis.axhline(figures["mean"], color=f"C{i + 1}", linestyle="--", linewidth=1, label=f"test: {system}")
        axis.set(title=title, xlabel="PPO step")
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=7)
    _popularity(axes.flat[-1], summary)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _popularity(axis: Any, summary: Mapping[str, Any]) -> None:
    width = 0.4
    for i, system in enumerate(("before", "after")):
        shares = (summary.get(system) or {}).get("retrieval_rate_by_popularity_fifth")
        if shares:
            axis.bar([f + (i - 0.5) * width for f in range(5)], shares, width, color=f"C{i + 1}", label=system)
            axis.legend(fontsize=7)
    axis.set(title="share of questions that retrieve", xlabel="fifth of popularity, least known first", ylim=(0, 1))
    axis.set_xticks(range(5))


def _smooth(values: Sequence[float], weight: float = 0.9) -> list[float]:
    """Exponential moving average, corrected for its start as Adam's moments are (Kingma & Ba 2015)."""
    out, mean = [], 0.0
    for i, value in enumerate(values, start=1):
        mean = weight * mean + (1 - weight) * value
        out.append(mean / (1 - weight**i))
    return out
