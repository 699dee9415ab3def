"""A Ray of one machine for one job: loopback addresses, token authentication, and nothing left when it ends."""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType

_START_S, _STOP_S = 240.0, 20.0
_IP = "127.0.0.2"  # loopback; Ray replaces 127.0.0.1 by an address of the network


class LocalRay:
    """`with LocalRay(num_cpus=2) as ray: ray.submit([...])`.

    Starts `ray start --head --block` in a process group of its own.

    Raises RuntimeError when Ray does not come up; its logs are then named.
    """

    def __init__(self, num_cpus: int):
        self.num_cpus = num_cpus
        self._folder = Path(tempfile.mkdtemp(prefix="smartrag-ray-"))
        self._dashboard = _free_port()
        self.address = f"{_IP}:{_free_port()}"  # for other nodes to join at
        self._said = ""
        token = self._folder / "token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        self.env = os.environ | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{self._dashboard}",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_TMPDIR": str(self._folder),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        }

    def __enter__(self) -> "LocalRay":
        log = self._folder / "ray.log"
        with log.open("w") as out:
            self._head = subprocess.Popen(
                [
                    *("ray", "start", "--head", "--block", f"--node-ip-address={_IP}", "--disable-usage-stats"),
                    *(f"--port={self.address.rpartition(':')[2]}", f"--num-cpus={self.num_cpus}", "--num-gpus=0"),
                    *("--dashboard-host=127.0.0.1", f"--dashboard-port={self._dashboard}"),
                    # Any free port: on its usual one, taken by another Ray, the agent would live on but take no jobs.
                    "--dashboard-agent-listen-port=0",
                    *(f"--temp-dir={self._folder}",),
                ],
                env=self.env,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        deadline = time.monotonic() + _START_S
        while not self._takes_jobs():
            if self._head.poll() is not None or time.monotonic() > deadline:
                said = log.read_text(errors="replace")[-2000:]
                self.__exit__(None, None, None)
                raise RuntimeError(
                    f"Ray did not start on this machine within {_START_S:.0f} s; it said:\n{said}\n{self._said}"
                )
            time.sleep(0.5)
        return self

    def __exit__(self, _t: type[BaseException] | None, _e: BaseException | None, _b: TracebackType | None) -> None:
        self._head.terminate()  # the raylet ends its workers; what is deaf to that is killed
        deadline = time.monotonic() + _STOP_S
        while self.processes() and time.monotonic() < deadline:
            time.sleep(0.2)
        for pid in self.processes():
            _kill(pid, signal.SIGKILL)
        self._head.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def submit(self, command: list[str]) -> int:
        """`ray job submit --working-dir . COMMAND` from the current folder; returns its exit code (0: succeeded)."""
        submit = ["ray", "job", "submit", "--working-dir", ".", *command]
        return subprocess.run(submit, env=self.env, check=False).returncode

    def processes(self) -> list[int]:
        """Pids of all that this Ray started, jobs and engines included: they carry its folder in their environment."""
        mark = f"RAY_TMPDIR={self._folder}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                try:
                    if mark in (entry / "environ").read_bytes().split(b"\0") and _alive(entry):
                        found.append(int(entry.name))
                except OSError:  # gone meanwhile, or not ours to read
                    continue
        return found

    def _takes_jobs(self) -> bool:
        """The dashboard answers before the agent that runs jobs is there, so the proof is a job that does nothing."""
        probe = ["ray", "job", "submit", "--no-wait", "--", "true"]
        done = subprocess.run(probe, env=self.env, check=False, capture_output=True, text=True)
        self._said = done.stderr[-1000:]
        return done.returncode == 0


def _alive(entry: Path) -> bool:
    return (entry / "stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"


def _kill(pid: int, sig: signal.Signals) -> None:
    try:
        os.kill(pid, sig)
    except ProcessLookupError:
        return


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
