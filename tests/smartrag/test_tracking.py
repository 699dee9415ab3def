"""What W&B and TensorBoard hold of a run, read back from what they wrote; and what is said of a run that goes wrong."""

import json
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.proto.event_pb2 import Event

from smartrag.alerts import alerts
from smartrag.choices import WandbMode
from smartrag.compose import load
from smartrag.log import RunFolder
from smartrag.tracking import EPISODE, SECTIONS, Tracker, as_cells, final, in_sections, wandb_mode
from tests.test_numbers import ROWS, keys

EPISODE_ROW = {
    "step": 1,
    "question": "Which country is Oslo in?",
    "gold": ["Norway"],
    "turns": [
        {"action": "search", "text": "Oslo", "passages": ["Oslo\nOslo is in Norway.", "Bergen\nSo is Bergen."]},
        {"action": "answer", "text": "Norway"},
    ],
    "end": "answered",
    "reward": 1.8,
    "training_reward": None,
}


@pytest.mark.fault("W1", "no login, and nobody there to log in to")
def test_wandb_goes_offline_at_once_without_a_login(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.setenv("HOME", str(tmp_path))
    mode, why = wandb_mode(WandbMode.auto)
    assert (mode, "wandb login" in why) == ("offline", True)
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody listens there
    mode, why = wandb_mode(WandbMode.auto)
    assert (mode, "does not answer" in why) == ("offline", True)


def test_an_offline_run_of_wandb_holds_rows_episodes_summary_and_config(tmp_path: Path) -> None:
    run = RunFolder.create(str(tmp_path), "x")
    run.track(Tracker(load(["log.wandb=offline"]), {"seed": 7}, run.folder))
    run.write("report.html", "<p>")
    (run.checkpoints / "step_00000002").mkdir()
    for step in (1, 2):
        run.episode(EPISODE_ROW | {"step": step})
        run.metrics({"step": step, "reward": step / 4, "push/seconds": 1.0})
    run.close({"after": {"n": 8, "em": {"mean": 0.5, "low": 0.4, "high": 0.6}}})
    (offline,) = run.folder.glob("wandb/offline-run-*")
    told = subprocess.run(
        [Path(sys.executable).parent / "wandb", "leet", "inspect", "--summary", "--json", str(offline)],
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    ).stdout
    assert '"1_reward/reward": 0.5' in json.dumps(json.loads(told))
    raw = b"".join(path.read_bytes() for path in offline.rglob("*") if path.is_file())
    for held in (b"push/seconds", b"after/em", b"report-", b"checkpoint-"):
        assert held in raw, held
    tables = [json.loads(path.read_text()) for path in offline.rglob("*.table.json")]
    assert all(table["columns"] == list(EPISODE) for table in tables)
    assert sorted(row[0] for table in tables for row in table["data"])[-1] == 2


def _scalars(folder: Path) -> Iterator[tuple[int, str, float]]:
    """(step, key, value) of TensorBoard's files: records of length, its checksum, an event, its checksum."""
    for path in folder.glob("events*"):
        data, at = path.read_bytes(), 0
        while at < len(data):
            (size,) = struct.unpack_from("<Q", data, at)
            event = Event.FromString(data[at + 12 : at + 12 + size])
            at += 12 + size + 4
            yield from ((event.step, value.tag, value.simple_value) for value in event.summary.value)


def test_tensorboard_holds_the_rows(tmp_path: Path) -> None:
    run = RunFolder.create(str(tmp_path), "x")
    run.track(Tracker(load(["log=tensorboard"]), {}, run.folder))
    run.metrics({"step": 3, "reward": 0.25, "dev/em": 0.5})
    run.close()
    assert set(_scalars(run.folder / "tensorboard")) == {(3, "1_reward/reward", 0.25), (3, "dev/em", 0.5)}
    assert not (run.folder / "wandb").exists()


def test_every_key_of_a_row_has_a_section_and_no_other_has() -> None:
    plain = {key for key in keys(ROWS) if "/" not in key} - {"step"}
    assert {key for section in SECTIONS.values() for key in section} == plain
    assert in_sections({"step": 1, "new": 2.0, "em": 0.5}) == {"other/new": 2.0, "4_answers/em": 0.5}


def test_an_episode_and_a_summary_as_wandb_shows_them() -> None:
    shown = dict(zip(EPISODE, as_cells(EPISODE_ROW), strict=True))
    assert (shown["queries"], shown["passages"], shown["answer"]) == ("Oslo", "Oslo; Bergen", "Norway")
    summary = {
        "after": {"n": 8, "em": {"mean": 0.5, "low": 0.4, "high": 0.6}, "hit_rate": None},
        "seconds": {"push": 1.0},
    }
    assert final(summary) == {"after/em": 0.5}


def _rows(name: str, *values: float) -> list[dict[str, Any]]:
    return [{name: value} for value in values]


@pytest.mark.parametrize(
    ("rows", "begins_with", "title"),
    [
        (_rows("retrievals_per_question", 0.4, 0.2, 0.0, 0.0, 0.0, 0.0), 5, "stopped searching"),
        (_rows("retrievals_per_question", 0.4, 0.9, 1.1, 1.1, 1.1, 1.1), 5, "searches for nearly every question"),
        (_rows("kl_ref_episode", 0.1, 12.0, 9.0, 11.0, 11.0, 11.0, 12.0), 6, "runs away from its reference"),
        (
            [{"generated_tokens": 100, "seconds_step": s} for s in (*[1.0] * 6, 9.0, 1.0, 1.0, 3.0, 3.0, 3.0, 3.0)],
            12,
            "have become slow",
        ),
    ],
)
def test_what_goes_wrong_is_said_once_when_it_has_lasted(rows: list[dict], begins_with: int, title: str) -> None:
    said = [alerts(rows[:n], kl_target=None) for n in range(1, len(rows) + 1)]
    assert [len(some) for some in said] == [int(n == begins_with) for n in range(1, len(rows) + 1)]
    (alert,) = said[begins_with - 1]
    assert title in alert.title
    assert len(alert.title) < 64


def test_no_alert_of_a_policy_that_never_searched_or_always_did_or_of_a_run_that_is_well() -> None:
    for values in ([0.0] * 9, [1.1] * 9, [0.5, 0.6] * 5):
        rows = _rows("retrievals_per_question", *values)
        assert [alerts(rows[:n], kl_target=0.2) for n in range(1, len(rows) + 1)] == [[]] * len(rows)
