"""Where a process stands that does not answer: the stacks of all its threads, on its stderr, which Ray keeps among the
logs of its session (worker-*.err)."""

import faulthandler
import os
import signal
from contextlib import suppress

import psutil


def tell_when_asked() -> None:
    """From now on this process tells its stacks on SIGUSR1, which would end it otherwise."""
    faulthandler.register(signal.SIGUSR1, all_threads=True)


def ask_children(title: str) -> list[int]:
    """Asks those descendants of this process that call themselves `title`...; returns whom."""
    asked = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error, IndexError):  # gone meanwhile
            if process.cmdline()[0].startswith(title):
                os.kill(process.pid, signal.SIGUSR1)
                asked.append(process.pid)
    return asked
