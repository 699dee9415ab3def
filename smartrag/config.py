"""The types of a run. Values live in `conf/*.yaml`, bounds in `bounds.py`; one field, one place."""

from dataclasses import dataclass
from typing import Any

from smartrag.choices import (
    KL,
    Advantage,
    Corpus,
    Critic,
    Importance,
    Judge,
    KLIn,
    Mean,
    Precision,
    Role,
    Stemmer,
    Teacher,
    WandbMode,
    WeightBackend,
)


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
    precision: Precision  # of the weights, in the learner and in engines
    lora: Lora | None  # policy and critic train adapters on frozen weights; null: every weight is trained
    instruction: str  # stands before the question in the first user message; may be empty
    context_tokens: int  # the whole conversation, generations included
    new_tokens: int  # of one generation
    passage_tokens: int  # of one passage; longer ones are cut


@dataclass(kw_only=True, slots=True)
class Data:
    # "world", a folder (train, dev, test, corpus), a public set by name, or "files": the two below. What a file may be:
    # docs/bring-your-own.md
    source: str
    questions: str | None  # of source=files: a file, a saved data set or hf://OWNER/NAME, divided by `split` or a hash
    corpus: str | None  # of source=files: likewise its passages; null where retriever.index or a service has them
    # Data set -> weight of its questions in training. Two or more: each is read; "folder" is `source`, and the others
    # are its subfolders of their names, where it has them.
    mix: dict[str, float]
    allow_overlap: bool  # a set may ask questions of train in dev or test too: a warning instead of an error
    train_questions: int | None  # of each set at most this many; null: all
    dev_questions: int | None  # likewise
    test_questions: int | None  # likewise


@dataclass(kw_only=True, slots=True)
class Dense:
    """Vectors of passages and queries, compared by FAISS, see `encoder.py`."""

    encoder: str  # folder of a Hugging Face encoder, or package.module:name, a function: texts -> float32 [n, d]
    query_prefix: str  # what the encoder wants before a query
    passage_prefix: str  # and before a passage
    max_tokens: int  # of a text; longer ones are cut. Of a folder's model, not of a function
    batch: int  # passages encoded at a time
    cosine: bool  # vectors are scaled to length 1


@dataclass(kw_only=True, slots=True)
class Service:
    """A retriever behind HTTP: POST {"queries": [...], "k": n}, see docs/bring-your-own.md."""

    url: str  # where queries are posted
    key_variable: str | None  # NAME of the environment variable that holds a bearer token; null: none is sent
    timeout_s: float  # of one request
    attempts: int  # requests for one answer, with growing pauses between them


@dataclass(kw_only=True, slots=True)
class Retriever:
    # bm25 (Lucene), dense (FAISS), http (a service), or package.module:name, which (settings, place) makes a searcher
    searcher: str
    dense: Dense | None  # of searcher=dense
    http: Service | None  # of searcher=http
    index: str | None  # folder or URI of a built index; null: built from the data's corpus and cached by its hash
    stemmer: Stemmer  # bm25: of the index and of queries
    corpus: Corpus
    corpus_share: float  # of the corpus's passages; which, their ids' hashes say
    k: int  # passages a query brings
    k1: float  # bm25: term saturation
    b: float  # bm25: length normalisation
    replicas: int  # processes that search, each over the whole index
    threads: int  # search threads of one replica
    cpus: float  # Ray CPUs of one replica
    heap: str  # bm25: of one JVM, -Xmx value
    max_batch: int  # queries searched together
    batch_wait_ms: float  # how long a lone query waits for company
    timeout_s: float  # of one query at one replica
    attempts: int  # replicas asked before the query counts as failed
    remember: int  # answers that each rollout worker keeps, so that nobody is asked the same again; 0: none


