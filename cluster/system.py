"""The machines of one run, put together: inputs first, then seats, then everybody at once.

inputs(run)    data, model, tokenizer, retriever, index: every problem shows before a worker starts
System(run)    placement group -> retrieval replicas, rollout workers, learner ranks -> weight push
"""

import logging
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import ray
from transformers import AutoTokenizer

from cluster.engine_args import engine_env
from cluster.learner import LearnerGroup
from cluster.machine import check_places
from cluster.placement import Seats, reserve
from cluster.retrieval import RetrievalPool
from cluster.rollout import RolloutPool, RolloutWorker
from cluster.searcher import check_searcher, prepare
from cluster.weights import PushFailed, WeightPush
from smartrag import own_reward
from smartrag.chat import api_key
from smartrag.choices import Role
from smartrag.config import Run
from smartrag.data.load import Dataset, load
from smartrag.model_folder import check, check_fit
from smartrag.origin import resolve
from smartrag.prompt import Budget, Prompt

logger = logging.getLogger("smartrag")

_CANARY = "The quick brown fox jumps over the lazy dog in Reykjavík, 1999."
_CANARY_TOKENS = 32  # every one of them meets every layer; more only take longer


@dataclass(frozen=True, slots=True)
class Inputs:
    data: Dataset
    model: Path  # folder with weights and tokenizer
    prompt: Prompt
    index: Path | None  # what replicas read, see searcher.prepare
    frozen: Mapping[Role, Path]  # roles that other weights play: their folders


class BadInput(Exception):
    """Something that the run reads is wrong; the message says what, where and what to do. Nothing has been started."""


def inputs(run: Run, model: Path | None = None) -> Inputs:
    """All that a run reads, checked before anything is started. `model`: trained weights to serve, not to train.

    The roles that the run does not train are played by the weights that it starts from, or started from.

    Raises BadInput.
    """
    try:
        return _inputs(run, model)
    except (ValueError, RuntimeError, OSError) as error:
        raise BadInput(str(error)) from error


def _inputs(run: Run, model: Path | None) -> Inputs:
    cache = Path(run.cache).expanduser()
    for endpoint in run.endpoints.values() if model is None else ():
        api_key(endpoint)
    if model is None and run.reward.function is not None:
        own_reward.check(run.reward.function)
    check_places(run)
    check_searcher(run.retriever)
    frozen = run.algorithm.frozen
    start = resolve(run.model, cache / "models") if model is None or frozen else model
    folder = start if model is None else model
    budget = Budget(run.model.context_tokens, run.model.new_tokens, run.model.passage_tokens)
    check(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    prompt = Prompt(tokenizer, run.model.instruction, budget)
    check_fit(folder, run, len(tokenizer))
    data = load(run.data, cache / "data")
    _check_lengths(data, prompt, run)
    place = prepare(run.retriever, data.corpus, cache / "indexes")
    return Inputs(data, folder, prompt, place, dict.fromkeys(frozen, start))


def _check_lengths(data: Dataset, prompt: Prompt, run: Run) -> None:
    """The context budget cuts passages and never the question, so a question that does not fit is refused."""
    room = prompt.budget.context - 2 * prompt.budget.new_tokens - len(prompt.answer_ids)
    quota = max([run.algorithm.quota, *run.train.quotas])  # the longest to spell
    asked = (*data.train, *data.dev, *data.test)
    long = [q for q in asked if len(prompt.question(q.text, quota)) > room]
    if long:
        named = ", ".join(q.id for q in long[:5])
        raise ValueError(
            f"{len(long)} questions do not fit into {room} tokens (model.context_tokens={prompt.budget.context} "
            f"less two generations): {named}; raise model.context_tokens or leave them out of the data"
        )


def connect(run: Run) -> None:
    """Joins the job's cluster (RAY_ADDRESS), the one at `cluster.address`, or starts a local Ray. Once a process."""
    if ray.is_initialized():
        return
    address = run.cluster.address or os.environ.get("RAY_ADDRESS")
    if os.environ.get("RAY_AUTH_MODE", "").lower() == "disabled":
        logger.warning(
            "RAY_AUTH_MODE=disabled: whoever reaches Ray's ports can run code here; export RAY_AUTH_MODE=token, "
            "where a cluster that is joined is started, too"
        )
    if address:
        ray.init(address=address, namespace="smartrag", log_to_driver=False)
    else:
        ray.init(
            address="local",  # without it Ray would fall upon one that `ray start` left here, which takes no num_cpus
            namespace="smartrag",
            num_cpus=max(2, os.cpu_count() or 2),
            include_dashboard=False,
            log_to_driver=False,
            _node_ip_address="127.0.0.2",  # loopback; Ray replaces 127.0.0.1 by an address of the network
        )


class System:
    """Rollout workers with engines, retrieval replicas, learner ranks, and the weight push between them.

    `learn=False` leaves the learner out: evaluation and `ask` serve the weights of `found.model` as they are.
    """

    rollout: RolloutPool
    retrieval: RetrievalPool
    learner: LearnerGroup

    def __init__(self, run: Run, found: Inputs, *, learn: bool = True):
        self.run, self._found, self._learn = run, found, learn
        self._version = 0
        self._stack = ExitStack()

    def start(self) -> "System":
        """Everybody at once; returns when all are ready. Whatever fails half-way takes down what stands."""
        connect(self.run)
        try:
            seats = reserve(self.run, learn=self._learn)
            self._stack.callback(seats.release)
            with ThreadPoolExecutor() as together:
                serving = together.submit(self._start_serving, seats)
                learning = together.submit(self._start_learning, seats)
                for started in (serving, learning):
                    started.result()
            if self._learn:
                self._ready_to_push()
                self.rollout.on_restored = lambda _: self.publish(self._version)
        except BaseException:
            self.close()
            raise
        return self

    def publish(self, version: int) -> dict[str, float]:
        """Implements `Publish`; also brings a restarted worker what the others hold.

        Once a step is often enough to look after hung replicas, which Ray cannot tell from busy ones.

        Raises LearnerLost when that is why a push failed.
        """
        self.retrieval.restore()
        self._version = version
        try:
            figures = self._push(version)
        except PushFailed:
            self.learner.check()
            raise
        self.rollout.pushed()
        return figures

    def restart_learner(self) -> None:
        """See LearnerGroup.restart; weights go out from the new ranks."""
        self.learner.restart()
        self._ready_to_push()

    def _ready_to_push(self) -> None:
        canary = self._found.prompt.question(_CANARY, self.run.algorithm.quota)
        self._push = WeightPush(self.rollout, self.learner.ranks, self.run.cluster, canary[-_CANARY_TOKENS:])

    def close(self) -> None:
        self._stack.close()

    def _start_serving(self, seats: Seats) -> None:
        run = self.run
        self.retrieval = RetrievalPool(
            run.retriever,
            self._found.index,
            ready_s=run.cluster.placement_timeout_s,
            strategies=[seats.strategy(i) for i in seats.replicas],
        )
        self._stack.callback(self.retrieval.close)
        self.rollout = RolloutPool(
            run.cluster,
            RolloutWorker,
            (run, self._found.model, self.retrieval.client(), self._found.frozen),
            env=engine_env(run.cluster),
            strategies=[seats.strategy(i) for i in seats.engines],
        )
        self._stack.callback(self.rollout.close)

    def _start_learning(self, seats: Seats) -> None:
        if self._learn:
            self.learner = LearnerGroup(
                self.run, self._found.model, strategies=[seats.strategy(i) for i in seats.learners]
            )
            self._stack.callback(self.learner.close)
