"""What a run may be: `check(run)` returns every problem of a configuration at once, as sentences.

Nothing is started before it is empty.
"""

import math
from typing import Any

from smartrag.choices import KL, Critic, Judge, KLIn, Role, Teacher, WeightBackend
from smartrag.config import Data, Run
from smartrag.data.load import NAMED
from smartrag.reward import full_score

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
    ("retriever.corpus_share", 1e-6, 1.0),
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
    ("train.set_aside", 0, 1 << 20),
    ("train.episodes", 1, 1 << 20),
    ("train.evaluate_every", 0, 1 << 31),
    ("train.save_every", 1, 1 << 31),
    ("train.keep", 1, 1 << 20),
    ("log.episodes", 0, 1 << 20),
    ("seed", 0, (1 << 31) - 1),
)


def check(run: Run) -> list[str]:
    """Every problem of `run` as one sentence each; empty when it can start."""
    problems = [p for name, low, high in RANGES for p in _out_of_range(run, name, low, high)]
    problems += _data_problems(run.data)
    problems += [f"train.quotas holds {n}; each must be between 0 and 16" for n in run.train.quotas if not 0 <= n <= 16]
    problems += [f"train.ks holds {n}; each must be between 1 and 100" for n in run.train.ks if not 1 <= n <= 100]
    reward = run.reward
    for name in ("retrieval", "format_error", "truncated"):
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
    problems += _of_the_estimators(run)
    if run.train.episodes % run.algorithm.samples:
        problems.append(
            f"train.episodes={run.train.episodes} must be a multiple of algorithm.samples={run.algorithm.samples}"
        )
    problems += _of_the_roles(run)
    problems += _of_the_judge(run)
    problems += _of_the_price(run)
    if run.warmup.steps and run.warmup.batch % run.learner.ranks:
        problems.append(f"warmup.batch={run.warmup.batch} must be a multiple of learner.ranks={run.learner.ranks}")
    shares = run.warmup.direct + run.warmup.search + run.warmup.read
    if run.warmup.steps and abs(shares - 1) > 1e-6:
        problems.append(f"warmup.direct + warmup.search + warmup.read must be 1, got {shares:g}")
    searches = max(run.training_quotas)
    if run.warmup.steps and run.warmup.teacher is not Teacher.gold and not searches:
        problems.append(
            f"warmup.teacher={run.warmup.teacher} shows searches too; raise algorithm.quota (or train.quotas) above 0"
        )
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


def _data_problems(data: Data) -> list[str]:
    problems = [] if data.mix else ["data.mix names no data set; write data.mix={NAME: WEIGHT}"]
    for name, weight in data.mix.items():
        if not (math.isfinite(weight) and weight > 0):
            problems.append(f"data.mix.{name} must be a finite number above 0, got {weight}")
        if len(data.mix) > 1 and name not in (*NAMED, "folder"):
            problems.append(f"data.mix: no data set is called {name!r}; there are: {', '.join(NAMED)}, folder")
    if len(data.mix) > 1 and "folder" in data.mix and data.source in NAMED:
        problems.append(f"data.mix holds `folder`, so data.source must be a folder, got {data.source!r}")
    return problems


def _of_the_estimators(run: Run) -> list[str]:
    algorithm = run.algorithm
    problems = []
    if algorithm.advantage.compares_samples and algorithm.samples < 2:
        problems.append(
            f"algorithm.advantage={algorithm.advantage} compares the samples of one question and "
            f"algorithm.samples={algorithm.samples} leaves nothing to compare; use 2 or more"
        )
    if algorithm.critic_warmup_steps and not algorithm.advantage.has_critic:
        problems.append(
            f"algorithm.critic_warmup_steps={algorithm.critic_warmup_steps}, but algorithm.advantage="
            f"{algorithm.advantage} has no critic; set it to 0"
        )
    if algorithm.critic is Critic.shared and not algorithm.advantage.has_critic:
        problems.append(
            f"algorithm.critic=shared, but algorithm.advantage={algorithm.advantage} has no critic; leave it at "
            "separate, which then means none"
        )
    if algorithm.kl_in is KLIn.loss and algorithm.kl is KL.k1:
        problems.append(
            "algorithm.kl=k1 with algorithm.kl_in=loss has a gradient of mean zero, so it would hold nothing back; "
            "use k2 or k3 there, or algorithm.kl_in=reward"
        )
    return problems


