"""docs/reading-the-numbers.md: every key of a row of metrics.jsonl, and of an evaluation, is in it, and no other."""

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.weights import WeightPush
from smartrag import ROOT
from smartrag.batch import minibatches
from smartrag.config import Run
from smartrag.data.load import Dataset
from smartrag.evaluation.evaluate import COSTS, MEASURES
from smartrag.log import RunFolder
from smartrag.ranks import alone
from smartrag.train import Training
from smartrag.types import Trajectory
from smartrag.update import update
from tests.smartrag.test_train import TEST, TRAIN, Machines, Shelf, small_run
from tests.smartrag.test_update import Side

ROWS, _, BESIDE = (ROOT / "docs" / "reading-the-numbers.md").read_text(encoding="utf-8").partition("## Beside the rows")
SETS = ("popqa", "hotpotqa")


def keys(page: str) -> set[str]:
    """What stands in the first column of its tables."""
    return {key for cell in re.findall(r"^\| (`.*?`) \|", page, re.MULTILINE) for key in re.findall(r"`([^`]+)`", cell)}


class Learning(Machines):
    """The stand-ins of the loop's tests, but what learns is a real policy and critic, if small."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.algorithm, self.setup = run.algorithm, Side(alone()).setup

    def update(self, trajectories: Sequence[Trajectory], step: int) -> dict[str, float]:
        parts = minibatches(trajectories, self.algorithm.minibatches, seed=step)
        return update(parts, replace(self.setup, algorithm=self.algorithm)) | {
            "seconds_learner": 0.5
        }  # as a rank has it


@pytest.fixture
def row(tmp_path: Path) -> dict[str, Any]:
    """Of the second step of a run with two data sets, two quotas and evaluations on dev questions."""
    several = [f"data=[{','.join(SETS)}]", "train.quotas=[1,2]", "train.evaluate_every=1", "warmup.steps=0"]
    run = small_run(*several, "train.episodes=8")
    train, test = (
        tuple(replace(q, meta=q.meta | {"dataset": SETS[i % 2]}) for i, q in enumerate(asked))
        for asked in (TRAIN, TEST)
    )
    push = WeightPush(Any, [], run.cluster, [])  # type: ignore[arg-type]
    push._members = {0: "the engine"}
    push._each = push._transfer = lambda *_: None  # type: ignore[method-assign]
    push._canary = lambda _: 0.0  # type: ignore[method-assign]
    machines, folder = Learning(run), RunFolder.create(str(tmp_path), "test")
    training = Training(
        run,
        Dataset(train, test, test, None),
        machines,
        machines,
        lambda version: push._push(push._members, version),
        Shelf(tmp_path),
        folder,
    )
    training.begin([])
    training.step()
    training.step()
    return folder.rows()[-1]


def test_every_key_of_a_row_is_explained_and_no_other(row: dict[str, Any]) -> None:
    assert {"hit_rate", "explained_variance", "push/canary_gap", "retrieval_price", "seconds_update"} <= set(row)
    generic = {re.sub(rf"(^|/)({'|'.join(SETS)})/", r"\1SET/", re.sub(r"quota_\d+", "quota_N", key)) for key in row}
    of_dev = {key for key in generic if key.startswith("dev/")}
    assert {key.removeprefix("dev/") for key in of_dev} <= keys(ROWS)
    assert (generic - of_dev) | {"dev/KEY"} == keys(ROWS)


def test_every_measure_of_an_evaluation_is_explained() -> None:
    assert set(COSTS) == keys(BESIDE)
    assert set(MEASURES) <= keys(ROWS)
