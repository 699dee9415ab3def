"""The table of faults: each test that is marked `fault` plays a row of it; the session ends with what came of them all.

    @pytest.mark.fault("L1", "a learner rank is killed in an update")
    def test_...(row: Row):
        row.trial(recovery_s=1.2)

A test that records no trial of its own is one, survived when it passes. `--trials N` multiplies the trials of those
that draw faults by a seed. What the letters mean is in docs/faults.md.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

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


ROWS = pytest.StashKey[dict[tuple[str, str], Row]]()


def row_of(item: pytest.Item) -> Row | None:
    """The row that a test plays, if it plays one."""
    mark = item.get_closest_marker("fault")
    if mark is None:
        return None
    rows = item.config.stash.setdefault(ROWS, {})
    number, fault = mark.args
    return rows.setdefault((number, fault), Row(number, fault, item.get_closest_marker("slow") is not None))


def judged(item: pytest.Item, before: int, passed: bool) -> None:
    """Books the outcome of a test that plays a row, which had `before` trials when it began."""
    row = row_of(item)
    if row is not None and (row.trials == before or not passed):
        row.trial(survived=passed)


def shown(rows: Sequence[Row]) -> str:
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


def played(config: pytest.Config) -> Iterator[Row]:
    """Rows of which at least one trial was played."""
    return (row for row in config.stash.get(ROWS, {}).values() if row.trials)
