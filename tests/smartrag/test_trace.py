"""A trace tells every phase, generation and retrieval once, where and when it was."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from smartrag.log import RunFolder
from smartrag.trace import DRIVER, ROLLOUT, Trace, uncovered
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


def test_what_nobody_was_at_work_in() -> None:
    spans = [(4.0, 5.0), (1.0, 2.0), (1.5, 3.0), (-1.0, 0.5), (1.6, 1.7), (9.0, 12.0)]
    assert uncovered(spans, 0.0, 10.0) == 0.5 + 1.0 + 4.0  # until 1, from 3 to 4, from 5 to 9
    assert uncovered([], 2.0, 5.0) == 3.0
    assert uncovered([(0.0, 9.0)], 2.0, 5.0) == 0.0


def test_seconds_idle_are_those_between_episodes_learner_and_push(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 14.5, 17.0, 18.0, 20.0, 21.0])
    monkeypatch.setattr("smartrag.trace.time.time", lambda: next(clock))
    trace = Trace(None)
    trace.episodes([_timed(10.5, 1), _timed(11.0, 0)], step=1)  # 10.5 to 15.5
    trace.phase("rollout", 4.0)
    trace.learner("update", 1.0)  # 16 to 17
    trace.phase("evaluation", 0.5)  # 17.5 to 18
    assert trace.idle_s() == 0.5 + 0.5 + 0.5 + 2.0
    assert trace.idle_s() == 1.0, "what was told is forgotten"


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
        trace.close()
    events = _events(folder.folder / "trace.json")
    names = [e["name"] for e in events if e["pid"] == DRIVER and e["tid"] == 0]
    assert [names.count(name) for name in ("rollout", "update", "push", "evaluation")] == [3, 3, 5, 1]
    assert len([e for e in events if e["name"] == "generate"]) >= 3 * 4
    learner = [e["name"] for e in events if e["pid"] == DRIVER and e["tid"] == 1]
    assert [learner.count(name) for name in ("update", "weights")] == [3, 5]
