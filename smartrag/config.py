"""The types of a run. Values live in `conf/*.yaml`, bounds in `check.py`; one field, one place."""

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
class Lora:
    """Low-rank adapters on linear layers (Hu et al. 2021, arXiv 2106.09685); without dropout."""

    rank: int  # r
    alpha: int  # α: the adapter's output is scaled by α / r
    targets: list[str]  # linear layers by the last part of their names, e.g. q_proj


@dataclass(kw_only=True, slots=True)
class Model:
    """The policy: a decoder-only chat model. Critic and reference start as copies of it; with adapters the reference is
    what they stand on, without a copy."""

    path: str  # a folder, a Hugging Face hub id, or package://NAME for weights an installed Python package carries
    fallback: str | None  # the same weights elsewhere, taken when `path` is a hub id and the hub is out of reach
    precision: Precision
    lora: Lora | None  # policy and critic train adapters on frozen weights; null: every weight is trained
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
    samples: int  # episodes a question gets in one step; estimators that compare samples need two or more
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
