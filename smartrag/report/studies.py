"""Studies of a policy as parts of report.html: evaluations, sweeps and ablations, recognised by what their JSON holds.

evaluation.json   {"systems": {name: {"n", measure: {mean, low, high}, "by": {dimension: {value: {...}}}}},
                   "differences": {"policy_minus_<other>": {measure: {...}}},
                   "gates": {gate: {"auc", "curve": [...], "tuned", "matched"}}, "decision": {...}, ...}
frontier.json     of a sweep: {"setting", "points": [{"value", "seed", "run", measure: {...}}],
                   "curve": [{"value", "seeds", measure: {...}}]}
ablation.json     {"episodes", "rows": [{"trained": [role, ...] | "composed", "seed", "run", measure: {...}}],
                   "differences": [{"all_minus", "seed" | null, measure: {...}}]}
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smartrag.report import figures
from smartrag.report.figures import Curve, Key, Picture, Spot
from smartrag.report.record import COMPARED
from smartrag.report.tables import LABELS, Table, groups, label, measures

_FRONTIER = ("em", "reward")  # what gates' curves are drawn for
_ROLE_MEASURES = ("reward", "em", "f1", "retrievals_per_question")
_RATES = {
    "over_search": "of what it knows closed-book, searched for all the same",
    "under_search": "of what it knows only with retrieval, not searched for",
    "retrievals_for_known": "of what it searches for, known closed-book",
    "retrievals_without_answer": "of what it searches for, no answer in the passages",
    "right_decisions": "of what can be answered, decided rightly",
}


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
    differences, decision = found.get("differences") or {}, found.get("decision") or {}
    out = Study(f"Evaluation “{name}”", _about(found))
    for measure in _FRONTIER:
        if picture := _frontier(systems, gates, sweeps if measure == "em" else (), measure, out.title):
            out.pictures.append(picture)
    out.pictures += _gains(differences, gates, decision, out.title)
    out.keys = [figures.key(s, list(systems)) for s in systems]
    out.keys += [Key(figures.ink_of(gate, list(gates)), f"gate {gate}", "▬") for gate in gates]
    out.keys += [Key("ink", f"sweep of {one.get('setting')}", "▬") for one in sweeps]
    shown = [m for m in LABELS if any(m in of for of in differences.values())]
    body = [[pair.replace("_", " "), *(of.get(m) for m in shown)] for pair, of in differences.items()]
    out.tables = [
        measures(systems, list(LABELS), "Systems, mean [95 % interval]"),
        Table("Paired differences", ["", *map(label, shown)], body, signed=True),
        *_gates(gates),
        *_decision(decision),
    ]
    out.more = [*_by(systems), *_records(found)]
    return out


def sweep(found: Mapping[str, Any], name: str) -> Study:
    """A frontier.json: every point with the fixed gates of the first, on measures that know no price of a retrieval."""
    setting, points = str(found.get("setting")), found["points"]
    out = Study(f"Sweep of {setting}", [name, f"{len(points)} runs"])
    values = list(dict.fromkeys(point.get("value") for point in points))
    inks = {value: figures.GATE_INKS[i % len(figures.GATE_INKS)] for i, value in enumerate(values)}
    fixed = {system: points[0][system] for system in ("never", "always") if points and points[0].get(system)}
    for measure in ("em", "f1"):
        shown = [(p, inks[p.get("value")]) for p in points] + [(of, system) for system, of in fixed.items()]
        spots = [s for of, ink in shown if (s := _spot(of, ink, measure))]
        curve = [(s.x["mean"], s.y["mean"]) for of in found.get("curve") or () if (s := _spot(of, "ink", measure))]
        if spots:
            title = f"{label(measure)} against retrievals, sweep of {setting}, {name}"
            lines = [Curve("ink", curve, ":")] if curve else []
            out.pictures.append(figures.standing(spots, title, label(measure), lines))
    out.keys = [Key(ink, f"{setting} = {value}", "✚") for value, ink in inks.items()]
    out.keys += [figures.key(system) for system in fixed]
    out.tables = [
        _runs("Points of the sweep, one a run", points, ("value", "seed")),
        _runs("All seeds of a value together", _plain_seeds(found.get("curve") or ()), ("value", "seeds")),
    ]
    return out


def ablation(found: Mapping[str, Any], name: str) -> Study:
    """An ablation.json: every row, its rewards with their intervals, and the joint policy minus each row's."""
    rows = [{**row, "trained": _trained(row.get("trained"))} for row in found["rows"]]
    out = Study("Ablation: what was trained", [name, f"{len(rows)} rows"])
    if isinstance(found.get("episodes"), int):
        out.facts.append(f"{found['episodes']:,} episodes a training")
    lines = [(f"{r['trained']}, seed {r.get('seed')}", r["reward"], "after") for r in rows if r.get("reward")]
    if lines:
        out.pictures = [figures.forest(lines, f"reward by what was trained, {name}", "reward", zero=False)]
    gaps = [{**of, "seed": "all" if of.get("seed") is None else of["seed"]} for of in found.get("differences") or ()]
    out.tables = [
        _runs("Rows of the ablation, one a run", rows, ("trained", "seed")),
        _runs("All roles together, minus the row, paired", gaps, ("all_minus", "seed"), signed=True),
    ]
    return out


def _trained(roles: str | Sequence[str] | None) -> str:
    return roles if isinstance(roles, str) else " + ".join(roles or ["nothing"])


