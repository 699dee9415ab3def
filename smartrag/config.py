"""The types of a run. Values live in `conf/*.yaml`, types and checks here; one field, one place.

`check(run)` returns every problem of a configuration at once, as sentences; nothing is started before it is empty.
"""

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Precision(StrEnum):
    float32 = "float32"
    bfloat16 = "bfloat16"


class WeightBackend(StrEnum):
    gloo = "gloo"  # CPU to CPU
    nccl = "nccl"  # GPU to GPU
    ipc = "ipc"  # learner and engine share a GPU


class WandbMode(StrEnum):
    auto = "auto"  # online when there is a login and the server answers, else offline
    online = "online"
    offline = "offline"
    disabled = "disabled"


@dataclass(kw_only=True, slots=True)
class Model:
    """The policy: a decoder-only chat model. Critic and reference start as copies of it."""

    path: str  # a folder, a Hugging Face hub id, or package://NAME for weights an installed Python package carries
    fallback: str | None  # the same weights elsewhere, taken when `path` is a hub id and the hub is out of reach
    precision: Precision
    instruction: str  # stands before the question in the first user message; may be empty
    context_tokens: int  # the whole conversation, generations included
    new_tokens: int  # of one generation
    passage_tokens: int  # of one passage; longer ones are cut


@dataclass(kw_only=True, slots=True)
class Data:
    source: str  # "world", a folder (train/dev/test.jsonl, corpus.jsonl), or a dataset's name on the hub
    train_questions: int | None  # at most this many; null: all
    dev_questions: int | None
    test_questions: int | None


@dataclass(kw_only=True, slots=True)
class Retriever:
    index: str | None  # folder of a built index; null: built from the data's corpus and cached by its hash
    k: int  # passages a query brings
    k1: float  # BM25 term saturation
    b: float  # BM25 length normalisation
    replicas: int
    threads: int  # search threads of one replica
    cpus: float  # Ray CPUs of one replica
    heap: str  # of one JVM: -Xmx value
    max_batch: int  # queries of one Lucene batch
    batch_wait_ms: float  # how long a lone query waits for company
    timeout_s: float  # of one query at one replica
    attempts: int  # replicas asked before the query counts as failed


@dataclass(kw_only=True, slots=True)
class Algorithm:
    """PPO over retrieval episodes. Symbols as in Schulman et al. 2017."""

    quota: int  # N: retrievals an episode may make (SmartRAG, Algorithm 1)
    temperature: float  # of the sampling policy
    gamma: float  # discount per policy token
    lam: float  # GAE lambda per policy token
    clip: float  # epsilon of the surrogate
    value_clip: float | None  # null: plain squared error
    entropy_coef: float
    kl_coef: float  # initial beta of the KL penalty in the reward
    kl_target: float | None  # of the adaptive controller, nats per episode; null: beta is fixed
    epochs: int  # passes over one batch
    minibatches: int  # optimiser steps of one pass
    whiten_advantages: bool
    importance_cap: float  # truncated importance sampling, engine against learner
    critic_warmup_steps: int  # steps in which only the critic learns


@dataclass(kw_only=True, slots=True)
class Reward:
    """Reward of an episode (SmartRAG eq. 5; the terms of the authors' reward.py)."""

    exact_match: float  # weight of EM of the answer
    f1: float  # weight of token F1 of the answer
    retrieval: float  # added per retrieval, negative for a cost
    format_error: float  # added when a turn is malformed
    truncated: float  # added when the token budget ran out


@dataclass(kw_only=True, slots=True)
class LearnerGroup:
    ranks: int
    cpus: float  # Ray CPUs of one rank
    gpus: float  # Ray GPUs of one rank
    threads: int  # torch threads of one rank
    zero_stage: int  # DeepSpeed ZeRO 0-3
    learning_rate: float
    critic_learning_rate: float
    final_rate: float  # share of both learning rates left at the last PPO step; they fall linearly. 1: constant
    beta2: float  # AdamW's memory of squared gradients; lower forgets the large early ones sooner
    weight_decay: float
    max_grad_norm: float
    micro_batch_tokens: int  # padded tokens of one forward pass of one rank
    deepspeed: dict[str, Any]  # merged over what the fields above make, for what has no field


