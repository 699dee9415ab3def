"""What report.html and the model card say in sentences: the verdict of a run, and what its figures cannot tell."""

import re
from collections.abc import Mapping
from typing import Any

from smartrag.report.record import Record

_MINUS, _NARROW = "\N{MINUS SIGN}", "\N{NARROW NO-BREAK SPACE}"
_RAISED = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def spelled_out(value: Any) -> Any:
    """Of a text, with control characters, halves of surrogate pairs and reversals of direction spelled out, \\u202e."""
    return _HIDDEN.sub(lambda found: f"\\u{ord(found[0]):04x}", value) if type(value) is str else value


def number(x: Any, signed: bool = False) -> str:
    """A number as people read it: three decimals below ten, one above, none from a thousand on."""
    if x is None or x != x:
        return "–"
    if isinstance(x, bool):
        return "yes" if x else "no"
    size, sign = abs(x), _MINUS if x < 0 else "+" if signed and x > 0 else ""
    if size == float("inf"):
        return f"{sign}∞"
    if isinstance(x, int) or size >= 1000:
        return f"{sign}{size:,.0f}"
    if size >= 10:
        return f"{sign}{size:.1f}"
    if size >= 0.001 or size == 0:
        return f"{sign}{size:.3f}"
    digits, power = f"{size:.1e}".split("e")
    return f"{sign}{digits}{_NARROW}×{_NARROW}10{str(int(power)).translate(_RAISED)}"


def interval(figures: Mapping[str, float], signed: bool = False) -> str:
    """[low, high]; nothing when the file gives none."""
    if figures.get("low") is None or figures.get("high") is None:
        return ""
    return f"[{number(figures['low'], signed)}, {number(figures['high'], signed)}]"


