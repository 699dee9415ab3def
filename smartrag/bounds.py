"""What a setting may be by itself, whatever the others are: `out_of_bounds(run)` tells all that are not."""

import math
import re
from typing import Any

from smartrag.config import Data, Endpoint, Retriever, Run
from smartrag.data.load import FILES, NAMED
from smartrag.dotted import is_dotted

# (field, lowest, highest) of every number whose range is known; both ends are allowed.
RANGES: tuple[tuple[str, float, float], ...] = (
    ("model.lora.rank", 1, 4096),
    ("model.lora.alpha", 1, 1 << 20),
    ("model.context_tokens", 16, 1 << 20),
    ("model.new_tokens", 2, 1 << 16),
    ("model.passage_tokens", 1, 1 << 16),
    ("data.train_questions", 1, 1 << 31),
    ("data.dev_questions", 1, 1 << 31),
    ("data.test_questions", 1, 1 << 31),
    ("retriever.dense.max_tokens", 2, 1 << 16),
    ("retriever.dense.batch", 1, 1 << 16),
    ("retriever.http.timeout_s", 0.1, 3600.0),
    ("retriever.http.attempts", 1, 100),
    ("retriever.corpus_share", 1e-6, 1.0),
    ("retriever.k", 1, 100),
    ("retriever.k1", 0.0, 10.0),
    ("retriever.b", 0.0, 1.0),
    ("retriever.replicas", 1, 1024),
    ("retriever.threads", 1, 256),
    ("retriever.max_batch", 1, 4096),
    ("retriever.batch_wait_ms", 0.0, 1000.0),
    ("retriever.cpus", 0.0, 1024.0),
    ("retriever.timeout_s", 0.1, 3600.0),
    ("retriever.attempts", 1, 100),
    ("retriever.remember", 0, 1 << 24),
    ("algorithm.quota", 0, 16),
    ("algorithm.samples", 1, 1024),
    ("algorithm.temperature", 0.01, 10.0),
    ("algorithm.gamma", 0.0, 1.0),
    ("algorithm.lam", 0.0, 1.0),
    ("algorithm.clip", 1e-3, 1.0),
    ("algorithm.value_clip", 1e-3, 1e3),
    ("algorithm.value_coef", 1e-6, 1e3),
    ("algorithm.entropy_coef", 0.0, 10.0),
    ("algorithm.kl_coef", 0.0, 10.0),
    ("algorithm.kl_target", 1e-6, 1e3),
    ("algorithm.epochs", 1, 100),
    ("algorithm.minibatches", 1, 1024),
    ("algorithm.importance_cap", 1.0, 100.0),
    ("algorithm.critic_warmup_steps", 0, 1 << 20),
    ("reward.exact_match", 0.0, 1000.0),
    ("reward.f1", 0.0, 1000.0),
    ("reward.free_steps", 0, 1 << 31),
    ("reward.ramp_steps", 0, 1 << 31),
    ("reward.budget.target", 0.0, 16.0),
    ("reward.budget.rate", 1e-6, 10.0),
    ("reward.budget.gain", 0.0, 100.0),
    ("reward.budget.max_price", 0.0, 1000.0),
    ("reward.endpoint.timeout_s", 0.1, 3600.0),
    ("reward.endpoint.attempts", 1, 100),
    ("reward.endpoint.concurrency", 1, 4096),
    ("reward.endpoint.max_void_share", 0.0, 1.0),
    ("learner.ranks", 1, 4096),
    ("learner.cpus", 0.0, 1024.0),
    ("learner.gpus", 0.0, 1.0),
    ("learner.threads", 1, 256),
    ("learner.zero_stage", 0, 3),
    ("learner.learning_rate", 0.0, 1.0),
    ("learner.critic_learning_rate", 0.0, 1.0),
    ("learner.final_rate", 0.0, 1.0),
    ("learner.beta2", 0.5, 0.99999),
    ("learner.weight_decay", 0.0, 1.0),
    ("learner.max_grad_norm", 1e-6, 1e6),
    ("learner.check_every", 0, 1 << 31),
    ("learner.micro_batch_tokens", 16, 1 << 24),
    ("cluster.engine.workers", 1, 4096),
    ("cluster.engine.cpus", 0.0, 1024.0),
    ("cluster.engine.gpus", 0.0, 64.0),
    ("cluster.engine.kv_cache_gib", 0.01, 4096.0),
    ("cluster.engine.threads", 1, 256),
    ("cluster.engine.tensor_parallel", 1, 64),
    ("cluster.engine.concurrency", 1, 4096),
    ("cluster.bucket_mib", 1, 1 << 16),
    ("cluster.canary_tolerance", 0.0, 10.0),
    ("cluster.placement_timeout_s", 1.0, 86400.0),
    ("cluster.call_timeout_s", 1.0, 86400.0),
    ("cluster.learner_restarts", 0, 100),
    ("cluster.episode_attempts", 1, 100),
    ("cluster.episode_losses", 3, 100),  # the third is the first it can be blamed for alone
    ("warmup.steps", 0, 1 << 31),
    ("warmup.batch", 1, 1 << 20),
    ("warmup.learning_rate", 0.0, 1.0),
    ("warmup.direct", 0.0, 1.0),
    ("warmup.search", 0.0, 1.0),
    ("warmup.read", 0.0, 1.0),
    ("warmup.self_knowledge", 0.0, 1.0),
    ("warmup.samples", 1, 1024),
    ("warmup.knows", 1e-6, 1.0),
    ("warmup.endpoint.timeout_s", 0.1, 3600.0),
    ("warmup.endpoint.attempts", 1, 100),
    ("warmup.endpoint.concurrency", 1, 4096),
    ("warmup.endpoint.max_void_share", 0.0, 1.0),
    ("warmup.share", 1e-6, 1 - 1e-6),
    ("train.steps", 0, 1 << 31),
    ("train.max_staleness", 0, 64),
    ("train.set_aside", 0, 1 << 20),
    ("train.episodes", 1, 1 << 20),
    ("train.evaluate_every", 0, 1 << 31),
    ("train.save_every", 1, 1 << 31),
    ("train.keep", 1, 1 << 20),
    ("log.episodes", 0, 1 << 20),
    ("seed", 0, (1 << 31) - 1),
)
# Texts that must say something.
TEXTS: tuple[str, ...] = (
    "name",
    "runs",
    "cache",
    "resume",
    "model.path",
    "model.fallback",
    "data.source",
    "data.questions",
    "data.corpus",
    "retriever.dense.encoder",
    "retriever.index",
)
TEXTS += ("retriever.heap", "cluster.address", "log.project", "log.group")
TEXTS += tuple(
    f"{owner}.endpoint.{name}" for owner in ("reward", "warmup") for name in ("base_url", "model", "key_variable")
)

