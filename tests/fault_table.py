"""The table of faults: each test that is marked `fault` plays a row of it; the session ends with what came of them all.

    @pytest.mark.fault("L1", "a learner rank is killed in an update")
    def test_...(row: Row):
        row.trial(recovery_s=1.2)

A test that records no trial of its own is one, survived when it passes. `--trials N` multiplies the trials of those
that draw faults by a seed. What the letters mean is in docs/faults.md.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, cast

import numpy as np
import pytest
from rich import box
from rich.console import Console
from rich.table import Table


@dataclass(slots=True)
class Row:
    number: str
    fault: str
    machines: bool  # real processes, else played through without any
    trials: int = 0
    survived: int = 0
    lost: int = 0  # episodes that never came
    doubled: int = 0  # episodes that came twice
    recovery_s: list[float] = field(default_factory=list)  # from the fault to work that is done again

    def trial(self, *, survived: bool = True, lost: int = 0, doubled: int = 0, recovery_s: float | None = None) -> None:
        self.trials += 1
        self.survived += survived
        self.lost += lost
        self.doubled += doubled
        self.recovery_s += [] if recovery_s is None else [recovery_s]

    def add(self, other: "Row") -> None:
        self.trials += other.trials
        self.survived += other.survived
        self.lost += other.lost
        self.doubled += other.doubled
        self.recovery_s += other.recovery_s


ROW = pytest.StashKey[Row]()
PROPERTY = "fault"  # of a test's report, which comes to the one terminal from whichever process ran the test


def row_of(item: pytest.Item) -> Row | None:
    """The row that a test plays, if it plays one."""
    mark = item.get_closest_marker("fault")
    if mark is None:
        return None
    number, fault = mark.args
    return item.stash.setdefault(ROW, Row(number, fault, item.get_closest_marker("slow") is not None))


def judged(item: pytest.Item, passed: bool) -> None:
    """Books the outcome of a test that plays a row, and gives it to the test's report."""
    row = row_of(item)
    if row is None:
        return
    if not (row.trials and passed):
        row.trial(survived=passed)
    item.user_properties.append((PROPERTY, asdict(row)))


def played(reports: Iterable[pytest.TestReport]) -> list[Row]:
    """Every row that was played, with all of its tests' trials."""
    rows: dict[tuple[str, str], Row] = {}
    for report in reports:
        for given in (value for name, value in report.user_properties if name == PROPERTY and report.when == "call"):
            row = Row(**cast(dict[str, Any], given))
            if row.trials:
                rows.setdefault((row.number, row.fault), Row(row.number, row.fault, row.machines)).add(row)
    return list(rows.values())


def shown(rows: list[Row]) -> str:
    table = Table(box=box.SIMPLE, title=f"{len(rows)} faults, {sum(row.trials for row in rows):,} trials")
    for name in ("", "fault", "played with", "trials", "survived", "lost", "doubled", "recovery p50, p95"):
        table.add_column(name, justify="left" if name in ("", "fault", "played with") else "right")
    for row in sorted(rows, key=lambda row: (row.number[0], int(row.number[1:]))):
        took = " ".join(f"{x:.1f} s" for x in np.percentile(row.recovery_s, [50, 95])) if row.recovery_s else ""
        counts = (f"{x:,}" for x in (row.trials, row.survived, row.lost, row.doubled))
        table.add_row(row.number, row.fault, "real processes" if row.machines else "no machines", *counts, took)
    console = Console(width=150)
    with console.capture() as capture:
        console.print(table)
    return capture.get()
