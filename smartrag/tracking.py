"""W&B and TensorBoard: the rows of a run as they come, under sections, with sampled episodes and alerts.

What they show is a copy. The run folder owns every number, and a run goes on where they cannot be had.
"""

import logging
import os
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from smartrag.alerts import alerts
from smartrag.choices import WandbMode
from smartrag.config import Run
from smartrag.reach import why_not

logger = logging.getLogger("smartrag")

# Section -> keys of a row. Keys that carry a section of their own ("push/seconds", "dev/em") stay as they are.
SECTIONS: dict[str, tuple[str, ...]] = {
    "1_reward": ("reward", "training_reward", "retrieval_price", "voided_episodes", "untrained_episodes"),
    "2_decision": ("retrievals_per_question",),
    "3_retrieval": ("hit_rate",),
    "4_answers": ("em", "f1", "format_error_rate", "truncation_rate", "generated_tokens"),
    "5_ppo": (
        *("kl_ref", "kl_ref_episode", "kl_coef", "approx_kl", "clip_fraction", "entropy", "policy_loss"),
        *("value_loss", "explained_variance", "advantage_mean", "advantage_std", "grad_norm", "critic_grad_norm"),
        *("optimiser_steps", "skipped_steps", "policy_tokens"),
    ),
    "6_agreement": (
        *("ess", "is_clipped_fraction", "engine_gap_max", "engine_gap_k3", "first_ratio", "first_ratio_deviation"),
        *("staleness_mean", "staleness_max"),
    ),
    "7_throughput": (
        *("seconds_rollout", "seconds_waiting", "seconds_feedback", "seconds_update", "seconds_learner"),
        *("seconds_step", "seconds_idle", "padding"),
    ),
}
_SECTION = {key: section for section, keys in SECTIONS.items() for key in keys}
EPISODE = ("step", "question", "gold", "queries", "passages", "answer", "end", "reward", "training_reward")
_PROBE_S = 2.0
_KEPT = 64  # rows that alerts are judged from


class Tracker:
    """Opens what `run.log` asks for; every row and episode of the run goes to `row` and `episode`."""

    def __init__(self, run: Run, config: Mapping[str, Any], folder: Path, earlier: Sequence[Mapping[str, Any]] = ()):
        """`earlier`: rows of the run's steps so far, where it is resumed. Raises wandb.Error where W&B was demanded."""
        self._kl_target = run.algorithm.kl_target
        self._rows: list[Mapping[str, Any]] = list(earlier[-_KEPT:])
        self._board: Any = None
        if run.log.tensorboard:
            from tensorboardX import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"))
        self._wandb: Any = _open_wandb(run, config, folder)
        self._table: Any = None

    def row(self, row: Mapping[str, Any]) -> None:
        """A row of metrics.jsonl. What begins to go wrong with it is told here and in the log."""
        step, named = int(row["step"]), in_sections(row)
        if self._board is not None:
            for key, value in named.items():
                self._board.add_scalar(key, value, step)
            self._board.flush()
        if self._wandb is not None:
            self._wandb.log({"step": step, **named} | ({"episodes": self._table} if self._table else {}))
        self._rows = [*self._rows[1 - _KEPT :], row]
        for alert in alerts(self._rows, self._kl_target):
            logger.warning("step %d: %s: %s", step, alert.title, alert.text)
            if self._wandb is not None:
                self._wandb.alert(title=alert.title, text=alert.text, level="WARN")

    def episode(self, row: Mapping[str, Any]) -> None:
        """A row of episodes.jsonl, for a table of W&B's that grows."""
        if self._wandb is None:
            return
        if self._table is None:
            import wandb

            self._table = wandb.Table(columns=list(EPISODE), log_mode="INCREMENTAL")
        self._table.add_data(*as_cells(row))

    def close(self, folder: Path, summary: Mapping[str, Any] | None = None) -> None:
        """`summary`: of a run that has come to its end. Its report and newest checkpoint become artifacts."""
        if self._board is not None:
            self._board.close()
        if self._wandb is not None:
            if summary is not None:
                self._wandb.summary.update(final(summary))
                _artifacts(self._wandb, folder)
            self._wandb.finish()
        self._board = self._wandb = None


def in_sections(row: Mapping[str, Any]) -> dict[str, Any]:
    """The row without its step, keys as "section/key". A key that no section names is shown under "other"."""
    return {
        key if "/" in key else f"{_SECTION.get(key, 'other')}/{key}": value
        for key, value in row.items()
        if key != "step"
    }


def as_cells(row: Mapping[str, Any]) -> list[Any]:
    """EPISODE of a row of episodes.jsonl: what was asked for one a line, titles alone of the passages."""
    searches = [turn for turn in row["turns"] if turn["action"] == "search"]
    titles = ["; ".join(passage.partition("\n")[0] for passage in turn.get("passages", ())) for turn in searches]
    return [
        row["step"],
        row["question"],
        " | ".join(row["gold"]),
        "\n".join(turn["text"] for turn in searches),
        "\n".join(titles),
        row["turns"][-1]["text"],
        row["end"],
        row["reward"],
        row["training_reward"],
    ]


def final(summary: Mapping[str, Any]) -> dict[str, float]:
    """ "after/reward" and the like: means on test questions, for W&B's table of runs."""
    return {
        f"{system}/{measure}": value["mean"]
        for system, figures in summary.items()
        if isinstance(figures, Mapping)
        for measure, value in figures.items()
        if isinstance(value, Mapping) and isinstance(value.get("mean"), float)
    }


def _open_wandb(run: Run, config: Mapping[str, Any], folder: Path) -> Any:
    """A W&B run as `log.wandb` says; `auto` goes offline at once, with one clear line, when it must."""
    log = run.log
    mode, why = wandb_mode(log.wandb)
    if mode == "disabled":
        return None
    import wandb

    try:
        opened = wandb.init(
            project=log.project,
            group=log.group,
            id=folder.name,
            resume="allow",
            name=f"{folder.parent.name}/{folder.name}",
            dir=folder,
            mode=mode,
            config=dict(config),
            settings=wandb.Settings(init_timeout=30, console="off", silent=True),
        )
    except wandb.Error as error:
        if log.wandb is WandbMode.online:
            raise
        logger.warning("W&B is off, metrics.jsonl has every number all the same: %s", error)
        return None
    opened.define_metric("step")
    opened.define_metric("*", step_metric="step")  # W&B's own count begins anew where a run is resumed
    if mode == "offline":
        logger.info("W&B is offline: %s. Later: wandb sync %s", why, Path(opened.dir).parent)
    return opened


def _artifacts(opened: Any, folder: Path) -> None:
    """The report itself; of the newest checkpoint where it lies, since it may be large."""
    import wandb

    if (report := folder / "report.html").exists():
        made = wandb.Artifact(f"report-{folder.name}", type="report")
        made.add_file(str(report))
        opened.log_artifact(made)
    if saved := sorted((folder / "checkpoints").glob("step_*")):
        made = wandb.Artifact(f"checkpoint-{folder.name}", type="model", metadata={"step": saved[-1].name})
        made.add_reference(saved[-1].as_uri(), checksum=False)
        opened.log_artifact(made)


def wandb_mode(wanted: WandbMode) -> tuple[Any, str]:
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
