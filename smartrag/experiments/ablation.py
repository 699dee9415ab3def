"""What each role of the policy is worth to it: rows that train some of the roles, and the joint policy against each.

    decision, query, answer     one role; the weights of the warm-up play the others
    decision+query, ...         two
    all                         the three jointly
    composed                    the policies of the single rows put together, each in its own role

All start from the same warm-up, one a seed, and are trained on the same number of episodes. `composed` is not trained;
its parts have each had that number. A part whose row is not among the rows is the warm-up's.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from smartrag import compose
from smartrag.arguments import refuse
from smartrag.check import check
from smartrag.choices import Role
from smartrag.commands import Ablation
from smartrag.config import Run
from smartrag.evaluation.evaluate import interval, pooled
from smartrag.log import COLUMNS
from smartrag.report.plot import canvas
from smartrag.report.terminal import spelled

ALL, COMPOSED, WARMUP = "all", "composed", "warm-up"
# Row -> the roles it trains: each, each pair, all three.
ROWS = {"+".join(some): some for size in (1, 2) for some in combinations(Role, size)} | {ALL: tuple(Role)}
SINGLES = tuple(str(role) for role in Role)


# ---------------------------------------------------------------------------------------------------------------------
# what is compared


def load(arguments: Sequence[str]) -> tuple[Ablation, Run]:
    """The ablation and the run it varies, from a command line. Raises ConfigError, with every problem of the first."""
    settings, run, _ = compose.load_beside(Ablation, "ablate.yaml", arguments)
    problems = [*_problems(settings, run)]
    problems += [f"{a}: an ablation has several; write seeds=[...]" for a in arguments if a.startswith("seed=")]
    refuse(problems)
    return settings, run


def _problems(settings: Ablation, run: Run) -> Iterator[str]:
    known = [*ROWS, COMPOSED]
    for name, given in (("seeds", settings.seeds), ("rows", settings.rows)):
        if not given or len({*given}) < len(given):
            yield f"{name} must name one or more, each once, got [{','.join(map(str, given))}]"
    for row in settings.rows:
        if row not in known:
            yield f"rows: there is no row {row!r}; there are: {', '.join(known)}"
    if COMPOSED in settings.rows and not {*SINGLES} & {*settings.rows}:
        yield f"rows: {COMPOSED} puts single rows together; add some of {', '.join(SINGLES)}"
    if run.algorithm.frozen:
        yield f"algorithm.trains=[{','.join(run.algorithm.trains)}]: here the rows say what is trained; leave it out"
        return
    seen: set[str] = set()
    for seed in settings.seeds:
        for row in [row for row in settings.rows if row in known]:
            found = check(row_run(run, row, seed, Path("policy"), Path("rows")))
            new = [problem for problem in found if problem not in seen]
            seen |= {*new}
            yield from (f"row {row}, seed {seed}: {problem}" for problem in new)


def row_run(run: Run, row: str, seed: int, policy: Path, runs: Path) -> Run:
    """The run of one row, from the warmed-up weights in `policy`; its folder goes to `runs`. The fixed gates are left
    out: rows are compared with each other."""
    return replace(
        run,
        name=row,
        runs=str(runs),
        seed=seed,
        resume=None,
        model=replace(run.model, path=str(policy), fallback=None),
        algorithm=replace(run.algorithm, trains=list(ROWS.get(row, tuple(Role)))),
        warmup=replace(run.warmup, steps=0),
        train=replace(run.train, gates=False),
    )


# ---------------------------------------------------------------------------------------------------------------------
# what came of it


@dataclass(frozen=True, slots=True)
class Outcome:
    """One row with one seed, evaluated on the test questions."""

    row: str
    seed: int
    run: str  # its folder
    episodes: int  # that it, or its parts together, were trained on
    measures: Mapping[str, Any]  # evaluate.summary of the test questions
    columns: Mapping[str, np.ndarray]  # COLUMNS -> [n] values, one a test question, in the same order in every row


def as_json(outcomes: Sequence[Outcome], episodes: int, warmup: Mapping[int, str]) -> dict[str, Any]:
    """ablation.json. `episodes`: those of one training; `warmup`: seed -> the policy all rows began as.

    The warm-up itself is a row that trains nothing. Differences are the joint policy's on the same questions; without a
    seed they are those over all seeds.
    """
    rows = [
        {
            "trained": COMPOSED if o.row == COMPOSED else list(ROWS.get(o.row, ())),
            "seed": o.seed,
            "run": o.run,
            "episodes": o.episodes,
            **o.measures,
        }
        for o in outcomes
    ]
    by_row, differences = _by_row(outcomes), []
    for row in by_row:
        gains = {name: _gains(by_row, row, name) for name in COLUMNS}
        for seed in gains["reward"]:
            found = {name: interval(of[seed], seed) for name, of in gains.items()}
            differences.append({"all_minus": row, "seed": seed, **found})
        if gains["reward"]:
            found = {name: pooled([*of.values()]) for name, of in gains.items()}
            differences.append({"all_minus": row, "seed": None, **found})
    return {"episodes": episodes, "warmup": dict(warmup), "rows": rows, "differences": differences}


def as_text(outcomes: Sequence[Outcome], episodes: int) -> str:
    """Each row over all seeds with 95 % intervals, and what the joint policy earns above it on the same questions."""
    by_row = _by_row(outcomes)
    seeds, n = len({o.seed for o in outcomes}), len(outcomes[0].columns["reward"])
    title = f"{n} test questions, {seeds} seed(s), {episodes:,} episodes a training, mean [95 % interval]"
    table = Table(title=title, box=box.SIMPLE)
    for name in (
        "trained",
        "episodes",
        "reward",
        "em",
        "retrievals",
        *(["all minus it: reward"] if ALL in by_row else []),
    ):
        table.add_column(name, justify="left" if name == "trained" else "right")
    for row, members in by_row.items():
        shown = [spelled(pooled([o.columns[m] for o in members])) for m in ("reward", "em", COLUMNS[3])]
        gains = [*_gains(by_row, row, "reward").values()]
        shown += [spelled(pooled(gains))] if ALL in by_row else []
        table.add_row(row, f"{members[0].episodes:,}", *shown)
    console = Console(width=126)
    with console.capture() as capture:
        console.print(table)
        if seeds > 1:
            for row in by_row:
                by_seed = [f"{gain.mean():+.3f}" for gain in _gains(by_row, row, "reward").values()]
                if by_seed:
                    console.print(f"reward, all minus {row}, by seed: {' '.join(by_seed)}")
        if COMPOSED in by_row:
            parts = by_row[COMPOSED][0].episodes // max(1, episodes)
            console.print(
                f"{COMPOSED} is {parts} of the single rows' policies, each in its own role; together they had {parts} "
                "times the episodes of any other row."
            )
    return capture.get()


def picture(outcomes: Sequence[Outcome], path: Path) -> None:
    """Reward, exact match and retrievals of each row: the mean over seeds with its interval, and each seed as a dot."""
    by_row = _by_row(outcomes)
    figure, axes = canvas(1, 3, size=(14, 1.5 + 0.4 * len(by_row)), sharey=True)
    shown = (("reward", "reward per question"), ("em", "exact match"), (COLUMNS[3], "retrievals per question"))
    for axis, (name, title) in zip(axes.flat, shown, strict=True):
        for y, members in enumerate(by_row.values()):
            found = pooled([o.columns[name] for o in members])
            assert found is not None
            spread = [[found["mean"] - found["low"]], [found["high"] - found["mean"]]]
            axis.errorbar(found["mean"], y, xerr=spread, fmt="s", color="C0", capsize=3)
            axis.plot([o.columns[name].mean() for o in members], [y] * len(members), ".", color="0.6")
        axis.set(title=title, yticks=range(len(by_row)), yticklabels=list(by_row))
    axes.flat[0].invert_yaxis()
    figure.savefig(path, dpi=110)


def _by_row(outcomes: Sequence[Outcome]) -> dict[str, list[Outcome]]:
    order = [WARMUP, *ROWS, COMPOSED]
    found = {row: [o for o in outcomes if o.row == row] for row in order}
    return {row: members for row, members in found.items() if members}


def _gains(by_row: Mapping[str, Sequence[Outcome]], row: str, name: str) -> dict[int, np.ndarray]:
    """Seed -> [n] values of the joint policy less those of `row`; nothing for the joint policy itself."""
    pairs = [(joint, o) for joint in by_row.get(ALL, ()) for o in by_row[row] if joint.seed == o.seed and row != ALL]
    return {o.seed: joint.columns[name] - o.columns[name] for joint, o in pairs}
