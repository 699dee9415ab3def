"""Studies of a policy as parts of report.html: evaluations, sweeps and ablations, recognised by what their JSON holds.

evaluation.json   {"systems": {name: {"n", measure: {mean, low, high}, "by": {dimension: {value: {...}}}}},
                   "differences": {"policy_minus_<other>": {measure: {...}}},
                   "gates": {gate: {"auc", "curve": [...], "tuned"}}, "decision": {...}, ...}
frontier.json     {"setting", "points": [{"value", "seed", "run", measure: {...}}]}, of a sweep
ablation.json     {"episodes", "rows": [{"trained": [role, ...] | "composed", "seed", "run", measure: {...}}]}
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smartrag import figures
from smartrag.figures import Curve, Key, Picture, Spot
from smartrag.record import COMPARED
from smartrag.tables import LABELS, Cell, Table, groups, label, measures

_FRONTIER = ("em", "reward")  # what gates' curves are drawn for


@dataclass(slots=True)
class Study:
    """A part of the page: pictures with their legend, tables, and tables that open on demand."""

    title: str
    facts: list[str] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    keys: list[Key] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    more: list[Table] = field(default_factory=list)


def study(found: Mapping[str, Any], name: str) -> Study:
    """The study that a JSON object holds, whichever kind it is. Raises ValueError for none of the three."""
    if isinstance(found.get("systems"), Mapping):
        return evaluation(found, name)
    if isinstance(found.get("points"), Sequence):
        return sweep(found, name)
    if isinstance(found.get("rows"), Sequence):
        return ablation(found, name)
    raise ValueError(
        f'{name} is neither an evaluation (it has no "systems"), nor a sweep ("points"), nor an ablation ("rows"); '
        "give an evaluation.json, a frontier.json or an ablation.json"
    )


def evaluation(found: Mapping[str, Any], name: str, sweeps: Sequence[Mapping[str, Any]] = ()) -> Study:
    """An evaluation.json. The points of `sweeps` are drawn beside its gates, on exact match, which knows no price."""
    systems, gates = found["systems"], found.get("gates") or {}
    out = Study(f"Evaluation “{name}”")
    out.facts = [f"{found['questions']:,} questions"] if isinstance(found.get("questions"), int) else []
    out.facts += [Path(str(found["checkpoint"])).name] if found.get("checkpoint") else []
    out.facts += [f"{key}={value}" for key, value in (found.get("settings") or {}).items()]
    for measure in _FRONTIER:
        if picture := _frontier(systems, gates, sweeps if measure == "em" else (), measure, out.title):
            out.pictures.append(picture)
    out.keys = [figures.key(s, list(systems)) for s in systems]
    out.keys += [Key(figures.GATE_INKS[i % len(figures.GATE_INKS)], f"gate: {gate}") for i, gate in enumerate(gates)]
    out.keys += [Key("ink", f"sweep of {one.get('setting')}") for one in sweeps]
    out.tables = [measures(systems, list(LABELS), "Systems, mean [95 % interval]")]
    gaps = found.get("differences") or {}
    shown = [m for m in LABELS if any(m in of for of in gaps.values())]
    body = [[pair.replace("_", " "), *(of.get(m) for m in shown)] for pair, of in gaps.items()]
    out.tables += [Table("Paired differences", ["", *map(label, shown)], body, signed=True), _gates(gates)]
    out.tables += _decision(found.get("decision") or {})
    out.more = [*_by(systems), *_records(found)]
    return out


def sweep(found: Mapping[str, Any], name: str) -> Study:
    """A frontier.json: every point, and exact match against retrievals."""
    setting, points = str(found.get("setting")), [p for p in found["points"] if isinstance(p, Mapping)]
    out = Study(f"Sweep of {setting}", [name])
    values = list(dict.fromkeys(point.get("value") for point in points))
    inks = {value: figures.GATE_INKS[i % len(figures.GATE_INKS)] for i, value in enumerate(values)}
    for measure in _FRONTIER:
        if spots := [s for p in points if (s := _spot(p, inks[p.get("value")], measure))]:
            title = f"{label(measure)} against retrievals, sweep of {setting}, {name}"
            out.pictures.append(figures.standing(spots, title, label(measure)))
    out.keys = [Key(ink, f"{setting} = {value}") for value, ink in inks.items()]
    out.tables = [_runs("Points of the sweep, one a run", points, "value")]
    return out


def ablation(found: Mapping[str, Any], name: str) -> Study:
    """An ablation.json: every row, and its rewards with their intervals."""
    rows = [
        {
            **row,
            "trained": trained if isinstance(trained := row.get("trained"), str) else " + ".join(trained or ["none"]),
        }
        for row in found["rows"]
        if isinstance(row, Mapping)
    ]
    out = Study("Ablation: what was trained", [name])
    if isinstance(found.get("episodes"), int):
        out.facts.append(f"{found['episodes']:,} episodes each")
    lines = [(f"{r['trained']}, seed {r.get('seed')}", r["reward"], "after") for r in rows if r.get("reward")]
    if lines:
        out.pictures = [figures.forest(lines, f"reward by what was trained, {name}", "reward", zero=False)]
    out.tables = [_runs("Rows of the ablation, one a run", rows, "trained")]
    return out


def _frontier(
    systems: Mapping[str, Any], gates: Mapping[str, Any], sweeps: Sequence[Mapping[str, Any]], measure: str, title: str
) -> Picture | None:
    curves = []
    for gate, of in gates.items():
        points = [(p.get("retrievals_per_question"), p.get(measure)) for p in of.get("curve") or ()]
        known = [(x, y) for x, y in points if x is not None and y is not None]
        if known:
            curves.append(Curve(figures.ink_of(gate, list(gates)), known, figures.dashes_of(gate, list(gates))))
    for one in sweeps:
        spots = [s for p in one["points"] if (s := _spot(p, "ink", measure))]
        if spots:
            curves.append(Curve("ink", [(s.x["mean"], s.y["mean"]) for s in spots], ":"))
    spots = [s for name, of in systems.items() if (s := _spot(of, figures.ink_of(name, list(systems)), measure))]
    if not spots and not curves:
        return None
    return figures.standing(spots, f"{label(measure)} against retrievals, {title}", label(measure), curves)


def _spot(of: Mapping[str, Any], ink: str, measure: str) -> Spot | None:
    x, y = of.get("retrievals_per_question"), of.get(measure)
    return Spot(ink, x, y) if x and y else None


def _gates(gates: Mapping[str, Any]) -> Table:
    """Area under each gate's curve, and the gate at its tuned threshold."""
    rows: list[list[Cell]] = []
    for gate, of in gates.items():
        area, tuned = of.get("auc") or {}, of.get("tuned") or {}
        row = [gate, area.get("em"), area.get("f1"), area.get("reward"), tuned.get("threshold")]
        rows.append([*row, *(tuned.get(m) for m in COMPARED)])
    head = ["", "AUC EM", "AUC F1", "AUC reward", "tuned threshold", *(f"tuned: {label(m)}" for m in COMPARED)]
    return Table("Threshold gates", head, rows)


