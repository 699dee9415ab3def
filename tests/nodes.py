"""Several Ray nodes on one machine: real `ray start` processes, each with an address of its own, and runs sent to them
as jobs. Where addresses of loopback are not enough, each in a network namespace whose link can be cut."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from cluster.local_ray import LocalRay
from smartrag import ROOT
from tests.processes import titled, until


@contextmanager
def node(
    head: LocalRay, ip: str, folder: Path, *, cpus: int = 1, inside: str = ""
) -> Iterator[subprocess.Popen[bytes]]:
    """A node that has joined; `inside`: the network namespace that owns `ip`."""
    command = ["ip", "netns", "exec", inside] if inside else []
    command += ["ray", "start", f"--address={head.address}", f"--node-ip-address={ip}", f"--num-cpus={cpus}"]
    log = folder / f"{ip}.log"
    with log.open("wb") as out:
        started = subprocess.Popen(
            [*command, "--num-gpus=0", "--block", "--disable-usage-stats", "--dashboard-agent-listen-port=0"],
            env=head.env,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        until(lambda: "Ray runtime started" in log.read_text(errors="replace"), started, log)
        yield started
    finally:
        lose(started)


def lose(lost: subprocess.Popen[bytes]) -> None:
    """What a machine that loses its power does to all that ran on it."""
    if lost.poll() is None:
        for process in [*psutil.Process(lost.pid).children(recursive=True), psutil.Process(lost.pid)]:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGKILL)
        lost.wait()


def where(nodes: dict[str, subprocess.Popen[bytes]]) -> dict[str, list[str]]:
    """Name of an actor's class -> addresses of the nodes that hold one, in their order."""
    found: dict[str, list[str]] = {}
    for ip, started in nodes.items():
        for name, processes in titled(psutil.Process(started.pid)).items():
            found.setdefault(name, []).extend([ip] * len(processes))
    return found


def submitted(head: LocalRay, log: Path, *settings: str) -> subprocess.Popen[bytes]:
    """A training job, whose log goes on to `log`."""
    submit = ["ray", "job", "submit", "--working-dir", ".", "--", sys.executable, "launch/train.py"]
    with log.open("wb") as out:
        return subprocess.Popen([*submit, *settings], cwd=ROOT, env=head.env, stdout=out, stderr=subprocess.STDOUT)


@dataclass(frozen=True, slots=True)
class Network:
    """A bridge of this machine's with one namespace to each further address."""

    head: str
    ips: tuple[str, ...]
    _name: str

    def namespace(self, ip: str) -> str:
        return f"{self._name}n{self.ips.index(ip)}"

    def cut(self, ip: str) -> None:
        """No packet comes through any more, and nobody is told."""
        _ip("link", "set", f"{self.namespace(ip)}b", "down")

    def mend(self, ip: str) -> None:
        _ip("link", "set", f"{self.namespace(ip)}b", "up")


def may_make_networks() -> bool:
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    with suppress(subprocess.CalledProcessError), network(1):
        return True
    return False


@contextmanager
def network(count: int) -> Iterator[Network]:
    """For root. Names and addresses carry this process's number, so that two test sessions do not meet."""
    name, subnet = f"sr{os.getpid() % 100_000}", f"10.231.{os.getpid() % 250}"
    made = Network(f"{subnet}.1", tuple(f"{subnet}.{n + 2}" for n in range(count)), name)
    with ExitStack() as stack:
        _ip("link", "add", name, "type", "bridge")
        stack.callback(_ip, "link", "del", name)
        _ip("addr", "add", f"{made.head}/24", "dev", name)
        _ip("link", "set", name, "up")
        for ip in made.ips:
            inside = made.namespace(ip)
            _ip("netns", "add", inside)
            stack.callback(_ip, "netns", "del", inside)
            _ip("link", "add", f"{inside}b", "type", "veth", "peer", "name", "eth0", "netns", inside)
            _ip("link", "set", f"{inside}b", "master", name, "up")
            for command in (("addr", "add", f"{ip}/24", "dev", "eth0"), ("link", "set", "eth0", "up")):
                _ip("-n", inside, *command)
            _ip("-n", inside, "link", "set", "lo", "up")
        yield made


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