def _plain_seeds(curve: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    return [{**of, "seeds": ", ".join(map(str, of.get("seeds") or ()))} for of in curve]


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
        spots = [s for p in one.get("curve") or one["points"] if (s := _spot(p, "ink", measure))]
        if spots:
            curves.append(Curve("ink", [(s.x["mean"], s.y["mean"]) for s in spots], ":"))
    spots = [s for name, of in systems.items() if (s := _spot(of, figures.ink_of(name, list(systems)), measure))]
    if not spots and not curves:
        return None
    return figures.standing(spots, f"{label(measure)} against retrievals, {title}", label(measure), curves)


def _spot(of: Mapping[str, Any], ink: str, measure: str) -> Spot | None:
    x, y = of.get("retrievals_per_question"), of.get(measure)
    return Spot(ink, x, y) if x and y else None


def _about(found: Mapping[str, Any]) -> list[str]:
    """When, with what weights, on how many questions, and which settings were not the run's."""
    facts = [str(found[key]) for key in ("when",) if found.get(key)]
    facts += ["/".join(Path(str(found["weights"])).parts[-2:])] if found.get("weights") else []
    facts += [f"{found['questions']:,} questions"] if isinstance(found.get("questions"), int) else []
    return facts + [str(override) for override in found.get("changed") or ()]


def _gains(
    differences: Mapping[str, Any], gates: Mapping[str, Any], decision: Mapping[str, Any], title: str
) -> list[Picture]:
    """Reward of the policy minus each system's and each tuned gate's; what a perfect role would add to it."""
    lines: list[tuple[str, Any, str]] = []
    for pair, of in differences.items():
        name = pair.removeprefix("policy_minus_")
        lines.append((name, of.get("reward"), figures.ink_of(name, [*gates, name])))
    for gate, of in gates.items():
        gap = (_minus(of, "tuned") or {}).get("reward")
        lines.append((f"gate {gate}", gap, figures.ink_of(gate, list(gates))))
    roles = (decision.get("counterfactuals") or {}).items()
    perfect: list[tuple[str, Any, str]] = [
        (f"perfect {role}", (of.get("gain") or {}).get("reward"), "after") for role, of in roles
    ]
    made = []
    for drawn, what in ((lines, "reward of the policy minus the others', paired"), (perfect, "reward to be gained")):
        if known := [line for line in drawn if line[1]]:
            made.append(figures.forest(known, f"{what}, {title}", "difference in reward", zero=True))
    return made


def _gates(gates: Mapping[str, Any]) -> list[Table]:
    """Area under each gate's curve, the gate at the threshold tuned on dev questions and at the policy's retrievals."""
    areas = [[gate, *((of.get("auc") or {}).get(m) for m in ("em", "f1", "reward"))] for gate, of in gates.items()]
    tables = [Table("Threshold gates, area under the curve", ["", "exact match", "F1", "reward"], areas)]
    shown = (*COMPARED, "model_calls")
    for kind, caption in (("tuned", "threshold tuned on dev questions"), ("matched", "with the policy's retrievals")):
        points = {gate: of[kind] for gate, of in gates.items() if of.get(kind)}
        rows = [[gate, at.get("threshold"), *(at.get(m) for m in shown)] for gate, at in points.items()]
        note = "Threshold –: every score passes it."
        tables.append(Table(f"Gates, {caption}", ["", "threshold", *map(label, shown)], rows, note))
        gaps = {gate: gap for gate, of in gates.items() if (gap := _minus(of, kind))}
        rows = [[gate, *(gap.get(m) for m in shown)] for gate, gap in gaps.items()]
        tables.append(Table(f"Policy minus gate, {caption}, paired", ["", *map(label, shown)], rows, signed=True))
    return tables


def _minus(gate: Mapping[str, Any], kind: str) -> Mapping[str, Any] | None:
    return (gate.get(kind) or {}).get("policy_minus_this")


def _decision(found: Mapping[str, Any]) -> list[Table]:
    """Rates in one table, each crossing of two facts in its own, and the policy with one role made perfect."""
    rates = [[_RATES.get(name, label(name)), x] for name, x in found.items() if not isinstance(x, list | Mapping)]
    crossed = [_crossed(name, cells) for name, cells in found.items() if isinstance(cells, list)]
    perfect = found.get("counterfactuals") or {}
    rows, gains = [], []
    for role, of in perfect.items():
        rows.append([role, *(of.get(m) for m in _ROLE_MEASURES)])
        gains.append([role, *((of.get("gain") or {}).get(m) for m in _ROLE_MEASURES)])
    head = ["perfect", *map(label, _ROLE_MEASURES)]
    return [
        Table("Decisions of the policy", ["", "share"], rates),
        *crossed,
        Table("The policy with one role made perfect", head, rows),
        Table("What that gains, paired", head, gains, signed=True),
    ]


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


def _runs(caption: str, rows: Sequence[Mapping[str, Any]], names: tuple[str, str], signed: bool = False) -> Table:
    """`names`: what tells the rows apart. A run's folder comes last, where there is one."""
    shown = [m for m in LABELS if any(m in row for row in rows)]
    runs = ["run"] if any("run" in row for row in rows) else []
    body = [
        [*(row.get(n) for n in names), *(row.get(m) for m in shown), *(_short(row.get(n)) for n in runs)]
        for row in rows
    ]
    head = [*(name.replace("_", " ") for name in names), *map(label, shown), *runs]
    return Table(caption, head, body, signed=signed)


def _short(run: Any) -> str:
    """The last two parts of a run's path: experiment/id."""
    return "/".join(Path(str(run)).parts[-2:]) if run else ""
