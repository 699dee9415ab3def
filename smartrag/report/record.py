"""What a run's folder holds, as far as it is there: a run may be under way, cut short, or copied in part."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from smartrag.evaluation import evaluate
from smartrag.log import run_and_checkpoint

SYSTEMS = ("before", "after", "never", "always")
COMPARED = ("reward", "em", "retrievals_per_question")
_PARTS = ("config.yaml", "metrics.jsonl", "summary.json", "splits.json", "evaluation-before.jsonl")


@dataclass(slots=True)
class Record:
    """A run in numbers. What is missing is empty, and `gaps` says so in a sentence."""

    name: str  # experiment/id
    config: dict[str, Any] = field(default_factory=dict)
    config_text: str = ""
    rows: list[dict[str, Any]] = field(default_factory=list)  # of metrics.jsonl, one a step
    summary: dict[str, Any] = field(default_factory=dict)  # as in summary.json
    splits: dict[str, Any] = field(default_factory=dict)
    asked: dict[str, list[dict[str, Any]]] = field(default_factory=dict)  # system -> rows, one a test question
    sampled: list[dict[str, Any]] = field(default_factory=list)  # training episodes
    evaluations: dict[str, dict[str, Any]] = field(default_factory=dict)  # name -> evaluation.json
    gaps: list[str] = field(default_factory=list)

    @property
    def systems(self) -> list[str]:
        """The evaluated ones, in the order in which they are shown."""
        return [name for name in SYSTEMS if isinstance(self.summary.get(name), Mapping)]

    def setting(self, path: str, default: Any = None) -> Any:
        """A value of the configuration by its dotted name; `default` where it or a group above it is not there."""
        node: Any = self.config
        for part in path.split("."):
            if not isinstance(node, Mapping) or part not in node:
                return default
            node = node[part]
        return node


def read(path: Path) -> Record:
    """The record of a run's folder (or of the run that a checkpoint's folder belongs to).

    Raises FileNotFoundError when nothing in the folder is a run's.
    """
    folder, _ = run_and_checkpoint(path)
    if not any((folder / part).exists() for part in _PARTS):
        raise FileNotFoundError(f"{path} is not the folder of a run: it holds none of {', '.join(_PARTS)}")
    record = Record(f"{folder.parent.name}/{folder.name}")
    _read_config(folder, record)
    record.rows = _lines(folder / "metrics.jsonl", record.gaps)
    record.splits = _json(folder / "splits.json", record.gaps)
    record.sampled = _lines(folder / "episodes.jsonl", record.gaps)
    for system in SYSTEMS:
        if (folder / f"evaluation-{system}.jsonl").exists():
            record.asked[system] = _lines(folder / f"evaluation-{system}.jsonl", record.gaps)
    for found in sorted(folder.glob("evaluations/*/evaluation.json")):
        if evaluation := _json(found, record.gaps):
            record.evaluations[found.parent.name] = evaluation
    _read_summary(folder, record)
    return record


def read_study(path: Path) -> dict[str, Any]:
    """One JSON object from a file a person named. Raises ValueError when it is not there or not that."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds a {type(found).__name__}, not a JSON object")
    return found


def _read_config(folder: Path, record: Record) -> None:
    path = folder / "config.yaml"
    if not path.exists():
        record.gaps.append("There is no config.yaml, so this page cannot say how the run was set up.")
        return
    record.config_text = path.read_text(encoding="utf-8", errors="replace")
    try:
        config = OmegaConf.to_container(OmegaConf.create(record.config_text))
    except (OmegaConfBaseException, ValueError) as error:
        record.gaps.append(f"config.yaml cannot be read: {error}")
        return
    record.config = config if isinstance(config, dict) else {}  # type: ignore[assignment]


def _read_summary(folder: Path, record: Record) -> None:
    """summary.json; of a run without one, what its test questions and steps say so far."""
    planned = record.setting("train.steps")
    if planned is not None and len(record.rows) < planned:
        done = f"{len(record.rows)} of {planned} planned steps are in metrics.jsonl"
        record.gaps.append(f"{done}: the run is under way or was stopped.")
    if (folder / "summary.json").exists():
        record.summary = _json(folder / "summary.json", record.gaps)
        return
    record.gaps.append(
        "There is no summary.json: the run has not come to its end. What is shown of its evaluation is worked out "
        "from the test questions asked so far."
    )
    seed = record.setting("seed", 0)
    record.summary = {name: evaluate.summary(_columns(rows), seed) for name, rows in record.asked.items() if rows}
    phases = {"feedback": "seconds_feedback", "update": "seconds_update", "push": "push/seconds"}
    if record.rows:
        waited = sum(row.get("seconds_waiting", row.get("seconds_rollout")) or 0.0 for row in record.rows)
        record.summary["seconds"] = {"rollout": waited} | {
            phase: sum(row.get(name) or 0.0 for row in record.rows) for phase, name in phases.items()
        }


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """MEASURES -> [n] values; nan where a row lacks the measure, as `hit_rate` does when nothing was retrieved."""
    return {name: np.array([row.get(name, float("nan")) for row in rows], dtype=float) for name in evaluate.MEASURES}


def differences(record: Record) -> dict[str, dict[str, Any]]:
    """Other system -> measure -> mean of `after` minus it on the same questions, with its interval (None: unknown).

    Reward is summary.json's where that has it; the rest is worked out from the rows of the test questions.
    """
    known = record.summary.get("difference") or {}
    found: dict[str, dict[str, Any]] = {}
    for other in record.systems if "after" in record.systems else []:
        if other != "after":
            found[other] = _paired(record, other)
            found[other]["reward"] = known.get(f"after_minus_{other}") or found[other]["reward"]
    return found


def _paired(record: Record, other: str) -> dict[str, Any]:
    """COMPARED of `after` minus the other's; None for each unless both were asked the same questions."""
    rows = [record.asked.get(name, []) for name in ("after", other)]
    ours, theirs = ([row.get("question_id") for row in some] for some in rows)
    if ours != theirs:
        return dict.fromkeys(COMPARED)
    one, two = ({name: x for name, x in _columns(some).items() if name in COMPARED} for some in rows)
    return evaluate.differences(one, two, record.setting("seed", 0))


def _json(path: Path, gaps: list[str]) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        return read_study(path)
    except ValueError as error:
        gaps.append(f"{path.name} cannot be read and was left out: {error}")
        return {}


def _lines(path: Path, gaps: list[str]) -> list[dict[str, Any]]:
    """Rows of a JSON Lines file. A line that a run was killed over, or is just writing, is left out and told of."""
    if not path.exists():
        return []
    rows, broken = [], 0
    with path.open(encoding="utf-8", errors="replace", newline="\n") as lines:
        for line in lines:
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if isinstance(row, dict):
                rows.append(row)
            else:
                broken += 1
    if broken:
        gaps.append(f"{path.name}: {broken} of {len(rows) + broken} lines are no JSON objects and were left out.")
    return rows
