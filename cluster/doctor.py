"""The doctor: everything that a run needs of a machine, looked at before the run, each in a short time."""

import importlib.metadata
import os
import platform
import resource
import shutil
import socket
import threading
import time
import tomllib
import urllib.parse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import constants as hub
from ray._common.utils import get_system_memory
from ray._private.utils import estimate_available_memory, get_num_cpus, read_ray_address, resolve_object_store_memory

from cluster import machine
from cluster.dense import check_dense_recipe, open_dense
from cluster.engine import check_plugin
from cluster.java import anserini_jar, preflight
from cluster.manifest import check_recipe, open_manifest
from cluster.objects import why_not_writable
from cluster.placement import bundles
from smartrag import ROOT, own_reward
from smartrag.chat import api_key
from smartrag.config import Run
from smartrag.data.load import Place, places
from smartrag.data.passages import Recipe
from smartrag.doctor import machine as on_machine
from smartrag.doctor import needs, outside
from smartrag.doctor.finding import Finding, Level, ok, problem, refused, show
from smartrag.exits import BAD_INPUT
from smartrag.model_folder import parameters
from smartrag.origin import Origin, find
from smartrag.reach import address, why_not
from smartrag.report.terminal import wide
from smartrag.tracking import wandb_out_of_reach

_KNOCK_S = 3.0  # for one answer over the network
_CHILD_S = 28.0  # for a child that starts a JVM or imports torch
_CHECK_S = 30.0  # for a check; all run at once, and take 4 s on an idle machine


def doctor(run: Run) -> int:
    """Looks, prints the table and returns the exit code."""
    findings = examine(run)
    show(findings, wide(180))
    return BAD_INPUT if any(finding.level is Level.problem for finding in findings) else 0


def examine(run: Run) -> list[Finding]:
    """All checks at once, each in a thread of its own that nobody waits for longer than _CHECK_S."""
    results: dict[str, list[Finding]] = {}

    def look(name: str, check: Callable[[Run], Finding | list[Finding]]) -> None:
        try:
            found = check(run)
        except Exception as error:
            found = problem(
                name, f"the check itself failed: {type(error).__name__}: {error}", "tell us, with this line"
            )
        results[name] = found if isinstance(found, list) else [found]

    start = time.monotonic()
    threads = {name: threading.Thread(target=look, args=(name, check), daemon=True) for name, check in _CHECKS.items()}
    for thread in threads.values():
        thread.start()
    findings = []
    for name, thread in threads.items():
        thread.join(max(0.0, start + _CHECK_S - time.monotonic()))
        late = problem(
            name, f"no result within {_CHECK_S:g} s", "see what hangs: a disk, a name server, a busy machine"
        )
        findings += results.get(name, [late])
    return findings


def _python(_: Run) -> Finding:
    wanted = _project()["requires-python"]
    return on_machine.python(platform.python_version(), wanted, platform.system(), platform.machine())


def _packages(run: Run) -> Finding:
    project = _project()
    wanted = [*project["dependencies"], *project["optional-dependencies"]["gpu" if run.learner.gpus else "cpu"]]
    try:
        check_plugin(run.cluster.weights)
    except RuntimeError as error:
        return refused("packages", error, "")
    return on_machine.packages(wanted, {d.name: d.version for d in importlib.metadata.distributions()})


def _java(run: Run) -> Finding:
    if run.retriever.searcher != "bm25":
        return ok("Java", f"not needed by retriever.searcher={run.retriever.searcher}")
    try:
        anserini_jar()
        return ok("Java", preflight(_CHILD_S))
    except RuntimeError as error:
        return refused("Java", error, "")


def _cores(run: Run) -> Finding:
    asked = sum(bundle["CPU"] for bundle in bundles(run))
    return on_machine.cores(
        asked, os.cpu_count() or 1, int(get_num_cpus(override_docker_cpu_warning=True)), _joins(run)
    )


def _memory(run: Run) -> Finding:
    count = _parameters(run)
    needed = None if count is None else needs.machine_bytes(run, count)
    return on_machine.memory(needed, estimate_available_memory(), get_system_memory(), _joins(run))


def _shared_memory(run: Run) -> Finding:
    wanted = resolve_object_store_memory(estimate_available_memory())
    return on_machine.shared_memory(shutil.disk_usage("/dev/shm").free, wanted, _joins(run))


def _runs(run: Run) -> Finding:
    count = _parameters(run)
    needed = None if count is None else (run.train.keep + 1) * needs.checkpoint_bytes(run, count)  # and a draft
    return on_machine.folder("runs", machine.disk(Path(run.runs)), needed, _joins(run))


def _cache(run: Run) -> Finding:
    return on_machine.folder("cache", machine.disk(Path(run.cache)), None, _joins(run))


def _gpus(run: Run) -> Finding:
    asked, count = sum(bundle.get("GPU", 0) for bundle in bundles(run)), _parameters(run)
    there = machine.gpus(_CHILD_S, ask_torch=asked > 0)
    return on_machine.gpus(asked, there, None if count is None else needs.rank_bytes(run, count), _joins(run))


def _ray(run: Run) -> Finding:
    cluster = _joins(run)
    why = "no Ray was started here" if cluster == "auto" else why_not(cluster, _KNOCK_S) if cluster else ""
    return outside.ray(cluster, why, read_ray_address() or "", machine.loopback())


