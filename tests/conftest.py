"""What several tests share: one local Ray for the whole session, chat endpoints that stop with their test."""

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.chat_server import Server


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """A local Ray of 4 CPUs (a count for scheduling, not a promise of cores)."""
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    import ray

    ray.init(
        num_cpus=4,
        include_dashboard=False,
        namespace="smartrag-test",
        log_to_driver=False,
        _node_ip_address="127.0.0.2",  # loopback, as a run's own local Ray; Ray replaces 127.0.0.1
    )
    yield
    ray.shutdown()


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Server]]:
    monkeypatch.setenv("TEST_KEY", "secret")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    started = []

    def start(reply: Callable[[dict[str, Any], int], tuple[int, Any]]) -> Server:
        started.append(Server(reply))
        return started[-1]

    yield start
    for server in started:
        server.http.shutdown()
        server.http.server_close()
