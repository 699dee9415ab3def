"""Checkpoints survive a crash at any write, and what was altered is refused by name."""

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster import checkpoint
from cluster.checkpoint import Checkpoints, Damaged, verify


def publish(store: Checkpoints, step: int, text: str = "weights") -> None:
    with store.publish(step, {"steps_done": step, "seconds": {"push": 0.5}}) as tmp:
        (tmp / "learner").mkdir()
        (tmp / "learner" / "policy.bin").write_bytes(f"{text} {step}".encode() * 50)
        (tmp / "empty.bin").touch()


def names(store: Checkpoints) -> list[str]:
    return sorted(p.name for p in store.folder.iterdir())


@pytest.fixture
def store(tmp_path: Path) -> Checkpoints:
    return Checkpoints(tmp_path / "checkpoints", keep=2)


def test_what_was_published_comes_back(store: Checkpoints) -> None:
    publish(store, 12)
    folder, state = store.load()
    assert folder.name == "step_00000012"
    assert state == {"steps_done": 12, "seconds": {"push": 0.5}}
    assert store.load(folder) == (folder, state)
    assert (folder / "learner" / "policy.bin").read_bytes().startswith(b"weights 12")
    assert names(store) == ["step_00000012"]


def test_the_newest_by_number_and_only_as_many_as_wanted(store: Checkpoints) -> None:
    for step in (0, 9, 10, 100_000_000):
        publish(store, step)
    assert names(store) == ["step_00000010", "step_100000000"]
    assert store.load()[1]["steps_done"] == 100_000_000


@pytest.mark.fault("T6", "checkpoints come and go in any order")
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(st.integers(0, 30), min_size=1, max_size=8), keep=st.integers(1, 4))
def test_the_last_published_is_the_one_that_loads(tmp_path: Path, steps: list[int], keep: int) -> None:
    shutil.rmtree(tmp_path / "c", ignore_errors=True)
    store = Checkpoints(tmp_path / "c", keep)
    for step in steps:
        publish(store, step)
        assert store.load()[1]["steps_done"] == step  # those after it are of a past that was given up
        assert len(names(store)) <= keep


def test_a_state_with_numbers_for_keys_verifies(store: Checkpoints) -> None:
    with store.publish(1, {"by_hops": {10: 1.0, 2: None}}) as tmp:
        (tmp / "part").write_text("x")
    assert store.load()[1] == {"by_hops": {"10": 1.0, "2": None}}


@pytest.mark.fault("T1", "a save cannot be written")
def test_nothing_is_published_when_writing_fails(store: Checkpoints) -> None:
    publish(store, 1)
    with pytest.raises(FileNotFoundError), store.publish(2, {}) as tmp:
        (tmp / "no such folder" / "half").write_text("x")
    assert names(store) == ["step_00000001"]
    with pytest.raises(ValueError, match="without a single part"), store.publish(2, {}):
        pass
    assert names(store) == ["step_00000001"]


class Crash(BaseException):
    """The process is gone: no handler of ours runs after it (see `no_cleanup`)."""


def crash_at(monkeypatch: pytest.MonkeyPatch, n: int) -> Callable[[], int]:
    """The n-th operation that changes the disk raises, as do all later ones. Returns a counter of operations."""
    done = 0

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def operation(*args: Any, **kwargs: Any) -> Any:
            nonlocal done
            done += 1
            if done >= n:
                raise Crash
            return real(*args, **kwargs)

        return operation

    for owner, name in [
        (os, "fsync"),
        (Path, "mkdir"),
        (Path, "rename"),
        (Path, "write_bytes"),
        (Path, "touch"),
        (json, "dump"),
        (shutil, "rmtree"),
    ]:
        monkeypatch.setattr(owner, name, counted(getattr(owner, name)))
    return lambda: done


@pytest.mark.fault("L3", "a crash at the n-th operation of a save")
def test_a_crash_at_any_write_leaves_the_previous_or_the_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    survivors = []
    for n in range(1, 100):
        home = Checkpoints(tmp_path / str(n), keep=1)
        publish(home, 1)
        with monkeypatch.context() as patched:
            operations = crash_at(patched, n)
            try:
                publish(home, 2)
                finished = True
            except Crash:
                finished = False
            count = operations()
        after = Checkpoints(home.folder, keep=1)  # a new process
        folder, state = after.load()
        assert (folder / "learner" / "policy.bin").read_bytes() == f"weights {state['steps_done']}".encode() * 50
        survivors.append(state["steps_done"])
        publish(after, 3)
        assert names(after) == ["step_00000003"]  # and its leavings are swept
        if finished:
            assert count < n
            break
    else:
        pytest.fail("the sweep never reached the end")
    assert len(survivors) > 10
    assert survivors == sorted(survivors)  # once the new one is there, it stays
    assert {1, 2} == set(survivors)