@dataclass(kw_only=True, slots=True)
class Engine:
    """One vLLM engine."""

    workers: int  # engines
    cpus: float  # Ray CPUs of one
    gpus: float  # Ray GPUs of one
    threads: int  # OpenMP threads of one (CPU)
    tensor_parallel: int
    kv_cache_gib: float | None  # CPU: size of the KV cache; null on GPUs, where gpu_memory_utilization rules
    concurrency: int  # episodes in flight at one engine
    engine_args: dict[str, Any]  # passed to vLLM as they are


@dataclass(kw_only=True, slots=True)
class Cluster:
    address: str | None  # of Ray; null: join the job's cluster or start a local one
    engine: Engine
    weights: WeightBackend
    bucket_mib: int  # weights sent per message
    canary_tolerance: float  # largest log-prob gap of the canary prompt after a push, nats
    placement_timeout_s: float
    call_timeout_s: float  # longest wait for one answer of an actor
    episode_attempts: int  # runs of one episode before an infrastructure failure ends the run
    colocated: bool  # learner and engine share GPUs; the engine sleeps while the learner works


@dataclass(kw_only=True, slots=True)
class Warmup:
    steps: int  # 0: none
    batch: int  # trajectories of one optimiser step
    learning_rate: float
    direct: float  # share of "question -> answer" samples
    search: float  # share of "question -> query"
    read: float  # share of "question, passages -> answer"
    self_knowledge: float  # share of first moves labelled by whether the policy answers right closed-book (SKR)


@dataclass(kw_only=True, slots=True)
class Loop:
    steps: int  # PPO steps
    episodes: int  # of one step
    evaluate_every: int  # steps between evaluations on dev questions; 0: never
    save_every: int  # steps between checkpoints
    keep: int  # newest checkpoints kept
    gates: bool  # also evaluate the fixed gates `never` and `always`


@dataclass(kw_only=True, slots=True)
class Log:
    wandb: WandbMode
    project: str
    episodes: int  # episodes a step written to episodes.jsonl
    progress: bool


@dataclass(kw_only=True, slots=True)
class Run:
    name: str  # of the experiment; names the run's folder
    runs: str  # where run folders live
    cache: str  # where built indexes, written data sets and fetched models live; shared by all runs
    seed: int
    resume: str | None  # "latest" or the folder of a run or of a checkpoint
    model: Model
    data: Data
    retriever: Retriever
    algorithm: Algorithm
    reward: Reward
    learner: LearnerGroup
    cluster: Cluster
    warmup: Warmup
    train: Loop
    log: Log


# (field, lowest, highest) of every number whose range is known; both ends are allowed.
_RANGES: tuple[tuple[str, float, float], ...] = (
    ("model.context_tokens", 16, 1 << 20),
    ("model.new_tokens", 2, 1 << 16),
    ("model.passage_tokens", 1, 1 << 16),
    ("data.train_questions", 1, 1 << 31),
    ("data.dev_questions", 1, 1 << 31),
    ("data.test_questions", 1, 1 << 31),
    ("retriever.k", 1, 100),
    ("retriever.k1", 0.0, 10.0),
    ("retriever.b", 0.0, 1.0),
    ("retriever.replicas", 1, 1024),
    ("retriever.threads", 1, 256),
    ("retriever.max_batch", 1, 4096),
    ("retriever.batch_wait_ms", 0.0, 1000.0),
    ("retriever.timeout_s", 0.1, 3600.0),
    ("retriever.attempts", 1, 100),
    ("algorithm.quota", 0, 16),
    ("algorithm.temperature", 0.01, 10.0),
    ("algorithm.gamma", 0.0, 1.0),
    ("algorithm.lam", 0.0, 1.0),
    ("algorithm.clip", 1e-3, 1.0),
    ("algorithm.value_clip", 1e-3, 1e3),
    ("algorithm.entropy_coef", 0.0, 10.0),
    ("algorithm.kl_coef", 0.0, 10.0),
    ("algorithm.kl_target", 1e-6, 1e3),
    ("algorithm.epochs", 1, 100),
    ("algorithm.minibatches", 1, 1024),
    ("algorithm.importance_cap", 1.0, 100.0),
    ("algorithm.critic_warmup_steps", 0, 1 << 20),
    ("learner.ranks", 1, 4096),
    ("learner.threads", 1, 256),
    ("learner.zero_stage", 0, 3),
    ("learner.learning_rate", 0.0, 1.0),
    ("learner.critic_learning_rate", 0.0, 1.0),
    ("learner.final_rate", 0.0, 1.0),
    ("learner.beta2", 0.5, 0.99999),
    ("learner.weight_decay", 0.0, 1.0),
    ("learner.max_grad_norm", 1e-6, 1e6),
    ("learner.micro_batch_tokens", 16, 1 << 24),
    ("cluster.engine.workers", 1, 4096),
    ("cluster.engine.threads", 1, 256),
    ("cluster.engine.tensor_parallel", 1, 64),
    ("cluster.engine.concurrency", 1, 4096),
    ("cluster.bucket_mib", 1, 1 << 16),
    ("cluster.canary_tolerance", 0.0, 10.0),
    ("cluster.placement_timeout_s", 1.0, 86400.0),
    ("cluster.call_timeout_s", 1.0, 86400.0),
    ("cluster.episode_attempts", 1, 100),
    ("warmup.steps", 0, 1 << 31),
    ("warmup.batch", 1, 1 << 20),
    ("warmup.learning_rate", 0.0, 1.0),
    ("warmup.direct", 0.0, 1.0),
    ("warmup.search", 0.0, 1.0),
    ("warmup.read", 0.0, 1.0),
    ("warmup.self_knowledge", 0.0, 1.0),
    ("train.steps", 0, 1 << 31),
    ("train.episodes", 1, 1 << 20),
    ("train.evaluate_every", 0, 1 << 31),
    ("train.save_every", 1, 1 << 31),
    ("train.keep", 1, 1 << 20),
    ("log.episodes", 0, 1 << 20),
    ("seed", 0, (1 << 31) - 1),
)


