"""docker/: what the images and cluster manifests say is allowed by their formats, pinned, and agrees."""

import json
import re
import shlex
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from smartrag import ROOT

TEXTS = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "docker").iterdir() if path.is_file()}
MANIFESTS = {name: yaml.safe_load(text) for name, text in TEXTS.items() if name.endswith(".yaml")}
CLUSTERS = [MANIFESTS["raycluster.yaml"]["spec"], MANIFESTS["rayjob.yaml"]["spec"]["rayClusterSpec"]]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
USER = "$USER_ID:$USER_ID"


def stages() -> dict[str, list[tuple[str, str]]]:
    """Stage -> its instructions, after those of the stage that it is built from."""
    found: dict[str, list[tuple[str, str]]] = {}
    lines = [line for line in TEXTS["Dockerfile"].splitlines() if not line.lstrip().startswith("#")]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        word, _, rest = " ".join(line.split()).partition(" ")
        if word == "FROM":
            base, _, name = rest.partition(" AS ")
            found[name] = [*found.get(base, [(word, base)])]
        elif word:
            found[name].append((word, rest))
    return found


STAGES = stages()
ENV = dict(pair.split("=", 1) for word, rest in STAGES["gpu"] if word == "ENV" for pair in shlex.split(rest))
USER_ID = int(dict(STAGES["cpu"])["ARG"].removeprefix("USER_ID="))


def pods(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    return [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


def refused(name: str, manifest: Any) -> list[str]:
    schema = "compose" if name == "compose.yaml" else "kuberay"
    rules = yaml.safe_load((ROOT / "tests" / "schemas" / f"{schema}.yaml").read_text(encoding="utf-8"))
    return [error.message for error in jsonschema.Draft202012Validator(rules).iter_errors(manifest)]


@pytest.mark.parametrize("name", ["compose.yaml", "raycluster.yaml", "rayjob.yaml"])
def test_a_manifest_is_what_its_format_allows(name: str) -> None:
    assert refused(name, MANIFESTS[name]) == []


def test_the_cluster_launcher_takes_its_file() -> None:
    validate_config(prepare_config(MANIFESTS["ray-up.yaml"]))  # what `ray up` does first
    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepare_config(MANIFESTS["ray-up.yaml"] | {"setup_comands": []}))


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        ("compose.yaml", "services head prots", []),
        ("compose.yaml", "services head ports", ["8265:8265"]),
        ("compose.yaml", "services worker volumes", ["/var/run/docker.sock:/var/run/docker.sock"]),
        ("raycluster.yaml", "spec authOptions", {"mode": "disabled"}),
        ("raycluster.yaml", "spec headGroupSpec template spec securityContext runAsUser", 0),
        ("rayjob.yaml", "spec entrypont", "true"),
    ],
)
def test_a_schema_refuses_a_mistake(name: str, path: str, value: Any) -> None:
    manifest = yaml.safe_load(TEXTS[name])
    *outer, last = path.split()
    inner = manifest
    for key in outer:
        inner = inner[key]
    inner[last] = value
    assert refused(name, manifest)


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_an_image_is_pinned_needs_no_root_and_takes_code_last(target: str) -> None:
    last = dict(STAGES[target])
    images = [last["FROM"], *re.findall(r"--from=(\S+:\S+)", TEXTS["Dockerfile"])]
    assert all(re.match(r"[^:]+:\d+\.\d+\.\d+-", image) for image in images), images
    assert "ADD" not in last  # it fetches addresses and unpacks archives
    assert STAGES[target][-1] == ("USER", USER)
    assert USER_ID > 0
    assert all(isinstance(json.loads(last[word]), list) for word in ("ENTRYPOINT", "CMD"))  # signals reach the program
    assert json.loads(last["HEALTHCHECK"].partition("CMD ")[2])[0] == "python"
    copied = [rest for word, rest in STAGES[target] if word == "COPY"]
    assert copied[-2:] == [f"--from={target}-packages /opt/venv /opt/venv", ". ."]  # code changes install nothing
    assert last["VOLUME"] == "/data"
    assert all(ENV[name].startswith("/data/") for name in ("SMARTRAG_RUNS", "SMARTRAG_CACHE"))
    assert ENV["RAY_AUTH_MODE"] == "token"
    assert not re.search("TOKEN|KEY|SECRET|PASSWORD", " ".join(ENV))