@pytest.mark.fault("L3", "a save is killed")
def test_a_killed_save_leaves_a_draft_that_is_never_loaded(store: Checkpoints) -> None:
    publish(store, 1)
    shutil.copytree(store.folder / "step_00000001", store.folder / ".tmp-9-abc")
    assert store.load()[1]["steps_done"] == 1
    publish(store, 2)
    assert names(store) == ["step_00000001", "step_00000002"]


def test_publishing_a_step_again_replaces_it(store: Checkpoints) -> None:
    publish(store, 3, "old")
    publish(store, 3, "new")
    folder, _ = store.load()
    assert (folder / "learner" / "policy.bin").read_bytes().startswith(b"new")
    assert names(store) == ["step_00000003"]


# ---------------------------------------------------------------------------------------------------------------------


def flip(file: Path) -> None:
    raw = bytearray(file.read_bytes())
    raw[len(raw) // 2] ^= 4
    file.write_bytes(raw)


@pytest.mark.fault("T3", "a bit of a checkpoint is flipped")
@pytest.mark.parametrize("part", ["learner/policy.bin", "manifest.json"])
def test_one_flipped_bit_is_refused_by_name(store: Checkpoints, part: str) -> None:
    publish(store, 1)
    publish(store, 2)
    newest = store.folder / "step_00000002"
    flip(newest / part)
    with pytest.raises(Damaged, match=rf"{part} is damaged"):
        store.load(newest)


@pytest.mark.fault("T2", "the newest checkpoint is damaged")
def test_the_one_before_a_damaged_checkpoint_is_taken_with_a_warning(
    store: Checkpoints, caplog: pytest.LogCaptureFixture
) -> None:
    publish(store, 1)
    publish(store, 2)
    flip(store.folder / "step_00000002" / "learner" / "policy.bin")
    with caplog.at_level(logging.WARNING, logger="smartrag"):
        assert store.load()[1]["steps_done"] == 1
    assert "policy.bin is damaged" in caplog.text
    flip(store.folder / "step_00000001" / "learner" / "policy.bin")
    with pytest.raises(FileNotFoundError, match="all 2 there are damaged"):
        store.load()


def test_going_on_before_a_damaged_checkpoint_does_not_lose_the_good_ones(tmp_path: Path) -> None:
    store = Checkpoints(tmp_path / "checkpoints", keep=1)
    publish(store, 8)
    shutil.copytree(store.folder / "step_00000008", store.folder / "step_00000010")
    (store.folder / "step_00000010" / "manifest.json").unlink()
    assert store.load()[1]["steps_done"] == 8
    publish(store, 9)
    assert store.load()[1]["steps_done"] == 9
    assert names(store) == ["step_00000009"]


@pytest.mark.fault("T2", "files of a checkpoint are missing, cut or foreign")
def test_every_kind_of_damage_says_what_and_where(store: Checkpoints) -> None:
    def damaged(change: Callable[[Path], Any], message: str) -> None:
        publish(store, 5)
        folder = store.folder / "step_00000005"
        change(folder)
        with pytest.raises(Damaged, match=message):
            verify(folder)

    damaged(lambda f: (f / "learner" / "policy.bin").unlink(), "learner/policy.bin is missing")
    damaged(lambda f: os.truncate(f / "learner" / "policy.bin", 7), "has 7 bytes, not the 450 that were written")
    damaged(lambda f: (f / "learner" / "more.pt").touch(), "learner/more.pt was not there when it was written")
    damaged(lambda f: (f / "manifest.json").write_text("{}"), "manifest.json is damaged")
    damaged(lambda f: (f / "manifest.json").unlink(), "not a checkpoint of SmartRAG")
    damaged(lambda f: (f / "link").symlink_to("/etc/hostname"), "link was not there")


def test_a_newer_format_is_not_guessed_at(store: Checkpoints, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "_FORMAT", 99)
    publish(store, 1)
    monkeypatch.undo()
    with pytest.raises(Damaged, match="has format 99; this version of SmartRAG reads 1"):
        verify(store.folder / "step_00000001")


def test_absent_empty_and_foreign_folders(store: Checkpoints, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
        store.load()
    store.folder.mkdir()
    with pytest.raises(FileNotFoundError, match="no checkpoint in"):
        store.load()
    with pytest.raises(FileNotFoundError, match="does not exist"):
        store.load(tmp_path / "absent")
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(Damaged, match="not a checkpoint of SmartRAG"):
        store.load(tmp_path)