def verdict(record: Record, gaps: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Sentences with the run's figures and its paired `differences`, nothing but what the files say."""
    ours = record.summary.get("after") or {}
    if not ours.get("reward"):
        done, planned = len(record.rows), record.setting("train.steps")
        steps = f"{done} of {planned} planned steps are done" if planned else f"{done} steps are done"
        return [f"This run has not been evaluated after training; {steps}."]
    steps = f"{len(record.rows):,} steps of PPO" if record.rows else "PPO"
    said = [
        f"After {steps} the policy earns a reward of {_spelled(ours['reward'])} a test question "
        f"({ours.get('n', 0):,} questions), is exactly right on {_percent(ours.get('em'))} of them and retrieves "
        f"{number(_mean(ours.get('retrievals_per_question')))} times a question."
    ]
    names = {"before": "the policy before PPO", "never": "never retrieving", "always": "always retrieving"}
    for other, gap in ((other, of["reward"]) for other, of in gaps.items() if of["reward"]):
        theirs = record.summary[other]
        said.append(
            f"Its reward {_compared(gap)} that of {names[other]}, {number(gap['mean'], True)} {interval(gap, True)}; "
            f"{names[other]} is exactly right on {_percent(theirs.get('em'))} with "
            f"{number(_mean(theirs.get('retrievals_per_question')))} retrievals a question."
        )
    return said


def subject(record: Record) -> str:
    """What was trained on what, in a line; empty without a configuration."""
    get = record.setting
    if not record.config:
        return ""
    trained = "LoRA adapters trained" if get("model.lora") else "every weight trained"
    return (
        f"{get('model.path')}, {trained}, on {_data(record)}: {get('warmup.steps')} steps of warm-up, "
        f"then {get('train.steps')} steps of PPO with {get('train.episodes')} episodes each; seed {get('seed')}."
    )


def settings(record: Record) -> list[tuple[str, str]]:
    """The settings a reader asks for first, in words; all of them stand in the composed configuration."""
    get = record.setting
    if not record.config:
        return []
    reward = {name: get(f"reward.{name}") for name in ("exact_match", "f1", "retrieval", "format_error", "truncated")}
    counted = [
        f"{name.replace('_', ' ')} {number(float(value))}" for name, value in reward.items() if value is not None
    ]
    lora = get("model.lora")
    return [
        ("policy", f"{get('model.path')}, {get('model.precision')}"),
        ("trained", f"LoRA of rank {lora['rank']} on {', '.join(lora['targets'])}" if lora else "every weight"),
        ("data", _data(record)),
        ("retriever", f"{retriever(record)}, {get('retriever.k')} passages a query"),
        ("warm-up", f"{get('warmup.steps')} steps of {get('warmup.batch')}, teacher {get('warmup.teacher')}"),
        (
            "PPO",
            f"{get('train.steps')} steps of {get('train.episodes')} episodes, advantage {get('algorithm.advantage')}",
        ),
        (
            "retrievals allowed",
            f"{get('algorithm.quota')}; drawn from in training: {get('train.quotas') or 'that alone'}",
        ),
        ("reward", ", ".join(counted)),
        ("answers judged by", f"{get('reward.function') or get('reward.judge')}"),
        ("learning rates", f"policy {get('learner.learning_rate')}, critic {get('learner.critic_learning_rate')}"),
    ]


def retriever(record: Record) -> str:
    """What searched."""
    get = record.setting
    match get("retriever.searcher", "bm25"):
        case "bm25":
            return f"BM25, k1 {get('retriever.k1')}, b {get('retriever.b')}"
        case "dense":
            return f"dense vectors of {get('retriever.dense.encoder')}"
        case "http":
            return "a service behind HTTP"
        case own:
            return str(own)


def _data(record: Record) -> str:
    mix = record.setting("data.mix") or {}
    source = record.setting("data.source")
    if len(mix) < 2:
        return str(record.setting("data.questions") or source)
    return ", ".join(f"{source if name == 'folder' else name} (weight {weight:g})" for name, weight in mix.items())


def limits(record: Record, *, episodes_chosen: bool) -> list[str]:
    """What the page cannot tell, of this run in particular and of its kind."""
    said = [
        "Test questions are answered greedily, training episodes are sampled "
        f"at temperature {record.setting('algorithm.temperature', 'unknown')}; the curves and the test figures are not "
        "the same quantity.",
        "Seconds and hours are those of the machines this run had, with whatever else ran there. Hours count what was "
        "reserved, not what was busy; tokens are those of training, without warm-up and evaluation.",
    ]
    if episodes_chosen:
        said.append("The sampled episodes were chosen because they changed; they do not stand for all questions.")
    return [*caveats(record), *said]


def caveats(record: Record) -> list[str]:
    """What the figures of a run's evaluation do not say, wherever they stand."""
    get = record.setting
    said = [
        f"This is one run with one seed ({get('seed', 'unknown')}). Its intervals are about the test questions, not "
        "about training again: another seed gives another policy. A result wants several seeds.",
        "Exact match and F1 compare words. A right answer in other words counts as wrong, and words that equal a gold "
        "answer count as right whatever they rest on. A hit means that a gold answer stands in the passages, not that "
        "they support it.",
    ]
    if (price := get("reward.retrieval")) is not None:
        said.append(
            f"Rewards count {number(float(price))} for a retrieval. At another price systems may rank otherwise."
        )
    if get("reward.judge") not in (None, "gold"):
        said.append(
            f"In training, answers were judged by {get('reward.function') or get('reward.judge')}; the tables "
            "judge by gold answers."
        )
    if not get("train.gates", True):
        said.append("The fixed gates never and always were not evaluated (train.gates=false).")
    return [*said, *_lost(record), *_shared(record.splits), *record.gaps]


def _lost(record: Record) -> list[str]:
    said = []
    if voided := sum(int(row.get("voided_episodes") or 0) for row in record.rows):
        said.append(
            f"{voided:,} training episodes were voided: their answers went unjudged, and nothing was learnt of them."
        )
    for name, what in (("truncation_rate", "ran out of tokens"), ("format_error_rate", "ended in a format error")):
        figures = (record.summary.get("after") or {}).get(name)
        if figures and figures["mean"] > 0:
            said.append(
                f"{_percent(figures)} of the test questions {what} after training; they count with their penalty."
            )
    return said


def _shared(splits: Mapping[str, Any]) -> list[str]:
    shared = {pair: n for pair, n in (splits.get("overlaps") or {}).items() if n and pair != "warmup/ppo"}
    return [f"The splits {pair} share {n:,} questions." for pair, n in shared.items()]


def _compared(gap: Mapping[str, float]) -> str:
    if gap.get("low", gap["mean"]) > 0:
        return "is above"
    return "is below" if gap.get("high", gap["mean"]) < 0 else "is not told apart from"


def _spelled(figures: Mapping[str, float]) -> str:
    return f"{number(figures['mean'])} {interval(figures)}".rstrip()


def _percent(figures: Mapping[str, float] | None) -> str:
    return "–" if not figures else f"{100 * figures['mean']:.1f}{_NARROW}%"


def _mean(figures: Mapping[str, float] | None) -> float | None:
    return figures["mean"] if figures else None