def _decision(found: Mapping[str, Any]) -> list[Table]:
    """Numbers in one table; lists of {row, column, share} each as a table of their own."""
    numbers: list[list[Cell]] = []
    tables = []
    for name, value in found.items():
        if isinstance(value, list):
            tables.append(_crossed(name, value))
        elif isinstance(value, Mapping) and "mean" not in value:
            numbers += [[f"{label(name)}: {label(str(key))}", inner] for key, inner in value.items()]
        else:
            numbers.append([label(name), value])
    return [Table("Decisions", ["", ""], numbers), *tables]


def _crossed(name: str, cells: Sequence[Mapping[str, Any]]) -> Table:
    share = {(str(c.get("row")), str(c.get("column"))): c.get("share") for c in cells}
    down, across = (list(dict.fromkeys(key[i] for key in share)) for i in (0, 1))
    body = [[row, *(share.get((row, column)) for column in across)] for row in down]
    return Table(f"{label(name)}: share of questions", ["", *across], body)


def _by(systems: Mapping[str, Any]) -> list[Table]:
    """For each dimension (data set, hops, type, popularity): the systems in each group."""
    dimensions = dict.fromkeys(dimension for of in systems.values() for dimension in of.get("by") or {})
    return [
        groups({name: (of.get("by") or {}).get(d) or {} for name, of in systems.items()}, d, f"By {d}")
        for d in dimensions
    ]


def _records(found: Mapping[str, Any]) -> list[Table]:
    spent, installed = found.get("seconds") or {}, found.get("versions") or {}
    return [
        Table("Seconds of the evaluation", ["", "seconds"], [[phase, s] for phase, s in spent.items()]),
        Table("Versions of the evaluation", ["", "installed"], [[name, v] for name, v in installed.items()]),
    ]


def _runs(caption: str, rows: Sequence[Mapping[str, Any]], first: str) -> Table:
    shown = [m for m in LABELS if any(m in row for row in rows)]
    body = [[row.get(first), row.get("seed"), *(row.get(m) for m in shown), _short(row.get("run"))] for row in rows]
    return Table(caption, [first, "seed", *map(label, shown), "run"], body)


def _short(run: Any) -> str:
    """The last two parts of a run's path: experiment/id."""
    return "/".join(Path(str(run)).parts[-2:]) if run else ""
