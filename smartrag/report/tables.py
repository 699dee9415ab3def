"""The tables of report.html about one run: its settings, figures, decisions, health and cost."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from smartrag.evaluation.evaluate import MEASURES
from smartrag.report import contrast
from smartrag.report.record import COMPARED, Record

Cell = Any  # a text, a number, an interval {"mean", "low", "high"}, or None for what there is not

LABELS = {
    "reward": "reward",
    "em": "exact match",
    "f1": "F1",
    "accuracy": "accuracy (answer contains gold)",
    "hit_rate": "hit rate of retrievals",
    "retrievals_per_question": "retrievals a question",
    "model_calls": "model calls a question",
    "prompt_tokens": "prompt tokens a question",
    "generated_tokens": "generated tokens a question",
    "latency_s": "latency, s",
    "entropy": "entropy, nats a token",
    "kl_ref": "KL to the reference, nats a token",
    "format_error_rate": "format errors",
    "truncation_rate": "truncated",
}
_HEALTH: tuple[tuple[str, str, Callable[..., int]], ...] = (
    ("push/canary_gap", "canary's gap after a weight push, nats (largest)", max),
    ("first_ratio_deviation", "first-epoch ratio's deviation from 1 (largest)", max),
    ("engine_gap_max", "engine against learner, a sampled token, nats (largest)", max),
    ("is_clipped_fraction", "importance weights clipped, share (largest)", max),
    ("ess", "effective sample size, share (smallest)", min),
    ("clip_fraction", "ratios clipped, share (largest)", max),
    ("grad_norm", "gradient norm (largest)", max),
    ("kl_ref", "KL to the reference, nats a token (largest)", max),
    ("format_error_rate", "format errors, share (largest)", max),
    ("truncation_rate", "truncated episodes, share (largest)", max),
)


@dataclass(frozen=True, slots=True)
class Table:
    """The first cell of a row names it."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    note: str = ""
    signed: bool = False  # numbers are differences: a + stands before those above zero

    def __bool__(self) -> bool:
        return bool(self.rows)


def label(measure: str) -> str:
    return LABELS.get(measure, measure.replace("_", " "))


def measures(systems: Mapping[str, Mapping[str, Any]], names: Sequence[str], caption: str) -> Table:
    """Measures down, systems across; measures that no system has are left out."""
    have = [name for name in names if any(name in of for of in systems.values())]
    rows = [[label(name), *(of.get(name) for of in systems.values())] for name in have]
    return Table(caption, ["", *systems], rows)


def headline(record: Record) -> Table:
    systems = {name: record.summary[name] for name in record.systems}
    asked = sorted({of.get("n") for of in systems.values()} - {None})
    questions = " or ".join(f"{n:,}" for n in asked) or "the"
    return measures(systems, MEASURES, f"{questions} test questions, mean [95 % interval]")


def differences(gaps: Mapping[str, Mapping[str, Any]]) -> Table:
    rows = [[f"minus {other}", *(of[name] for name in COMPARED)] for other, of in gaps.items()]
    note = "An interval that holds 0 does not tell the two apart."
    return Table("After, minus the others, on the same questions", ["", *map(label, COMPARED)], rows, note, signed=True)


def training(rows: Sequence[Mapping[str, Any]]) -> Table:
    """First and last step and the mean of the last ten, of what is counted over a step's sampled episodes."""
    last = rows[-10:]
    body = [
        [label(name), rows[0].get(name), rows[-1].get(name), _mean([row[name] for row in last if name in row])]
        for name in (*MEASURES[:5], "entropy", "kl_ref")
        if any(name in row for row in rows)
    ]
    head = ["", f"step {rows[0].get('step')}", f"step {rows[-1].get('step')}", f"mean of the last {len(last)}"]
    return Table("Sampled training episodes", head, body)


def health(rows: Sequence[Mapping[str, Any]]) -> Table:
    """What must stay small or large in sound training: the worst step of each, and what was left out."""
    body: list[list[Cell]] = []
    for name, text, worst in _HEALTH:
        found = [(row[name], row.get("step")) for row in rows if row.get(name) is not None]
        if found:
            at = worst(range(len(found)), key=[value for value, _ in found].__getitem__)
            body.append([text, found[at][0], found[-1][0], found[at][1]])
    for name, text in (("skipped_steps", "optimiser steps skipped"), ("voided_episodes", "episodes voided")):
        if any(name in row for row in rows):
            body.append([f"{text} (in all)", sum(int(row.get(name, 0)) for row in rows), None, None])
    return Table("Health of the training", ["", "worst", "last step", "worst at step"], body)


def popularity(record: Record) -> Table:
    shares = {name: record.summary[name].get("retrieval_rate_by_popularity_fifth") for name in record.systems}
    rows = [[name, *values] for name, values in shares.items() if values]
    return Table("Share that retrieves, by fifth of popularity", ["", "least known", "2", "3", "4", "best known"], rows)


