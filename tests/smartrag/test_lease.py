"""Two drivers at one run: one of them writes, whatever becomes of the other."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.checkpoint import Checkpoints
from smartrag import ROOT, lease
from smartrag.lease import Lease, Locked
from smartrag.log import RunFolder

HOLD = """
import sys, time
from pathlib import Path
from smartrag.lease import Lease
held = Lease.claim(Path(sys.argv[1]))
print(held.epoch, flush=True)
time.sleep(600)
"""


class Clock:
    """Time passes only where somebody sleeps; `tells` is called each time."""

    def __init__(self, tells: object = None):
        self.now, self.tells = 0.0, tells

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        if callable(self.tells):
            self.tells()


def said(folder: Path, epoch: int, **other: object) -> None:
    """What the holder of `epoch` says, changed."""
    path = folder / "lease" / f"{epoch:08d}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | other))


def never(seconds: float) -> None:
    raise AssertionError("there was nothing to wait for")


def holder(folder: Path) -> "subprocess.Popen[str]":
    """Another process that holds the run."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().strip() == "1"
    return process


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases of this process stay as a test leaves them."""
    monkeypatch.setattr(lease, "BEAT_S", 3600)


@pytest.mark.fault("D6", "two drivers go on with one run")
def test_the_second_of_two_drivers_is_refused_and_the_next_need_not_wait(tmp_path: Path) -> None:
    first = holder(tmp_path)
    try:
        with pytest.raises(Locked, match=rf"is being written by process {first.pid} on .*; wait until it ends"):
            Lease.claim(tmp_path)
    finally:
        first.kill()
        first.wait()
    second = Lease.claim(tmp_path, sleep=never)  # on one machine a dead process is known to be dead
    assert second.epoch == 2
    second.release()
    third = Lease.claim(tmp_path, sleep=never)
    assert sorted(path.name for path in (tmp_path / "lease").iterdir()) == ["00000002.json", "00000003.json"]
    third.release()


def test_elsewhere_silence_is_waited_for_and_the_clock_of_a_file_means_nothing(tmp_path: Path) -> None:
    Lease.claim(tmp_path).release()
    said(tmp_path, 1, released=False, host="elsewhere")
    os.utime(tmp_path / "lease" / "00000001.json", (0, 2**33))
    clock = Clock()
    taken = Lease.claim(tmp_path, clock=clock, sleep=clock.sleep)
    assert taken.epoch == 2
    assert lease.SILENCE_S <= clock.now <= lease.SILENCE_S + 1
    taken.release()

    said(tmp_path, 2, released=False, host="elsewhere")
    clock = Clock(lambda: said(tmp_path, 2, beat=clock.now) if clock.now > 7 else None)
    with pytest.raises(Locked, match=r"is being written by process \d+ on elsewhere"):
        Lease.claim(tmp_path, clock=clock, sleep=clock.sleep)
    assert clock.now < 10


@pytest.mark.parametrize("content", ["", '{"pid', "[1]", "{}"])
def test_a_lease_that_cannot_be_read_is_a_silent_one(content: str, tmp_path: Path) -> None:
    (tmp_path / "lease").mkdir()
    (tmp_path / "lease" / "00000004.json").write_text(content)
    clock = Clock()
    taken = Lease.claim(tmp_path, clock=clock, sleep=clock.sleep)
    assert (taken.epoch, clock.now >= lease.SILENCE_S) == (5, True)
    taken.release()


def test_of_two_that_take_over_at_once_one_does(tmp_path: Path) -> None:
    Lease.claim(tmp_path).release()
    said(tmp_path, 1, released=False, host="elsewhere")
    faster: list[Lease] = []
    clock = Clock(lambda: faster or faster.append(Lease(tmp_path, 2)) if clock.now > 20 else None)
    with pytest.raises(Locked, match=f"is being written by process {os.getpid()} "):
        Lease.claim(tmp_path, clock=clock, sleep=clock.sleep)
    with pytest.raises(FileExistsError):
        Lease(tmp_path, 2)
    faster[0].release()


def test_a_driver_that_stood_still_writes_nothing_more(tmp_path: Path) -> None:
    """It comes back after another has taken its run: no row, no checkpoint, and the other's draft stays."""
    asleep, other = RunFolder(tmp_path), RunFolder(tmp_path)
    asleep.claim()
    asleep.metrics({"step": 1})
    store = Checkpoints(asleep.checkpoints, 2, fence=asleep.check_held)
    with store.publish(1, {}) as draft:
        (draft / "policy").write_text("ours")
    said(tmp_path, 1, released=True)  # as another machine would see it after its silence
    other.claim()
    (other.checkpoints / ".tmp-2-theirs").mkdir()
    for write in (
        lambda: asleep.metrics({"step": 2}),
        lambda: asleep.learned_from({"step": 2}),
        lambda: asleep.episode({"step": 2}),
        lambda: asleep.rewind(0),
        lambda: asleep.write("summary.json", "{}"),
        lambda: store.publish(2, {}).__enter__(),
    ):
        with pytest.raises(Locked, match="was taken over by process"):
            write()
    assert [row["step"] for row in other.rows()] == [1]
    assert sorted(path.name for path in other.checkpoints.iterdir()) == [".tmp-2-theirs", "step_00000001"]
    other.metrics({"step": 2})
    other.close()
    asleep.close()


def test_a_publication_that_began_before_the_other_came_is_not_made(tmp_path: Path) -> None:
    asleep, other = RunFolder(tmp_path), RunFolder(tmp_path)
    asleep.claim()
    store = Checkpoints(asleep.checkpoints, 2, fence=asleep.check_held)

    def publish() -> None:
        with store.publish(1, {}) as draft:
            (draft / "policy").write_text("ours")
            said(tmp_path, 1, released=True)
            other.claim()

    with pytest.raises(Locked, match="was taken over by process"):
        publish()
    assert not list(asleep.checkpoints.iterdir())
    other.close()
    asleep.close()