@dataclass(kw_only=True, slots=True)
class Algorithm:
    """Policy optimisation over retrieval episodes. Symbols as in Schulman et al. 2017."""

    quota: int  # N: retrievals an episode may make (SmartRAG, Algorithm 1)
    trains: list[Role]  # roles whose tokens are learned from; the weights the run starts from play the others
    advantage: Advantage  # how credit reaches tokens
    critic: Critic
    samples: int  # episodes a question gets in one step; estimators that compare samples need two or more
    temperature: float  # of the sampling policy
    gamma: float  # discount per policy token
    lam: float  # GAE lambda per policy token (turn_gae: both per turn)
    clip: float  # epsilon of the surrogate
    value_clip: float | None  # null: plain squared error
    value_coef: float  # critic=shared: weight of the value loss beside the policy's, in the gradient of their trunk
    entropy_coef: float  # weight of the entropy bonus in the policy's loss
    kl: KL
    kl_in: KLIn  # where the KL to the reference counts
    kl_coef: float  # initial beta of the KL penalty
    kl_target: float | None  # of the adaptive controller, nats per episode; null: beta is fixed
    epochs: int  # passes over one batch
    minibatches: int  # optimiser steps of one pass
    whiten_advantages: bool  # to mean 0 and deviation 1 over the policy tokens of the whole batch
    loss_mean: Mean
    importance: Importance
    importance_cap: float  # the largest importance weight
    critic_warmup_steps: int  # steps in which only the critic learns; of a shared one only the head

    @property
    def frozen(self) -> list[Role]:
        """The roles that are not trained."""
        return [role for role in Role if role not in self.trains]


@dataclass(kw_only=True, slots=True)
class RetrievalBudget:
    """A target of retrievals, held by the price of one: a Lagrange multiplier, see `price.py`."""

    target: float  # retrievals per question
    rate: float  # K_I: what the price gains with each step, per retrieval per question above the target
    gain: float  # K_P: what it is above that while there are too many, per retrieval per question above the target
    max_price: float  # λ_max: no price is higher


@dataclass(kw_only=True, slots=True)
class Endpoint:
    """An OpenAI-compatible chat endpoint."""

    base_url: str  # without /chat/completions, e.g. http://127.0.0.1:8000/v1
    model: str  # as the endpoint calls it
    key_variable: str  # NAME of the environment variable that holds the API key; the key is in no configuration
    timeout_s: float  # of one attempt
    attempts: int  # requests for one reply, with growing pauses between them
    concurrency: int  # requests in flight
    max_void_share: float  # share of what is asked at a time that may go without a usable reply; above it the run stops


@dataclass(kw_only=True, slots=True)
class Reward:
    """Reward of an episode (SmartRAG eq. 5; the terms of the authors' reward.py). `exact_match` + `f1` is what a fully
    right answer is worth, whoever judges it; scores and prices are in that unit."""

    judge: Judge
    function: str | None  # of judge=function, null for the others: package.module:name, see `own_reward.py`
    exact_match: float  # weight of EM of the answer
    f1: float  # weight of token F1 of the answer
    retrieval: float  # added per retrieval, negative for a cost; with a budget only where its price starts
    gated: bool  # training charges retrievals in proportion to the answer's score: in full when right, not when wrong
    free_steps: int  # steps of training before a retrieval costs anything
    ramp_steps: int  # steps over which the price then rises from nothing to all of it
    budget: RetrievalBudget | None  # null: the price stays where `retrieval` puts it
    format_error: float  # added when a turn is malformed
    truncated: float  # added when the token budget ran out
    endpoint: Endpoint | None  # of judge=endpoint, null for the others


@dataclass(kw_only=True, slots=True)
class LearnerGroup:
    ranks: int  # learner processes; ZeRO shards over them
    cpus: float  # Ray CPUs of one rank
    gpus: float  # Ray GPUs of one rank
    threads: int  # torch threads of one rank
    zero_stage: int  # DeepSpeed ZeRO 0-3
    learning_rate: float  # of the policy
    critic_learning_rate: float  # of the separate critic, or of the head on a shared trunk
    final_rate: float  # share of both learning rates left at the last PPO step; they fall linearly. 1: constant
    beta2: float  # AdamW's memory of squared gradients; lower forgets the large early ones sooner
    weight_decay: float  # of AdamW
    max_grad_norm: float  # gradients of a larger norm are scaled down to it
    check_every: int  # PPO steps between two comparisons of all ranks' parameters; 0: never
    micro_batch_tokens: int  # padded tokens of one forward pass of one rank
    deepspeed: dict[str, Any]  # merged over what the fields above make, for what has no field


