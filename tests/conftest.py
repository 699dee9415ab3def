"""What several tests share: one local Ray for the whole session."""

import os
from collections.abc import Iterator

import pytest


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
