"""The Ray of `make quickstart`: loopback, a token, both forms of `ray job submit`, and nothing left behind."""

import ipaddress
import os
import re
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
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
        for token_less in ({"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}):
            assert "Authentication token is missing or incorrect" in _joined(ray, token_less)
        started = ray.processes()
        assert len(started) >= 3
        listening = _listening(started)
        assert {("gcs_server", "all"), ("raylet", "all"), ("dashboard", "loopback")} <= listening
        # Which of their ports Ray's helpers have open differs from one moment to the next; who they are does not.
        assert {name for name, _ in listening} <= {name for name, _ in _documented()}
        # A command line that is refused at once shows that both forms reach the script, and that failure comes back.
        for form in (["launch/train.py"], ["--", "python", "launch/train.py"]):
            assert ray.submit([*form, "+experiment=quickstrat"]) != 0
            assert "did you mean 'quickstart'?" in "".join(capfd.readouterr())
    assert ray.processes() == []
    assert not any(os.path.exists(f"/proc/{pid}") and _running(pid) for pid in started)
    assert not token.exists()


def _joined(ray: LocalRay, env: Mapping[str, str]) -> str:
    """What Ray says to who joins with this environment in place of the token."""
    plain = {name: x for name, x in ray.env.items() if not name.startswith("RAY_AUTH")}
    join = f"import ray; ray.init(address={ray.address!r}); print('joined')"
    done = subprocess.run([sys.executable, "-c", join], env=plain | env, capture_output=True, text=True, timeout=300)
    assert "joined" not in done.stdout
    return done.stderr


def _listening(pids: list[int]) -> set[tuple[str, str]]:
    """(process, loopback or all) of every listening socket."""
    found = set()
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            found.update((_name(process), where) for where in _where(process))
    return found


def _name(process: psutil.Process) -> str:
    """As the table has it: of a title that the process gave itself, of a script or module, of a program. A worker that
    is starting has no title yet."""
    words = process.cmdline()
    title = words[0].strip()
    if title.startswith("ray::"):
        return title.removeprefix("ray::") if title.endswith("Agent") else "worker"
    if Path(title).name.startswith("python"):
        module = words[2].split(".")[-2] if words[1] == "-m" else ""
        script = module or Path(next(word for word in words if word.endswith(".py"))).stem
        return "worker" if script in ("setup_worker", "default_worker") else script
    return Path(title).name


def _where(process: psutil.Process) -> Iterator[str]:
    for connection in process.net_connections(kind="inet"):
        if connection.status == psutil.CONN_LISTEN:
            ip = ipaddress.ip_address(connection.laddr.ip.removeprefix("::ffff:"))
            yield "loopback" if ip.is_loopback else "all"


def _documented() -> set[tuple[str, str]]:
    """The same of the table in docs/security.md."""
    page = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)`[^|]* \| (yes|at times)? ?\| (yes|at times)? ?\|$", page, re.MULTILINE)
    return {(name, where) for name, *yes in rows for where, y in zip(("loopback", "all"), yes, strict=True) if y}


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