def check(run: Run) -> list[str]:
    """Every problem of `run` as one sentence each; empty when it can start."""
    problems = [p for name, low, high in _RANGES for p in _out_of_range(run, name, low, high)]
    reward = run.reward
    for name in ("exact_match", "f1", "retrieval", "format_error", "truncated"):
        if not math.isfinite(getattr(reward, name)):
            problems.append(f"reward.{name} must be a finite number, got {getattr(reward, name)}")
    if problems:
        return problems  # the sums below would only repeat them
    room = run.model.context_tokens - 2 * run.model.new_tokens
    if room < run.model.new_tokens:
        problems.append(
            f"model.context_tokens={run.model.context_tokens} leaves no room for a question beside two generations of "
            f"model.new_tokens={run.model.new_tokens}; raise the first or lower the second"
        )
    if run.train.episodes % (run.learner.ranks * run.algorithm.minibatches):
        problems.append(
            f"train.episodes={run.train.episodes} must be a multiple of learner.ranks x algorithm.minibatches = "
            f"{run.learner.ranks} x {run.algorithm.minibatches}, so that every rank takes the same optimiser steps"
        )
    if run.warmup.steps and run.warmup.batch % run.learner.ranks:
        problems.append(f"warmup.batch={run.warmup.batch} must be a multiple of learner.ranks={run.learner.ranks}")
    shares = run.warmup.direct + run.warmup.search + run.warmup.read
    if run.warmup.steps and abs(shares - 1) > 1e-6:
        problems.append(f"warmup.direct + warmup.search + warmup.read must be 1, got {shares:g}")
    on_gpu = run.learner.gpus > 0
    if on_gpu != (run.cluster.engine.gpus > 0):
        problems.append(
            f"learner.gpus={run.learner.gpus} and cluster.engine.gpus={run.cluster.engine.gpus}: both or neither"
        )
    if on_gpu == (run.cluster.weights is WeightBackend.gloo):
        need = "nccl or ipc" if on_gpu else "gloo"
        problems.append(f"cluster.weights={run.cluster.weights} does not fit the devices; use {need}")
    if run.cluster.colocated != (run.cluster.weights is WeightBackend.ipc):
        problems.append("cluster.colocated=true and cluster.weights=ipc go together: both or neither")
    return problems


def _out_of_range(run: Run, name: str, low: float, high: float) -> list[str]:
    value: Any = run
    for part in name.split("."):
        value = getattr(value, part)
    if value is None or low <= value <= high:
        return []
    return [f"{name} must be between {low:g} and {high:g}, got {value}"]
