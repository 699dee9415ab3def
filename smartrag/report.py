"""The outcome of a run and single episodes, as text for people."""

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from smartrag.evaluate import MEASURES
from smartrag.types import Empty, Episode

SYSTEMS = ("before", "after", "never", "always")


def as_text(summary: Mapping[str, Any]) -> str:
    """Measures by system with their 95 % intervals, the paired differences, and retrieval by popularity."""
    systems = [name for name in SYSTEMS if name in summary]
    if not systems:
        return "nothing was evaluated"
    table = Table(title=f"{summary[systems[0]]['n']} test questions, mean [95 % interval]", box=box.SIMPLE)
    table.add_column("")
    for name in systems:
        table.add_column(name, justify="right")
    for measure in MEASURES:
        table.add_row(measure, *(_figures(summary[name][measure]) for name in systems))
    console = Console(width=126)
    with console.capture() as capture:
        console.print(table)
        for name, figures in summary.get("difference", {}).items():
            console.print(f"reward, {name.replace('_', ' ')} (paired): {_figures(figures)}")
        for name in systems:
            shares = summary[name].get("retrieval_rate_by_popularity_fifth")
            if shares and name in ("before", "after"):
                spelled = "  ".join(f"{share:.2f}" for share in shares)
                console.print(f"share that retrieves, least to most popular fifth, {name}: {spelled}")
        if "seconds" in summary:
            spent = "  ".join(f"{phase} {seconds:.0f}" for phase, seconds in summary["seconds"].items())
            console.print(f"seconds: {spent}")
    return capture.get()


def conversation(episode: Episode) -> str:
    """An episode as one reads it: decision, query, passages, answer."""
    lines = [f"Question   {episode.question.text}"]
    for turn in episode.turns:
        tag = " (forced)" if turn.forced else ""
        lines.append(f"{turn.action.kind.capitalize():<10} {turn.action.text}{tag}")
        for passage in getattr(turn.retrieved, "passages", ()):
            title, _, text = passage.contents.partition("\n")
            lines.append(f"  {passage.score:6.2f}   {title}: {text}")
        if isinstance(turn.retrieved, Empty):
            lines.append("           nothing found")
    return "\n".join(lines)


def _figures(figures: Mapping[str, float] | None) -> str:
    return "-" if figures is None else f"{figures['mean']:.3f} [{figures['low']:.3f}, {figures['high']:.3f}]"
