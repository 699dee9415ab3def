"""A trace tells every phase, generation and retrieval once, where and when it was."""

import json
from dataclasses import replace
from pathlib import Path

from smartrag.log import RunFolder
from smartrag.trace import DRIVER, ROLLOUT, Trace
from smartrag.types import ActionKind, Episode
from tests import toys
from tests.smartrag.test_train import Machines, Shelf, _training, small_run


def _timed(began: float, searches: int) -> Episode:
    """Each turn generates for 2 s; each search takes 1 s more."""
    made = toys.finished(searches, ActionKind.ANSWER)
    turns = [
        replace(turn, began=began + 3.0 * i, generation_s=2.0, retrieval_s=1.0 if turn.retrieved else 0.0)
        for i, turn in enumerate(made.turns)
    ]
    return replace(made, turns=tuple(turns))


def _events(path: Path) -> list[dict]:
    return [e for e in json.loads(path.read_text().rstrip().rstrip(",") + "]") if e["ph"] == "X"]


def test_episodes_share_lines_and_never_overlap_there(tmp_path: Path) -> None:
    trace = Trace(tmp_path / "trace.json")
    trace.episodes([_timed(100.0, 1), _timed(101.0, 0), _timed(105.5, 0)], step=7)
    trace.close()
    events = _events(tmp_path / "trace.json")
    assert [(e["tid"], e["name"], e["ts"] / 1e6, e["dur"] / 1e6) for e in events] == [
        (0, "generate", 100.0, 2.0),
        (0, "retrieve", 102.0, 1.0),
        (0, "generate", 103.0, 2.0),
        (1, "generate", 101.0, 2.0),
        (0, "generate", 105.5, 2.0),  # the first line is free from 105.0
    ]
    assert events[1]["args"]["query"] == "Norway"
    assert {e["pid"] for e in events} == {ROLLOUT}


def test_a_run_traces_its_phases_and_a_resumed_one_goes_on(tmp_path: Path) -> None:
    store, folder, run = Shelf(tmp_path), RunFolder.create(str(tmp_path), "test"), small_run("log.trace=true")
    training = _training(tmp_path, Machines(), store, folder, run)
    training.begin([])
    training.step()
    training.step()
    resumed = _training(tmp_path, Machines(), store, folder, run)
    resumed.resume()
    resumed.step()
    for trace in (training.trace, resumed.trace):
        assert trace is not None
        trace.close()
    events = _events(folder.folder / "trace.json")
    names = [e["name"] for e in events if e["pid"] == DRIVER and e["tid"] == 0]
    assert [names.count(name) for name in ("rollout", "update", "push", "evaluation")] == [3, 3, 5, 1]
    assert len([e for e in events if e["name"] == "generate"]) >= 3 * 4
    assert len([e for e in events if e["pid"] == DRIVER and e["tid"] == 1]) == 3
