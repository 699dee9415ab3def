"""`evaluate`: a policy compared with gates and oracles, and what came of it as files."""

import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from cluster.system import Inputs, System
from cluster.trained import Trained, serve
from smartrag import plot, report
from smartrag.compare import Comparison, Effort, compare
from smartrag.log import versions, write_whole

logger = logging.getLogger("smartrag")


def evaluate(path: str, overrides: Sequence[str], out: str, effort: Effort) -> int:
    """Leaves evaluation.json, questions.parquet and plots in evaluations/<out>/ of the run's folder (without a run, of
    the folder of runs), replacing those of an earlier time. Returns the exit code."""
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    logger.setLevel(logging.INFO)

    def use(trained: Trained, found: Inputs, system: System) -> None:
        folder = (trained.home or Path(trained.run.runs)) / "evaluations" / out
        came = compare(trained.run, found.data, found.prompt, system.rollout, effort)
        about = {
            "run": str(trained.home or path),
            "weights": str(trained.weights or trained.run.model.path),
            "when": time.strftime("%Y-%m-%d %H:%M:%S"),
            "changed": list(overrides),
            "versions": versions(),
        }
        _write(folder, about, came)

    return serve(path, overrides, use)


def _write(folder: Path, about: dict[str, Any], came: Comparison) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    figures = about | came.figures
    write_whole(folder / "evaluation.json", json.dumps(figures, indent=1, default=float) + "\n")
    pd.DataFrame(came.rows).to_parquet(folder / "questions.parquet", index=False)
    plot.accuracy_and_cost(figures, folder / "frontier.png")
    plot.decision(figures, folder / "decision.png")
    print(report.comparison(figures))
    logger.info("all of it is in %s", folder)
