"""Drivers that a test waits for or kills, what they leave, and ports for what it starts."""

import re
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil


def until(done: Callable[[], object], running: subprocess.Popen[bytes], log: Path, timeout_s: float = 600) -> float:
    """Waits, and says how many seconds. What runs must not end meanwhile; `log` is what it says."""
    start = time.monotonic()
    while not done():
        said = log.read_text(errors="replace")[-4000:]
        assert running.poll() is None, f"it ended with {running.returncode}:\n{said}"
        assert time.monotonic() < start + timeout_s, f"nothing happened for {timeout_s} s:\n{said}"
        time.sleep(0.5)
    return time.monotonic() - start


def free_port() -> int:
    """Of this machine, at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def kill(driver: subprocess.Popen[bytes]) -> None:
    """Kills a driver and nothing else, and waits until all that it started has ended by itself."""
    ours = [p for p in psutil.Process(driver.pid).children(recursive=True) if not _is_agent(p)]
    driver.kill()
    driver.wait()
    _, left = psutil.wait_procs(ours, timeout=60)
    assert not left, f"the killed driver left {left}"


def titled(ancestor: psutil.Process) -> dict[str, list[psutil.Process]]:
    """Descendants by what they call themselves: a worker of Ray's after its actor's class, ray::LearnerRank.update, an
    engine of vLLM's VLLM::EngineCore."""
    found: dict[str, list[psutil.Process]] = {}
    for process in ancestor.children(recursive=True):
        with suppress(psutil.Error):  # it has ended, perhaps this very moment
            if match := re.match(r"\w+::(\w+)", (process.cmdline() or [""])[0]):
                found.setdefault(match[1], []).append(process)
    return found


def _is_agent(process: psutil.Process) -> bool:
    """Ray's own two agents notice only a minute or two later that their raylet is gone."""
    try:
        return process.name().endswith("Agent")
    except psutil.Error:
        return False
