"""A child that is asleep for good ends when its parent is killed."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from smartrag import ROOT

PARENT = """
import multiprocessing, sys, time
from cluster.orphan import end_with_parent

def child(bound):
    if bound:
        end_with_parent()
    print(multiprocessing.current_process().pid, flush=True)
    time.sleep(600)

if __name__ == "__main__":
    end_with_parent()  # no child of multiprocessing: nothing happens
    multiprocessing.get_context("spawn").Process(target=child, args=(sys.argv[1] == "bound",)).start()
    time.sleep(600)
"""


@pytest.mark.fault("D2", "the parent of an engine is killed")
def test_a_child_goes_with_its_parent(tmp_path: Path) -> None:
    script = tmp_path / "parent.py"
    script.write_text(PARENT)
    assert _outlives(script, "free")
    assert not _outlives(script, "bound")


def _outlives(script: Path, how: str) -> bool:
    """Whether a child is there five seconds after its parent was killed. It is not there afterwards."""
    command, env = [sys.executable, str(script), how], os.environ | {"PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    gone = _soon(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
    if not gone:
        child.kill()
    return not gone


def _soon(true: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 5
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True