def _of_the_roles(run: Run) -> list[str]:
    trains = run.algorithm.trains
    spelled = f"algorithm.trains=[{','.join(trains)}]"
    if not trains or len(set(trains)) < len(trains):
        return [f"{spelled} must name one or more of {', '.join(Role)}, each once"]
    problems = []
    if run.algorithm.frozen and run.warmup.steps:
        problems.append(
            f"with {spelled} the weights that the run starts from play {' and '.join(run.algorithm.frozen)}, so they "
            f"must be warmed up already: set warmup.steps=0, got {run.warmup.steps}, and model.path to what "
            "launch/warmup.py made"
        )
    if Role.answer not in trains and not max(run.training_quotas):
        problems.append(
            f"{spelled} learns nothing where every answer is forced; raise algorithm.quota (or train.quotas) above 0"
        )
    return problems


def _of_the_judge(run: Run) -> list[str]:
    reward, episodes, samples = run.reward, run.train.episodes, run.algorithm.samples
    problems = []
    if full_score(reward) <= 0:
        problems.append("reward.exact_match + reward.f1 is 0, so no answer would be worth anything; raise one of them")
    if reward.judge is Judge.agreement and (samples < 2 or episodes < 2 * samples):
        problems.append(
            f"reward.judge=agreement compares the samples of one question with each other and with those of other "
            f"questions; algorithm.samples={samples} must be 2 or more and train.episodes={episodes} twice that or more"
        )
    if (reward.judge is Judge.endpoint) != (reward.endpoint is not None):
        problems.append("reward.judge=endpoint and a reward.endpoint go together: both or neither; see reward=judge")
    if reward.endpoint is not None:
        left = episodes - int(reward.endpoint.max_void_share * episodes)
        needed = run.learner.ranks * run.algorithm.minibatches
        if left < needed:
            problems.append(
                f"reward.endpoint.max_void_share={reward.endpoint.max_void_share:g} of train.episodes={episodes} could "
                f"leave {left} episodes for learner.ranks x algorithm.minibatches = {needed} shares; lower the first"
            )
    return problems


def _of_the_price(run: Run) -> list[str]:
    reward, quota = run.reward, max(run.training_quotas)
    named = "train.quotas" if run.train.quotas else "algorithm.quota"
    problems = []
    highest, owner = -reward.retrieval, "-reward.retrieval"
    if reward.budget is not None:
        highest, owner = reward.budget.max_price, "reward.budget.max_price"
        if not 0 <= -reward.retrieval <= highest:
            problems.append(
                f"reward.retrieval={reward.retrieval:g} is where the price of the budget starts, so it must be between "
                f"-reward.budget.max_price={-highest:g} and 0"
            )
        if reward.budget.target > quota:
            problems.append(
                f"reward.budget.target={reward.budget.target:g} is above {named}={quota}, so it would hold "
                "nothing back; lower the first or raise the second"
            )
    if reward.gated and quota * highest > full_score(reward):
        problems.append(
            f"with reward.gated=true a right answer after {named}={quota} retrievals at {owner}={highest:g} "
            f"would be worth less than a wrong one; lower the price to {full_score(reward) / quota:g}"
        )
    return problems


def _out_of_range(run: Run, name: str, low: float, high: float) -> list[str]:
    value: Any = run
    for part in name.split("."):
        value = None if value is None else getattr(value, part)
    if value is None or low <= value <= high:
        return []
    return [f"{name} must be between {low:g} and {high:g}, got {value}"]
