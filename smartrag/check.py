"""What a run may be: `check(run)` returns every problem of a configuration at once, as sentences.

Nothing is started before it is empty.
"""

import math
from typing import Any

from smartrag.config import Run, WeightBackend

# (field, lowest, highest) of every number whose range is known; both ends are allowed.
_RANGES: tuple[tuple[str, float, float], ...] = (
    ("model.lora.rank", 1, 4096),
    ("model.lora.alpha", 1, 1 << 20),
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
    ("algorithm.samples", 1, 1024),
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
    if run.model.lora is not None and not run.model.lora.targets:
        problems.append("model.lora.targets names no layer; name linear layers, e.g. [q_proj,v_proj]")
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
    if run.train.episodes % run.algorithm.samples:
        problems.append(
            f"train.episodes={run.train.episodes} must be a multiple of algorithm.samples={run.algorithm.samples}"
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
        value = None if value is None else getattr(value, part)
    if value is None or low <= value <= high:
        return []
    return [f"{name} must be between {low:g} and {high:g}, got {value}"]
