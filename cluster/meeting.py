"""Where processes meet: a port that is held from the moment it is told until the meeting opens there.

A port that is looked up, let go and opened later may be another's by then, on a machine with several runs: those who
were told of it then knock at a stranger's door until their time is up.
"""

import socket
from datetime import timedelta

import torch.distributed as dist

_held: dict[int, socket.socket] = {}  # by port; of this process


def hold(host: str) -> int:
    """A port of `host`, kept for the next meeting of this process. One that was held and not used is let go."""
    for port in list(_held):
        release(port)
    opened = socket.create_server((host, 0), backlog=4096)
    port = int(opened.getsockname()[1])
    _held[port] = opened
    return port


def release(port: int) -> None:
    """For who can only open a port by its number."""
    if port in _held:
        _held.pop(port).close()


def meet(host: str, port: int, *, rank: int, count: int, timeout_s: float) -> dist.TCPStore:
    """The store at which `count` ranks meet; rank 0 opens it, at the port that it holds.

    Raises RuntimeError when the others cannot find it within `timeout_s`.
    """
    mine = _held.pop(port).detach() if rank == 0 and port in _held else None
    return dist.TCPStore(
        host, port, count, is_master=rank == 0, timeout=timedelta(seconds=timeout_s), master_listen_fd=mine
    )
