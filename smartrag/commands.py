"""What the commands beside training take of their own, beside the settings of a run (smartrag/config.py)."""

from dataclasses import dataclass
from typing import Any

from smartrag.choices import Corpus, Part, Stemmer


@dataclass(kw_only=True, slots=True)
class Evaluation:
    """What launch/evaluate.py takes beside changes of the run's settings; values in conf/evaluate.yaml."""

    run: str  # folder of a run or of one of its checkpoints, or a model
    out: str  # folder in RUN/evaluations/
    gates: bool  # thresholds too: dev questions to tune them on, `samples` and `labelled` questions
    samples: int  # S: sampled closed-book answers of each question
    labelled: int  # train questions asked closed-book, for the gates that learn; at most


@dataclass(kw_only=True, slots=True)
class Ablation:
    """What launch/ablate.py takes beside the settings of a run; values in conf/ablate.yaml."""

    seeds: list[int]  # every row is run with each
    rows: list[str]  # names of ablation.ROWS, or `composed`


@dataclass(kw_only=True, slots=True)
class Sweep:
    """What launch/sweep.py takes beside the settings of a run; values in conf/sweep.yaml."""

    setting: str  # name of a number, e.g. reward.retrieval
    values: list[Any]  # what it is set to, as written
    seeds: list[int]  # every value is run with each
    gates: str | None  # an evaluation.json whose gates stand in the picture; null: that of a warm-up, if there is one
    asha: str | None  # reward, em or f1: trials that fall behind others by it are stopped (ASHA); null: none is
    grace: int  # steps that every trial has; at it, at twice as many and so on the worse half is stopped


@dataclass(kw_only=True, slots=True)
class Bench:
    """What launch/bench.py takes beside the settings of a run; values in conf/bench.yaml."""

    only: list[Part]
    repeats: int  # of each measurement


@dataclass(kw_only=True, slots=True)
class Capacity:
    """What launch/capacity.py takes; values in conf/capacity.yaml. All but the first two describe a fleet."""

    measured: list[str]  # folders of traced runs: service times are fitted to the first, and all are simulated
    out: str  # folder; capacity.json and capacity.png are made in it
    policies: list[str]  # of projection.POLICIES
    gpus: list[int]  # of each fleet, learner and engines together
    flops: float  # a second, of a GPU, dense
    memory: float  # bytes
    memory_bandwidth: float  # bytes a second
    link_bandwidth: float  # bytes a second out of each GPU's node
    learner_mfu: float  # share of `flops` that an update gets
    engine_mfu: float  # that reading a prompt gets
    memory_share: float  # of `memory_bandwidth` that decoding gets
    iteration_overhead_s: float  # of an engine, beside the GPU's work
    message_s: float  # between a generation and the next of its episode
    send_s: float  # of a question
    step_overhead_s: float  # of the driver, between two steps
    episode_overhead_s: float  # of the driver, for each episode of a step: scores, records, sharing out
    push_overhead_s: float  # of a push, beside its bytes
    search_s: float  # of one thread
    searches: list[float]  # share of episodes with 0, 1, 2, ... of them
    prompt_tokens: int  # template and question
    passage_tokens: int  # what a search brings
    query_tokens: int  # generated for a search
    answer_tokens: int  # and for an answer
    episodes_per_gpu: int  # of a step
    most_episodes: int  # of a step, however many GPUs
    concurrency: int  # episodes of an engine
    max_staleness: int  # as train.max_staleness
    epochs: int  # as algorithm.epochs
    minibatches: int  # as algorithm.minibatches
    save_s: float  # that training stands still for
    restart_s: float  # of the learner group, after a failure
    gpu_mtbf_s: float  # of one GPU


@dataclass(kw_only=True, slots=True)
class Export:
    """What launch/export.py takes; values in conf/export.yaml."""

    run: str  # folder of a run or of one of its checkpoints
    out: str  # the folder to make
    overwrite: bool  # an export that is there already is replaced


@dataclass(kw_only=True, slots=True)
class Serving:
    """What launch/serve.py takes beside changes of the run's settings; values in conf/serve.yaml."""

    run: str  # folder of a run or of one of its checkpoints, or a model; may stand alone, without `run=`
    host: str  # address that is listened on, of the machine where Ray's head is
    port: int  # that is listened on
    timeout_s: float  # from a request to the end of its answer, waiting included
    waiting: int  # questions that may wait for an engine; whoever comes then is told to come again


@dataclass(kw_only=True, slots=True)
class Index:
    """What launch/index.py takes; values, and what each is, in conf/index.yaml."""

    corpus: str
    out: str
    k1: float
    b: float
    stemmer: Stemmer
    share: float
    kind: Corpus
    threads: int
    encoder: str | None
    passage_prefix: str
    max_tokens: int
    batch: int
    cosine: bool
