"""What several tests share: one local Ray for the whole session, chat endpoints that stop with their test, the table of
faults.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests import fault_table
from tests.chat_server import Server

settings.register_profile("smartrag", deadline=None)  # machines are busy and slow at times
settings.load_profile("smartrag")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--trials", type=int, default=1, help="multiplies the seeds that faults are drawn by")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.get_closest_marker("fault"):
            item.add_marker(pytest.mark.chaos)
        if "ray_session" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)
    _longest_first(items)


def _longest_first(items: list[pytest.Item]) -> None:
    """Files with a test that is given more time than others come first: side by side, none is left alone at the end."""
    given: dict[Path, float] = {}
    for item in items:
        timeout = item.get_closest_marker("timeout")
        given[item.path] = max(given.get(item.path, 0), timeout.args[0] if timeout else 0)
    items.sort(key=lambda item: -given[item.path])


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    try:
        yield
    except pytest.skip.Exception:
        raise
    except BaseException:
        fault_table.judged(item, passed=False)
        raise
    fault_table.judged(item, passed=True)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    outcomes = (terminalreporter.stats.get(outcome, []) for outcome in ("passed", "failed"))
    if rows := fault_table.played(report for reports in outcomes for report in reports):
        terminalreporter.write(fault_table.shown(rows))


@pytest.fixture
def row(request: pytest.FixtureRequest) -> fault_table.Row:
    """The row of the table of faults that this test plays."""
    found = fault_table.row_of(request.node)
    assert found is not None, "mark the test with fault(number, what)"
    return found


@pytest.fixture
def trials(request: pytest.FixtureRequest) -> int:
    """How many times as many seeds as usual are to be tried."""
    return request.config.getoption("--trials")


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
