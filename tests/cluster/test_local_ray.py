"""The Ray of `make quickstart`: loopback, a token, both forms of `ray job submit`, and nothing left behind."""

import os
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from cluster.local_ray import LocalRay
from smartrag import ROOT


@pytest.mark.fault("D7", "a port is taken")
@pytest.mark.slow
def test_jobs_are_submitted_with_a_token_and_nothing_is_left(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    with _another_rays_agent(), LocalRay(num_cpus=2) as ray:
        token = Path(ray.env["RAY_AUTH_TOKEN_PATH"])
        assert token.stat().st_mode & 0o777 == 0o600
        address = ray.env["RAY_API_SERVER_ADDRESS"]
        assert address.startswith("http://127.0.0.1:")
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"{address}/api/jobs/", timeout=30)
        assert refused.value.code == 401
        started = ray.processes()
        assert len(started) >= 3
        # A command line that is refused at once shows that both forms reach the script, and that failure comes back.
        for form in (["launch/train.py"], ["--", "python", "launch/train.py"]):
            assert ray.submit([*form, "+experiment=quickstrat"]) != 0
            assert "did you mean 'quickstart'?" in "".join(capfd.readouterr())
    assert ray.processes() == []
    assert not any(os.path.exists(f"/proc/{pid}") and _running(pid) for pid in started)
    assert not token.exists()


@contextmanager
def _another_rays_agent() -> Iterator[None]:
    """Somebody listens where Ray's agent does by default."""
    with socket.socket() as taken:
        with suppress(OSError):  # a real one does
            taken.bind(("0.0.0.0", 52365))
            taken.listen()
        yield


def _running(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