def test_packages_are_installed_as_make_does_from_what_is_sent_to_the_builder() -> None:
    ignore = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    kept = {line[1:] for line in ignore if line.startswith("!")}
    assert "*" in ignore  # whatever is not named stays here
    assert kept == {"Makefile", "README.md", "cpu.lock", "pyproject.toml"} | {
        *("cluster", "conf", "launch", "models", "smartrag")
    }
    assert all((ROOT / name).exists() for name in kept)
    for stage in ("cpu-packages", "gpu-packages"):
        assert {name for word, rest in STAGES[stage] if word == "COPY" for name in rest.split()[:-1]} <= kept
    [make] = re.findall(r"make (VENV=\S+) (\S+)", TEXTS["Dockerfile"])
    done = subprocess.run(["make", "-n", *make], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "/opt/venv/bin/pip install" in done.stdout
    assert "'.[gpu]'" in dict(STAGES["gpu-packages"])["RUN"]
    assert "gpu" in PROJECT["optional-dependencies"]


def test_versions_users_and_volumes_agree() -> None:
    for name, text in TEXTS.items():
        assert set(re.findall(r"smartrag:(\d[\d.]*)-(?:cpu|gpu)", text)) <= {PROJECT["version"]}, name
    for cluster in CLUSTERS:
        assert cluster["rayVersion"] == ray.__version__
        for pod in pods(cluster):
            assert {pod["securityContext"][name] for name in ("runAsUser", "runAsGroup", "fsGroup")} == {USER_ID}
            volumes = {volume["name"]: volume for volume in pod["volumes"]}
            mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in pod["containers"][0]["volumeMounts"]}
            claim = mounts["/data"]["persistentVolumeClaim"]["claimName"]
            assert claim == MANIFESTS["storage.yaml"]["metadata"]["name"]
            assert mounts["/dev/shm"]["emptyDir"]["medium"] == "Memory"
    for service in MANIFESTS["compose.yaml"]["services"].values():
        targets = dict(volume.split(":") for volume in service["volumes"])
        assert targets == {"data": "/data", "token": ENV["HOME"] + "/.ray"}
        assert set(targets) == set(MANIFESTS["compose.yaml"]["volumes"])


def test_a_run_that_is_stopped_has_the_time_that_the_images_promise() -> None:
    wait = int(ENV["RAY_JOB_STOP_WAIT_TIME_S"])
    assert wait >= 60
    job = MANIFESTS["rayjob.yaml"]["spec"]
    head, *workers = pods(job["rayClusterSpec"])
    hooks = [pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"] for pod in (head, *workers)]
    assert hooks[0][:3] == ["ray", "job", "stop"]
    assert hooks[0][-1] == job["jobId"]
    assert all(int(hook[-1]) >= wait for hook in hooks[1:])
    assert all(pod["terminationGracePeriodSeconds"] > wait for pod in (head, *workers))
    [signal] = re.findall(r"--signal=B:TERM@(\d+)", TEXTS["slurm.sh"])
    assert int(signal) > wait


def test_every_variable_is_read_by_somebody() -> None:
    pattern = re.compile(r"\b(?:SMARTRAG|RAY|WANDB)_[A-Z_]+\b")
    named = {name for text in TEXTS.values() for name in pattern.findall(text)}
    assert {"SMARTRAG_RUNS", "RAY_AUTH_MODE", "RAY_JOB_STOP_WAIT_TIME_S", "WANDB_API_KEY"} <= named
    theirs = Path(ray.__file__).parent
    folders = [
        ROOT / "conf",
        ROOT / "smartrag",
        *(theirs / name for name in ("_private", "_common", "dashboard", "scripts")),
    ]
    sources = [path for folder in folders for path in folder.rglob("*") if path.suffix in (".py", ".yaml")]
    read = {name for path in sources for name in pattern.findall(path.read_text(encoding="utf-8", errors="replace"))}
    assert named - read == {"RAY_HEAD_IP"}  # `ray up` sets it for a worker's commands
