"""The port of a meeting is its own from the moment it is told."""

import socket
import threading

import pytest

from cluster import meeting
from cluster.wire import broadcast, gloo_group


def test_nobody_else_gets_the_port_and_those_who_come_early_wait_there() -> None:
    import torch

    port = meeting.hold("127.0.0.1")
    with pytest.raises(OSError, match="in use"):
        socket.create_server(("127.0.0.1", port))
    found: list[torch.Tensor] = [torch.zeros(3), torch.arange(3.0)]

    def join(rank: int) -> None:
        group = gloo_group("127.0.0.1", port, rank, 2, 30.0)
        broadcast(group, found[1 - rank])

    early = threading.Thread(target=join, args=(1,))
    early.start()  # knocks before rank 0 has opened
    join(0)
    early.join()
    assert found[0].tolist() == [0.0, 1.0, 2.0]


def test_a_port_that_was_not_used_is_let_go() -> None:
    first = meeting.hold("127.0.0.1")
    second = meeting.hold("127.0.0.1")
    socket.create_server(("127.0.0.1", first)).close()
    meeting.release(second)
    meeting.release(second)
    socket.create_server(("127.0.0.1", second)).close()
