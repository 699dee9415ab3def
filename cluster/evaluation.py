"""`evaluate`: a policy compared with gates and oracles, and what came of it as files."""

import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from cluster.refusal import show_log
from cluster.system import Inputs, System
from cluster.trained import Trained, serve
from smartrag.commands import Evaluation
from smartrag.evaluation.compare import Comparison, compare
from smartrag.files import write_whole
from smartrag.log import versions
from smartrag.report import plot, terminal

logger = logging.getLogger("smartrag")


def evaluate(settings: Evaluation, overrides: Sequence[str]) -> int:
    """Leaves evaluation.json, questions.parquet and plots in evaluations/<out>/ of the run's folder (without a run, of
    the folder of runs), replacing those of an earlier time. Returns the exit code."""
    show_log()

    def use(trained: Trained, found: Inputs, system: System) -> None:
        folder = (trained.home or Path(trained.run.runs)) / "evaluations" / settings.out
        came = compare(trained.run, found.data, found.prompt, system.rollout, settings)
        about = {
            "run": str(trained.home or settings.run),
            "weights": str(trained.weights or trained.run.model.path),
            "when": time.strftime("%Y-%m-%d %H:%M:%S"),
            "changed": list(overrides),
            "versions": versions(),
        }
        _write(folder, about, came)

    return serve(settings.run, overrides, use)


def _write(folder: Path, about: dict[str, Any], came: Comparison) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    figures = about | came.figures
    write_whole(folder / "evaluation.json", json.dumps(figures, indent=1, default=float) + "\n")
    pd.DataFrame(came.rows).to_parquet(folder / "questions.parquet", index=False)
    plot.accuracy_and_cost(figures, folder / "frontier.png")
    plot.decision(figures, folder / "decision.png")
    print(terminal.comparison(figures))
    logger.info("all of it is in %s", folder)
