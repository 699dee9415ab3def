"""What a run may be: `check(run)` returns every problem of a configuration at once, as sentences.

Nothing is started before it is empty.
"""

from smartrag.bounds import out_of_bounds
from smartrag.choices import KL, Corpus, Critic, Judge, KLIn, Role, Teacher, WeightBackend
from smartrag.config import Retriever, Run
from smartrag.files import is_uri
from smartrag.reward import full_score

LONGEST_PAUSE_S = 8.0  # between two requests to a retriever behind HTTP, whatever it asks for


def check(run: Run) -> list[str]:
    """Every problem of `run` as one sentence each; empty when it can start."""
    problems = out_of_bounds(run)
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
    if run.train.mirror is not None and not is_uri(run.train.mirror):
        problems.append(
            f"train.mirror={run.train.mirror} is no URI; e.g. s3://BUCKET/runs, gs://BUCKET/runs or file:///shared/runs"
        )
    problems += _of_the_estimators(run)
    if run.train.episodes % run.algorithm.samples:
        problems.append(
            f"train.episodes={run.train.episodes} must be a multiple of algorithm.samples={run.algorithm.samples}"
        )
    problems += _of_the_roles(run)
    problems += _of_the_judge(run)
    problems += _of_the_price(run)
    problems += _of_the_searcher(run.retriever)
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
    engine = run.cluster.engine
    if (engine.tensor_parallel > 1 or engine.gpus > 1) and engine.gpus != engine.tensor_parallel:
        problems.append(
            f"cluster.engine.tensor_parallel={engine.tensor_parallel} and cluster.engine.gpus={engine.gpus:g}: a model "
            "that is shared over several GPUs needs just as many; set both to the same number"
        )
    if run.cluster.colocated != (run.cluster.weights is WeightBackend.ipc):
        problems.append("cluster.colocated=true and cluster.weights=ipc go together: both or neither")
    if run.cluster.colocated and run.train.max_staleness:
        problems.append(
            f"train.max_staleness={run.train.max_staleness}, but cluster.colocated=true: engines sleep while the "
            "learner works, so nothing can be begun ahead; set it to 0, or give the learner GPUs of its own"
        )
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
    if (reward.judge is Judge.function) != (reward.function is not None):
        problems.append(
            "reward.judge=function and reward.function=package.module:name go together: both or neither; see "
            "docs/bring-your-own.md"
        )
    if reward.endpoint is not None:
        left = episodes - int(reward.endpoint.max_void_share * episodes)
        needed = run.learner.ranks * run.algorithm.minibatches
        if left < needed:
            problems.append(
                f"reward.endpoint.max_void_share={reward.endpoint.max_void_share:g} of train.episodes={episodes} could "
                f"leave {left} episodes for learner.ranks x algorithm.minibatches = {needed} shares; lower the first"
            )
    return problems


def _of_the_searcher(retriever: Retriever) -> list[str]:
    problems = []
    for name, group in (("dense", retriever.dense), ("http", retriever.http)):
        if (retriever.searcher == name) != (group is not None):
            problems.append(
                f"retriever.searcher={name} and a retriever.{name} go together: both or neither; see retriever={name}"
            )
    whole = retriever.corpus is Corpus.real and retriever.corpus_share == 1
    if retriever.searcher not in ("bm25", "dense") and not whole:
        problems.append(
            f"retriever.corpus={retriever.corpus} with retriever.corpus_share={retriever.corpus_share:g} chooses "
            f"passages of an index that is built here, which retriever.searcher={retriever.searcher} does not; use "
            "real and 1"
        )
    if (service := retriever.http) is not None:
        if retriever.index is not None:
            problems.append("retriever.index is of no use to retriever.searcher=http; leave it at null")
        longest = (service.attempts + 1) * service.timeout_s + (service.attempts - 1) * LONGEST_PAUSE_S
        if longest > retriever.timeout_s:
            problems.append(
                f"retriever.http.timeout_s={service.timeout_s:g} and retriever.http.attempts={service.attempts} "
                f"come to {longest:g} s in all, above retriever.timeout_s={retriever.timeout_s:g}; raise that or "
                "lower those"
            )
    return problems


def _of_the_price(run: Run) -> list[str]:
    reward, quota = run.reward, max(run.training_quotas)
    named = "train.quotas" if run.train.quotas else "algorithm.quota"
    problems = []
    highest, owner = -reward.retrieval, "-reward.retrieval"
    if reward.budget is not None:
        highest, owner = reward.budget.max_price, "reward.budget.max_price"
        if -reward.retrieval > highest:
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