_NAME = re.compile(r"\w[\w.+-]*")
_HEAP = re.compile(r"(6[4-9]|[7-9]\d|[1-9]\d{2,})[mM]|[1-9]\d*[gG]")
_ADDRESS = re.compile(r"auto|local|(ray://)?(\S+@)?[\w.\[\]:-]+:\d+")
_URL = re.compile(r"https?://[^\s/]+(/\S*)?")
_SERVICE = re.compile(r"https?://[^\s/@]+(/[^\s@]*)?")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NO_VARIABLE = (
    "{}.key_variable must be the NAME of the environment variable that holds the key; what it is set to is no "
    "such name, and is not repeated here because it may be the key itself"
)
SEARCHERS = ("bm25", "dense", "http")
# Arguments of vLLM that name code to import, a file that may name some, or a secret.
_CODE: tuple[str, ...] = (
    "trust_remote_code",
    "model_class_overrides",
    "worker_cls",
    "worker_extension_cls",
    "scheduler_cls",
    "hf_token",
)
_CODE += ("logits_processors", "io_processor_plugin", "reasoning_parser_plugin", "kv_transfer_config")
_CODE += ("ec_transfer_config", "logging_config", "log_config_file")


def out_of_bounds(run: Run) -> list[str]:
    """The problems of settings that are wrong by themselves, whatever the others are."""
    problems = [p for name, low, high in RANGES for p in _out_of_range(run, name, low, high)]
    problems += _of_texts(run)
    problems += _of_the_engine(run.cluster.engine.engine_args)
    problems += _data_problems(run.data)
    problems += [f"train.quotas holds {n}; each must be between 0 and 16" for n in run.train.quotas if not 0 <= n <= 16]
    problems += [f"train.ks holds {n}; each must be between 1 and 100" for n in run.train.ks if not 1 <= n <= 100]
    for name in ("retrieval", "format_error", "truncated"):
        value = getattr(run.reward, name)
        if not math.isfinite(value):
            problems.append(f"reward.{name} must be a finite number, got {value}")
        elif value > 0:
            problems.append(
                f"reward.{name} is added to the reward, so a cost is 0 or less, got {value:g}; give it a minus"
            )
    return problems