def groups(systems: Mapping[str, Mapping[str, Any]], dimension: str, caption: str) -> Table:
    """The systems in each group of a dimension (hops, data set, ...): system -> group -> its means and `n`."""
    values = list(dict.fromkeys(value for of in systems.values() for value in of))
    names = ("reward", "em", "f1", "retrievals_per_question", "hit_rate")
    rows = [
        [value, system, int(of[value].get("n", 0)), *(of[value].get(name) for name in names)]
        for value in values
        for system, of in systems.items()
        if value in of
    ]
    return Table(caption, [dimension, "system", "questions", *map(label, names)], rows)


def own_groups(record: Record) -> list[Table]:
    """By hops and by data set, as summary.json has it; nothing where there is but one group."""
    found = []
    for key, dimension in (("by_hops", "hops"), ("by_dataset", "data set")):
        systems = {name: record.summary[name].get(key) or {} for name in record.systems}
        if len({value for of in systems.values() for value in of}) > 1:
            found.append(groups(systems, dimension, f"By {dimension}"))
    return found


def transitions(record: Record) -> Table:
    """Counts of questions by what the policy did before (down) and after (across)."""
    counts = contrast.transitions(record.asked.get("before", []), record.asked.get("after", []))
    rows = [[was, *(counts[was, now] for now in contrast.BEHAVIOURS)] for was in contrast.BEHAVIOURS]
    return Table("Test questions, before (down) and after (across)", ["", *contrast.BEHAVIOURS], rows if counts else [])


def need(record: Record) -> Table:
    """Does the policy retrieve where it must? Questions by whether `never` and `always` are right about them."""
    never, always, after = (record.asked.get(name, []) for name in ("never", "always", "after"))
    both = zip(contrast.matched(never, after), contrast.matched(always, after), strict=False)
    kinds: dict[tuple[bool, bool], list[contrast.Row]] = {}
    for (without, policy), (with_evidence, _) in both:
        kinds.setdefault((contrast.right(without), contrast.right(with_evidence)), []).append(policy)
    names = {(True, True): "both right: no need", (False, True): "only always right: needed"}
    names |= {(True, False): "only never right: harmful", (False, False): "neither right: no help"}
    rows = [
        [name, len(ours), _mean([contrast.searched(r) for r in ours]), _mean([contrast.right(r) for r in ours])]
        for kind, name in names.items()
        if (ours := kinds.get(kind))
    ]
    head = ["never and always are …", "questions", "policy retrieves, share", "policy right, share"]
    return Table("Where a retrieval was needed", head, rows, "Right: an exact match with a gold answer.")


def splits(record: Record) -> Table:
    rows = [
        [name, of.get("questions"), str(of.get("sha256", ""))[:12]]
        for name, of in (record.splits.get("splits") or {}).items()
    ]
    shared = [f"{name} {n:,}" for name, n in (record.splits.get("overlaps") or {}).items() if n]
    note = f"Questions that two splits share: {', '.join(shared) or 'none'}."
    return Table("Questions", ["", "questions", "sha256 begins"], rows, note if rows else "")


def versions(record: Record) -> Table:
    rows = [[name, version] for name, version in (record.summary.get("versions") or {}).items()]
    return Table("Versions", ["", "installed"], rows)


def seconds(record: Record) -> Table:
    spent = record.summary.get("seconds") or {}
    total = sum(spent.values())
    rows: list[list[Cell]] = [[phase, s, s / total if total else None] for phase, s in spent.items()]
    return Table("Seconds by phase", ["", "seconds", "share"], [*rows, ["in all", total, None]] if rows else [])


def cost(record: Record) -> Table:
    """Tokens, and hours of what was reserved: CPUs and GPUs of every learner rank, engine and replica."""
    rows: list[list[Cell]] = []
    tokens = sum(int(row.get("generated_tokens", 0)) for row in record.rows)
    rolling = sum(row.get("seconds_rollout", 0.0) for row in record.rows)
    if record.rows:
        rows += [["PPO steps", len(record.rows)], ["tokens generated in training", tokens]]
        rows += [["tokens generated a second of rollout", tokens / rolling if rolling else None]]
    hours = sum((record.summary.get("seconds") or {}).values()) / 3600
    if record.config and hours:
        cpus, gpus = reserved(record)
        rows += [["CPUs reserved", _whole(cpus)], ["CPU core-hours", cpus * hours]]
        rows += [["GPUs reserved", _whole(gpus)], ["GPU-hours", gpus * hours]]
    return Table("Cost", ["", ""], rows)


def reserved(record: Record) -> tuple[float, float]:
    """(CPUs, GPUs) that Ray sets aside for the run's actors for as long as it lasts."""
    get = record.setting
    groups = (
        (get("learner.ranks", 0), get("learner.cpus", 0), get("learner.gpus", 0)),
        (get("cluster.engine.workers", 0), get("cluster.engine.cpus", 0), get("cluster.engine.gpus", 0)),
        (get("retriever.replicas", 0), get("retriever.cpus", 0), 0),
    )
    return sum(float(n * cpus) for n, cpus, _ in groups), sum(float(n * gpus) for n, _, gpus in groups)


def _mean(values: Sequence[Any]) -> float | None:
    return sum(values) / len(values) if values else None


def _whole(x: float) -> float:
    return int(x) if x == int(x) else x
