"""No process of ours outlives the one that started it, however that ends."""

import ctypes
import multiprocessing
import os
import signal

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def end_with_parent() -> None:
    """In a process that multiprocessing started: the kernel kills it when its parent is gone. Elsewhere nothing.

    vLLM's own processes end by themselves when their parent says goodbye; one that was killed or lost does not.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent.pid:  # it went before it could be heard
        os._exit(1)