def _ports(run: Run) -> Finding:
    return outside.ports(machine.taken(outside.RAY_PORTS), _joins(run), read_ray_address() or "")


def _token(run: Run) -> Finding:
    return outside.token(machine.token(), _joins(run))


def _host(_: Run) -> Finding:
    name = socket.gethostname()
    return on_machine.host(name, machine.unresolved(name))


def _open_files(_: Run) -> Finding:
    return on_machine.open_files(resource.getrlimit(resource.RLIMIT_NOFILE)[1])


def _model(run: Run) -> Finding:
    try:
        origin = _origin(run)
        fallback = None if run.model.fallback is None else find(run.model.fallback, _caches(run) / "models")
    except ValueError as error:
        return refused("model", error, "give model.path a folder, an id on the Hugging Face hub, or package://NAME")
    return outside.model(origin, fallback, _hub() if origin.folder is None and origin.repo is not None else "")


def _data_and_index(run: Run) -> list[Finding]:
    try:
        found = places(run.data, _caches(run) / "data")
    except ValueError as error:
        return [refused("data", error, ""), _index(run, {})]
    away = [place.repo for place in found.values() if place.repo is not None and not place.folder.is_dir()]
    cached = Path(os.environ.get("HF_DATASETS_CACHE") or Path(hub.HF_HOME) / "datasets")
    kept = [repo for repo in away if any(cached.glob(f"{repo.partition('/')[0]}___*"))]
    return [outside.data(found, _hub() if away else "", kept), _index(run, found)]


def _index(run: Run, found: Mapping[str, Place]) -> Finding:
    given, retriever = run.retriever.index, run.retriever
    if retriever.http is not None:
        host, port = address(retriever.http.url)
        why = why_not(retriever.http.url, _KNOCK_S)
        return outside.service(f"{host}:{port}", retriever.http.key_variable, _is_set(retriever.http.key_variable), why)
    if retriever.searcher not in ("bm25", "dense"):
        return ok("index", f"the affair of {retriever.searcher}")
    if given is None:
        return outside.index(None, 0, found)
    try:
        folder = Path(given).expanduser().resolve()
        if retriever.searcher == "dense":
            rows = open_dense(folder).rows
            check_dense_recipe(folder, open_dense(folder), retriever)
        else:
            rows = open_manifest(folder).rows
            check_recipe(folder, open_manifest(folder), Recipe.of(retriever))
    except (RuntimeError, ValueError) as error:
        return refused("index", error, "")
    return outside.index(given, rows, found)


def _is_set(variable: str | None) -> bool:
    return variable is None or bool(os.environ.get(variable))


def _endpoints(run: Run) -> list[Finding]:
    findings = []
    for setting, endpoint in run.endpoints.items():
        host, port = address(endpoint.base_url)
        try:
            has_key = bool(api_key(endpoint))
        except ValueError:
            has_key = False
        why = why_not(endpoint.base_url, _KNOCK_S)
        findings.append(outside.endpoint(setting, f"{host}:{port}", endpoint.key_variable, has_key, why))
    return findings


def _reward(run: Run) -> list[Finding]:
    if run.reward.function is None:
        return []
    try:
        own_reward.check(run.reward.function)
    except ValueError as error:
        return [refused("reward", error, "")]
    return [ok("reward", f"{run.reward.function} scores what it is shown")]


def _copies(run: Run) -> Finding:
    uri = run.train.mirror
    return outside.copies(uri, "" if uri is None else why_not_writable(uri))


def _wandb(run: Run) -> Finding:
    return outside.wandb(run.log.wandb, wandb_out_of_reach())


_CHECKS: dict[str, Callable[[Run], Finding | list[Finding]]] = {
    "Python": _python,
    "packages": _packages,
    "Java": _java,
    "cores": _cores,
    "memory": _memory,
    "shared memory": _shared_memory,
    "GPUs": _gpus,
    "runs=": _runs,
    "cache=": _cache,
    "copies": _copies,
    "Ray": _ray,
    "ports": _ports,
    "Ray token": _token,
    "host name": _host,
    "open files": _open_files,
    "model": _model,
    "data": _data_and_index,
    "endpoints": _endpoints,
    "reward": _reward,
    "W&B": _wandb,
}


def _project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def _joins(run: Run) -> str:
    """Address of the Ray that the run joins (`system.connect`), without a password; "" when it starts one."""
    given = run.cluster.address or os.environ.get("RAY_ADDRESS", "")
    if given == "auto":
        return read_ray_address() or "auto"
    parts = urllib.parse.urlsplit(given)
    return "" if given == "local" else given.replace(f"{parts.netloc.rpartition('@')[0]}@", "", 1)


def _caches(run: Run) -> Path:
    return Path(run.cache).expanduser()


def _origin(run: Run) -> Origin:
    return find(run.model.path, _caches(run) / "models")


def _parameters(run: Run) -> int | None:
    """Of the model; None where its weights are not here yet, or nowhere."""
    try:
        folder = _origin(run).folder
    except ValueError:
        return None
    return None if folder is None else parameters(folder) or None


def _hub() -> str:
    """Why the Hugging Face hub is out of reach; "" when it answers."""
    return "HF_HUB_OFFLINE is set" if hub.is_offline_mode() else why_not(hub.ENDPOINT, _KNOCK_S)
