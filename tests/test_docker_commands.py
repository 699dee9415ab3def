"""docker/: its commands name files that exist, mean runs that compose and fit, and are in words that Ray takes."""

import json
import os
import re
import shlex
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from ray.scripts.scripts import cli, start
from ray.scripts.symmetric_run import curate_and_validate_ray_start_args

from cluster.placement import bundles
from smartrag import ROOT
from smartrag.compose import load
from tests.commands import in_blocks
from tests.test_docker import CLUSTERS, MANIFESTS, STAGES, TEXTS

SLURM = TEXTS["slurm.sh"].replace("\\\n", " ")
JOB = MANIFESTS["rayjob.yaml"]["spec"]
RUN = re.compile(r"(?:launch/\w+\.py|docker/slurm\.sh)((?: +\S*\w=\S+)*)")


def overrides(text: str) -> list[list[str]]:
    """What each command of a text that starts a run says after the script."""
    return [shlex.split(found.replace("$head", "node:6379")) for found in RUN.findall(text.replace("\\\n", " "))]


def ray_commands() -> Iterator[list[str]]:
    for words in in_blocks(TEXTS["README.md"]):
        if "ray" in words:
            yield words[words.index("ray") + 1 :]
    services = MANIFESTS["compose.yaml"]["services"]
    yield services["worker"]["command"][1:]
    yield from (shlex.split(found) for found in re.findall(r"ray ([^>)]+)", services["head"]["command"][-1]))
    for role in ("head", "worker"):
        yield from (shlex.split(line)[1:] for line in MANIFESTS["ray-up.yaml"][f"{role}_start_ray_commands"])
    for cluster in CLUSTERS:
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            yield ["start", "--block", *(f"--{name}={value}" for name, value in group["rayStartParams"].items())]
    [head] = JOB["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"]
    yield head["lifecycle"]["preStop"]["exec"]["command"][1:]
    yield json.loads(dict(STAGES["cpu"])["CMD"])[1:]


def test_ray_takes_every_command() -> None:
    seen = set()
    for words in ray_commands():
        command: click.Command = cli
        rest = list(words)
        while isinstance(command, click.Group):
            command = command.commands[rest.pop(0)]
        command.make_context(command.name, rest)  # parses, runs nothing; raises UsageError
        seen.add(command.name)
    assert {"start", "stop", "up", "submit", "get-auth-token"} <= seen, seen
    with pytest.raises(click.UsageError):
        start.make_context("start", ["--haed"])


def test_ray_takes_what_slurm_starts() -> None:
    [line] = re.findall(r"symmetric-run (.*?) -- ", SLURM)
    words = shlex.split(re.sub(r"\$\w+", "4", line))
    params = start.make_context("start", curate_and_validate_ray_start_args(words)).params
    assert (params["num_cpus"], params["num_gpus"]) == (4, 4)


