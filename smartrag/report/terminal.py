"""The outcome of a run and single episodes, as text for people."""

import os
from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from smartrag.evaluation.evaluate import COSTS, MEASURES
from smartrag.report.record import SYSTEMS
from smartrag.types import Empty, Episode


def wide(columns: int) -> Console:
    """The terminal; where there is none, and COLUMNS does not say, as many columns as a table wants."""
    console = Console()
    return console if console.is_terminal or "COLUMNS" in os.environ else Console(width=columns)


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
        table.add_row(measure, *(spelled(summary[name][measure]) for name in systems))
    console = Console(width=126)
    with console.capture() as capture:
        console.print(table)
        for name, figures in summary.get("difference", {}).items():
            console.print(f"reward, {name.replace('_', ' ')} (paired): {spelled(figures)}")
        for name in systems:
            shares = summary[name].get("retrieval_rate_by_popularity_fifth")
            if shares and name in ("before", "after"):
                told = "  ".join(f"{share:.2f}" for share in shares)
                console.print(f"share that retrieves, least to most popular fifth, {name}: {told}")
        if "seconds" in summary:
            spent = "  ".join(f"{phase} {seconds:.0f}" for phase, seconds in summary["seconds"].items())
            console.print(f"seconds: {spent}")
    return capture.get()


def comparison(figures: Mapping[str, Any]) -> str:
    """What `compare` found: systems, groups, gates, and what the decisions are worth."""
    console = Console(width=170)
    with console.capture() as capture:
        console.print(_systems(figures))
        console.print(_groups(figures["systems"]["policy"]["by"]))
        if "gates" in figures:
            console.print(_gates(figures["gates"]))
        console.print(_counterfactuals(figures))
        decision = figures["decision"]
        for name in ("necessity", "hit_and_right"):
            cells = "   ".join(f"{c['row']} & {c['column']} {_number(c['share'])}" for c in decision[name])
            console.print(f"{name}: {cells}")
        rates = {
            name: x for name, x in decision.items() if name not in ("necessity", "hit_and_right", "counterfactuals")
        }
        console.print("   ".join(f"{name} {_number(x)}" for name, x in rates.items()))
    return capture.get()


def _systems(figures: Mapping[str, Any]) -> Table:
    systems = figures["systems"]
    table = Table(title=f"{figures['questions']} test questions, mean [95 % interval]", box=box.SIMPLE)
    for name in ("", *systems):
        table.add_column(name, justify="right" if name else "left")
    for measure in (*MEASURES, *COSTS):
        with_interval = measure in ("reward", "em", "f1", "retrievals_per_question")
        cells = [of_one[measure] for of_one in systems.values()]
        table.add_row(measure, *(spelled(x) if with_interval else _number((x or {}).get("mean")) for x in cells))
    gaps = [figures["differences"].get(f"policy_minus_{name}", {}).get("reward") for name in systems]
    table.add_row("policy's reward minus its", *map(spelled, gaps))
    return table


def _groups(by: Mapping[str, Any]) -> Table:
    shown = ("reward", "em", "f1", "retrievals_per_question", "hit_rate")
    table = Table(title="the policy by kind of question", box=box.SIMPLE)
    for name in ("", "value", "n", *shown):
        table.add_column(name, justify="right" if name in ("n", *shown) else "left")
    for kind, groups in by.items():
        for value, means in groups.items():
            table.add_row(kind, value, f"{means['n']:.0f}", *(_number(means.get(name)) for name in shown))
    return table


def _gates(gates: Mapping[str, Any]) -> Table:
    table = Table(title="threshold gates: tuned on dev for reward; differences are policy minus gate", box=box.SIMPLE)
    columns = ("gate", "area: EM", "area: reward", "tuned: retrievals", "EM", "reward", "calls", "difference in reward")
    for name in (*columns, "difference in EM at the policy's retrievals"):
        table.add_column(name, justify="left" if name == "gate" else "right")
    for name, gate in sorted(gates.items(), key=lambda item: -item[1]["tuned"]["reward"]["mean"]):
        tuned = gate["tuned"]
        chosen = (tuned[m]["mean"] for m in ("retrievals_per_question", "em", "reward", "model_calls"))
        gaps = (tuned["policy_minus_this"]["reward"], gate["matched"]["policy_minus_this"]["em"])
        areas = (gate["auc"][m] for m in ("em", "reward"))
        table.add_row(name, *map(_number, areas), *map(_number, chosen), *map(spelled, gaps))
    return table


def _counterfactuals(figures: Mapping[str, Any]) -> Table:
    table = Table(title="the policy with one role made perfect", box=box.SIMPLE)
    for name in ("perfect", "EM", "reward", "retrievals", "gain in EM", "gain in reward"):
        table.add_column(name, justify="left" if name == "perfect" else "right")
    for role, found in figures["decision"]["counterfactuals"].items():
        means = (found[m]["mean"] for m in ("em", "reward", "retrievals_per_question"))
        table.add_row(role, *map(_number, means), *(spelled(found["gain"][m]) for m in ("em", "reward")))
    return table


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


def _number(x: float | None) -> str:
    return "-" if x is None else f"{x:.3f}"


def spelled(figures: Mapping[str, float] | None) -> str:
    """A mean and its interval; a dash for none."""
    return "-" if figures is None else f"{figures['mean']:.3f} [{figures['low']:.3f}, {figures['high']:.3f}]"