def _of_texts(run: Run) -> list[str]:
    """Names and places. An empty one would mean the working folder, or nothing at all."""
    problems = [
        f"{name} must not be empty; leave it out, or give it a value"
        for name in TEXTS
        if (text := _value(run, name)) is not None and not text.strip()
    ]
    if run.name and not _NAME.fullmatch(run.name):
        problems.append(f"name={run.name!r} names a folder in runs/: letters, digits and _, or . + - behind one")
    if run.retriever.heap.strip() and not _HEAP.fullmatch(run.retriever.heap):
        problems.append(f'retriever.heap must be a size from 64m up, such as "4g", got {run.retriever.heap!r}')
    if run.reward.function is not None and not is_dotted(run.reward.function):
        problems.append(
            "reward.function must be the name of a function to import, package.module:name, got "
            f"{run.reward.function!r}"
        )
    problems += _of_the_searcher(run.retriever)
    address = run.cluster.address
    if address and not _ADDRESS.fullmatch(address):
        problems.append(
            f"cluster.address must be auto, local or [ray://]HOST:PORT, got {address!r}; or leave it at null"
        )
    if run.reward.endpoint is not None:
        problems += _of_the_endpoint("reward.endpoint", run.reward.endpoint)
    return problems + _of_the_endpoint("warmup.endpoint", run.warmup.endpoint)


def _of_the_searcher(retriever: Retriever) -> list[str]:
    problems, service = [], retriever.http
    if retriever.searcher not in SEARCHERS and not is_dotted(retriever.searcher):
        problems.append(
            f"retriever.searcher must be {', '.join(SEARCHERS)} or package.module:name of your own, got "
            f"{retriever.searcher!r}"
        )
    if service is not None and not _SERVICE.fullmatch(service.url):
        shown = service.url.rpartition("@")[2]
        problems.append(
            f"retriever.http.url must be http://HOST[:PORT]/... or https://..., without a password in it, got {shown!r}"
        )
    if service is not None and service.key_variable is not None and not _VARIABLE.fullmatch(service.key_variable):
        problems.append(_NO_VARIABLE.format("retriever.http"))
    return problems


def _of_the_endpoint(name: str, endpoint: Endpoint) -> list[str]:
    """Without what may be secret: a password in the URL, the key in place of its variable's name."""
    problems = []
    if endpoint.base_url and not _URL.fullmatch(endpoint.base_url):
        shown = endpoint.base_url.rpartition("@")[2]
        problems.append(f"{name}.base_url must be http://HOST[:PORT]/... or https://..., got {shown!r}")
    if endpoint.key_variable and not _VARIABLE.fullmatch(endpoint.key_variable):
        problems.append(_NO_VARIABLE.format(name))
    return problems


def _of_the_engine(args: dict[str, Any]) -> list[str]:
    problems = [
        f"cluster.engine.engine_args.{name} would bring code into the engine that is not ours; leave it out"
        for name in _CODE
        if args.get(name)
    ]
    if args.get("load_format", "auto") not in ("auto", "safetensors"):
        problems.append(
            f"cluster.engine.engine_args.load_format must be auto or safetensors, got {args['load_format']!r}: other "
            "formats can run code when loaded"
        )
    return problems


def _data_problems(data: Data) -> list[str]:
    problems = [] if data.mix else ["data.mix names no data set; write data.mix={NAME: WEIGHT}"]
    for name, weight in data.mix.items():
        if not (math.isfinite(weight) and weight > 0):
            problems.append(f"data.mix.{name} must be a finite number above 0, got {weight}")
        if len(data.mix) > 1 and name not in (*NAMED, "folder", FILES):
            problems.append(f"data.mix: no data set is called {name!r}; there are: {', '.join(NAMED)}, folder, files")
    if FILES in data.mix and data.questions is None:
        problems.append("data.mix holds `files`, so data.questions must name a file; data=files asks for it")
    if FILES not in data.mix and (data.questions is not None or data.corpus is not None):
        problems.append("data.questions and data.corpus are of data=files; choose that, or leave them out")
    if len(data.mix) > 1 and "folder" in data.mix and data.source in (*NAMED, FILES):
        problems.append(f"data.mix holds `folder`, so data.source must be a folder, got {data.source!r}")
    return problems


def _value(run: Run, name: str) -> Any:
    value: Any = run
    for part in name.split("."):
        value = None if value is None else getattr(value, part)
    return value


def _out_of_range(run: Run, name: str, low: float, high: float) -> list[str]:
    value = _value(run, name)
    if value is None or low <= value <= high:
        return []
    return [f"{name} must be between {low:.10g} and {high:.10g}, got {value}"]