def test_shellcheck_finds_nothing_in_the_slurm_script() -> None:
    shellcheck = Path(sys.executable).parent / "shellcheck"
    done = subprocess.run([shellcheck, ROOT / "docker" / "slurm.sh"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert os.access(ROOT / "docker" / "slurm.sh", os.X_OK)


def test_every_file_that_is_named_exists() -> None:
    named = {name for text in TEXTS.values() for name in re.findall(r"(?<![\w/=])(?:docker|launch|conf)/[\w.-]+", text)}
    assert {"docker/Dockerfile", "launch/train.py", "docker/slurm.sh"} <= named
    assert [name for name in named if not (ROOT / name.rstrip(".")).is_file()] == []
    listed = re.findall(r"`([\w-]+\.(?:yaml|sh))`", TEXTS["README.md"])
    assert [name for name in listed if name not in TEXTS] == []


def test_every_run_that_is_named_composes() -> None:
    found = {tuple(words) for text in TEXTS.values() for words in overrides(text)}
    assert ("+experiment=hotpotqa", "cluster=multi_node", "cluster.address=node:6379") in found
    assert len(found) >= 6
    for words in found:
        load(words)


def gpu_nodes(cluster: dict) -> list[tuple[float, float]]:
    """(CPUs, GPUs) of each worker."""
    limits = [
        [group["template"]["spec"]["containers"][0]["resources"]["limits"]] * group["replicas"]
        for group in cluster["workerGroupSpecs"]
    ]
    return [(limit["cpu"], limit["nvidia.com/gpu"]) for group in limits for limit in group]


def slurm_nodes() -> list[tuple[float, float]]:
    asked = dict(re.findall(r"#SBATCH --([\w-]+)=(\d+)$", SLURM, re.MULTILINE))
    return [(int(asked["cpus-per-task"]), int(asked["gpus-per-node"]))] * int(asked["nodes"])


@pytest.mark.parametrize(
    ("nodes", "words"),
    [
        (gpu_nodes(CLUSTERS[0]), ["+experiment=hotpotqa", "cluster=multi_node"]),
        (gpu_nodes(CLUSTERS[1]), overrides(JOB["entrypoint"])[0]),
        (slurm_nodes(), ["+experiment=hotpotqa", "cluster=multi_node"]),
    ],
)
def test_a_run_fits_the_nodes_that_it_is_promised(nodes: list[tuple[float, float]], words: list[str]) -> None:
    free = [list(node) for node in nodes]
    for bundle in sorted(bundles(load(words)), key=lambda b: -b.get("GPU", 0)):
        needs = (bundle["CPU"], bundle.get("GPU", 0))
        node = next((n for n in free if n[0] >= needs[0] and n[1] >= needs[1]), None)
        assert node is not None, f"{bundle} finds no room in {free}"
        node[0], node[1] = node[0] - needs[0], node[1] - needs[1]
    assert sum(gpus for _, gpus in free) == 0  # and none is paid for in vain


@pytest.fixture
def submission(tmp_path: Path) -> dict[str, str]:
    """A checkout in which Slurm's programs, Ray and the run are stand-ins of a line or two."""
    programs = tmp_path / ".venv" / "bin"
    programs.mkdir(parents=True)
    for name, body in {
        "srun": '[[ "$1" == --cpus-per-task=48 ]] && shift && exec "$@"',
        "scontrol": "echo node1; echo node2",
        "ray": 'while [ "$1" != -- ]; do shift; done; shift; "$@"',
    }.items():
        (programs / name).write_text(f"#!/bin/bash\n{body}\n")
        (programs / name).chmod(0o755)
    (programs / "python").symlink_to(sys.executable)
    (tmp_path / "launch").mkdir()
    (tmp_path / "launch" / "train.py").write_text(
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path('saved').touch(), sys.exit(0)))\n"
        "pathlib.Path('began').write_text(' '.join(sys.argv[1:]))\n"
        "sys.exit(4) if 'seed=4' in sys.argv else time.sleep(20)\n"
    )
    slurm = {"SUBMIT_DIR": str(tmp_path), "JOB_ID": "7", "JOB_NODELIST": "node[1-2]", "NNODES": "2"}
    slurm |= {"CPUS_PER_TASK": "48", "GPUS_ON_NODE": "8"}
    folders = {"SMARTRAG_RUNS": str(tmp_path), "SMARTRAG_CACHE": str(tmp_path)}
    return dict(os.environ) | {f"SLURM_{name}": value for name, value in slurm.items()} | folders


def test_slurm_tells_the_driver_alone_and_leaves_no_token(submission: dict[str, str], tmp_path: Path) -> None:
    script = [str(ROOT / "docker" / "slurm.sh"), "seed=1"]
    with subprocess.Popen(script, env=submission) as job:
        while not (tmp_path / "began").exists():
            assert job.poll() is None
            time.sleep(0.05)
        [token] = tmp_path.glob(".token-*")
        assert stat.S_IMODE(token.stat().st_mode) == 0o600
        assert len(token.read_text().strip()) == 64
        job.send_signal(signal.SIGTERM)
        assert job.wait(timeout=30) == 0
    assert (tmp_path / "saved").exists()
    assert (tmp_path / "began").read_text().split()[-2:] == ["cluster.address=node1:6379", "seed=1"]
    assert list(tmp_path.glob(".token-*")) + list(tmp_path.glob(".driver-*")) == []


def test_slurm_passes_on_how_a_run_ended_and_wants_its_folders(submission: dict[str, str]) -> None:
    script = str(ROOT / "docker" / "slurm.sh")
    assert subprocess.run([script, "seed=4"], env=submission, timeout=60).returncode == 4
    del submission["SMARTRAG_RUNS"]
    done = subprocess.run([script], env=submission, timeout=60, capture_output=True, text=True)
    assert done.returncode != 0
    assert "SMARTRAG_RUNS: names a folder that all nodes share" in done.stderr