@dataclass(kw_only=True, slots=True)
class Engine:
    """One vLLM engine."""

    workers: int  # engines
    cpus: float  # Ray CPUs of one
    gpus: float  # Ray GPUs of one
    threads: int  # OpenMP threads of one (CPU)
    tensor_parallel: int  # GPUs that share the model of one
    kv_cache_gib: float | None  # CPU: size of the KV cache; null on GPUs, where gpu_memory_utilization rules
    concurrency: int  # episodes in flight at one engine
    engine_args: dict[str, Any]  # passed to vLLM as they are


@dataclass(kw_only=True, slots=True)
class Cluster:
    address: str | None  # of Ray; null: join the job's cluster or start a local one
    engine: Engine
    weights: WeightBackend  # how weights travel from the learner to engines
    bucket_mib: int  # weights sent per message
    canary_tolerance: float  # largest log-prob gap of the canary prompt after a push, nats
    placement_timeout_s: float  # longest wait for room in the cluster, and for the parts to start there
    call_timeout_s: float  # longest wait for one answer of an actor
    episode_attempts: int  # failures of one episode by itself (a retrieval, a generation given up) that end the run
    learner_restarts: int  # of a learner that was lost, from its newest checkpoint, without a step more in between
    episode_losses: int  # workers lost or silent under one episode before its question is taken for the cause
    colocated: bool  # learner and engine share GPUs; the engine sleeps while the learner works


@dataclass(kw_only=True, slots=True)
class Warmup:
    teacher: Teacher
    steps: int  # 0: none
    batch: int  # trajectories of one optimiser step
    learning_rate: float  # of the policy in warm-up
    direct: float  # share of "question -> answer" samples
    search: float  # share of "question -> query"
    read: float  # share of "question, passages -> answer"
    self_knowledge: float  # gold: share of first moves labelled by whether the policy answers right closed-book (SKR)
    samples: int  # policy: episodes sampled of each question without, and as many with a retrieval
    knows: float  # policy, endpoint: share of right closed-book answers from which on a question counts as known
    endpoint: Endpoint  # of teacher=endpoint
    share: float | None  # of the train questions, for warm-up alone, the rest for PPO alone; null: both use all


@dataclass(kw_only=True, slots=True)
class Loop:
    steps: int  # PPO steps
    max_staleness: int  # versions that weights may be older than those that learn from what they wrote; 0: synchronous
    set_aside: int  # questions left out, at most, because workers end on them; one more ends the run
    episodes: int  # of one step
    quotas: list[int]  # drawn from for each question of a step; empty: always algorithm.quota
    ks: list[int]  # likewise the passages a query brings; empty: always retriever.k
    evaluate_every: int  # steps between evaluations on dev questions; 0: never
    save_every: int  # steps between checkpoints
    keep: int  # newest checkpoints kept
    mirror: str | None  # URI under which runs are copied with each checkpoint, e.g. s3://BUCKET/runs; null: nowhere
    gates: bool  # also evaluate the fixed gates `never` and `always`


@dataclass(kw_only=True, slots=True)
class Log:
    wandb: WandbMode  # whether W&B gets the rows too
    tensorboard: bool  # whether TensorBoard does, in the run's folder
    project: str  # of W&B
    group: str | None  # of runs that W&B shows together
    episodes: int  # episodes a step written to episodes.jsonl
    trace: bool  # phases, generations and retrievals in trace.json, for ui.perfetto.dev
    progress: bool  # bars on the terminal


@dataclass(kw_only=True, slots=True)
class Run:
    name: str  # of the experiment; names the run's folder
    runs: str  # where run folders live
    cache: str  # where built indexes, written data sets and fetched models live; shared by all runs
    seed: int  # every draw of the run derives from it
    # "latest", the folder of a run or of a checkpoint, or the URI of its copy (train.mirror); "auto": the newest that
    # there is, here or among the copies, else a new run
    resume: str | None
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

    @property
    def training_quotas(self) -> list[int]:
        """What a training question's quota is drawn from; never empty."""
        return self.train.quotas or [self.algorithm.quota]

    @property
    def endpoints(self) -> dict[str, Endpoint]:
        """The chat endpoints that training asks, by their setting."""
        teaches = self.warmup.teacher is Teacher.endpoint and self.warmup.steps and self.resume is None
        asked = {} if self.reward.endpoint is None else {"reward.endpoint": self.reward.endpoint}
        return asked | ({"warmup.endpoint": self.warmup.endpoint} if teaches else {})
