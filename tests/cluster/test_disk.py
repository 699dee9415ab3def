"""What a learner rank saves is what it held when it was told to, however late the disk."""

from pathlib import Path
from threading import Event
from types import SimpleNamespace

import pytest
import torch

from cluster.disk import Disk


def test_writes_wait_for_the_disk_and_the_learner_does_not(tmp_path: Path) -> None:
    from cluster.snapshot import Snapshot

    disk, free = Disk(), Event()
    engine = Snapshot(SimpleNamespace(checkpoint_config={"checkpoint_serialization": True}), disk)
    weights = torch.arange(4.0)
    disk.put(free.wait)  # the disk is busy
    engine.save({"module": weights}, str(tmp_path / "states.pt"))
    weights.zero_()  # the learner goes on
    assert not disk.written(wait=False)
    assert not (tmp_path / "states.pt").exists()
    free.set()
    assert disk.written(wait=True)
    assert engine.load(str(tmp_path / "states.pt"))["module"].tolist() == [0, 1, 2, 3]


def test_a_write_that_fails_is_told_once_and_the_others_are_written(tmp_path: Path) -> None:
    disk = Disk()
    disk.put(lambda: (tmp_path / "away" / "a").write_text("a"))
    disk.put(lambda: (tmp_path / "b").write_text("b"))
    with pytest.raises(FileNotFoundError, match="away"):
        disk.written(wait=True)
    assert (tmp_path / "b").read_text() == "b"
    assert disk.written(wait=False)
