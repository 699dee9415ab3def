"""Drivers that a test kills, and what they leave."""

import subprocess

import psutil


def kill(driver: subprocess.Popen[bytes]) -> None:
    """Kills a driver and nothing else, and waits until all that it started has ended by itself."""
    ours = [p for p in psutil.Process(driver.pid).children(recursive=True) if not _is_agent(p)]
    driver.kill()
    driver.wait()
    _, left = psutil.wait_procs(ours, timeout=60)
    assert not left, f"the killed driver left {left}"


def _is_agent(process: psutil.Process) -> bool:
    """Ray's own two agents notice only a minute or two later that their raylet is gone."""
    try:
        return process.name().endswith("Agent")
    except psutil.Error:
        return False
