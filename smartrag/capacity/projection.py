"""Service times of machines that are not here, from what a chip and a policy are: a roofline (Williams et al. 2009).

An iteration of an engine reads the weights once and each sequence's keys and values; a prompt costs two FLOPs a
parameter and token, training ten (forward and backward of policy and shared critic 6, the reference and the scores of
before 2 each). A push is a broadcast, a gradient step a reduce-scatter and an all-gather, over each GPU's own link.
"""

import math
from dataclasses import dataclass, replace

from smartrag.capacity.pipeline import Generation, Layout, Outcome, Services, simulate
from smartrag.commands import Capacity

_BYTES = 2  # of a bfloat16
_TRAINING_BYTES = 16  # of a parameter: weights and gradients in two bytes, master weights and AdamW's moments in four
_ROOM = 0.6  # of a GPU's memory for weights (engine) or optimiser (learner); the rest is cache and activations
_SPLITS = (1 / 8, 1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4, 7 / 8)  # of the GPUs for the learner
_STEPS = 2  # simulated, beside those that fill and empty the pipeline
_SLACK = 0.05  # retrieval may cost so much of a step


@dataclass(frozen=True, slots=True)
class Policy:
    """Shape of a decoder: what its config.json says."""

    parameters: float
    layers: int
    key_heads: int
    head: int

    @property
    def weights(self) -> float:
        """Bytes."""
        return _BYTES * self.parameters

    @property
    def cache(self) -> float:
        """Bytes of keys and values of one token."""
        return 2 * self.layers * self.key_heads * self.head * _BYTES


POLICIES = {  # Qwen 2.5's shapes, but for one
    "0.5B": Policy(0.494e9, 24, 2, 64),
    "1.5B": Policy(1.54e9, 28, 2, 128),
    "1.7B": Policy(1.71e9, 24, 32, 64),  # SmolLM2's
    "7B": Policy(7.62e9, 28, 4, 128),
    "32B": Policy(32.8e9, 64, 8, 128),
}


@dataclass(frozen=True, slots=True)
class Cell:
    """The fastest way to share `gpus` between learner and engines."""

    policy: str
    gpus: int
    learner_gpus: int
    engines: int
    tensor_parallel: int
    threads: int  # of retrieval
    episodes: int  # of a step
    outcome: Outcome
    slowest: str  # the part whose time, halved, shortens the step most
    gain: float  # share of the step that this saves
    orchestration: float  # share of the step that it is shorter without the driver's messages, records and pauses
    save_every_s: float  # the least is lost with a checkpoint so often
    goodput: float  # share of the time that brings the run on, then

    @property
    def threads_per_engine_gpu(self) -> float:
        return self.threads / (self.engines * self.tensor_parallel)


def tensor_parallel(policy: Policy, memory: float) -> int:
    """GPUs of an engine: the least power of two that holds the weights."""
    return 2 ** max(0, math.ceil(math.log2(policy.weights / (_ROOM * memory))))


def services(policy: Policy, assumed: Capacity, *, learner_gpus: int, width: int, episodes: int) -> Services:
    """`width` GPUs an engine; `episodes` of a step."""
    flops, stream = assumed.flops, assumed.memory_bandwidth * assumed.memory_share
    context = assumed.prompt_tokens + assumed.passage_tokens
    steps = assumed.minibatches * assumed.epochs
    gradient = 2 * policy.weights / assumed.link_bandwidth if learner_gpus > 1 else 0.0
    per_token = (4 + 6 * assumed.epochs) * policy.parameters
    return Services(
        send_s=assumed.send_s,
        iteration_s=assumed.iteration_overhead_s + policy.weights / stream / width,
        sequence_s=(policy.cache * context / stream + 2 * policy.parameters / (flops * assumed.engine_mfu)) / width,
        prompt_s=0.0,
        prompt_token_s=2 * policy.parameters / (flops * assumed.engine_mfu) / width,
        search_s=assumed.search_s,
        message_s=assumed.message_s,
        update_s=steps * gradient,
        token_s=per_token / (flops * assumed.learner_mfu) / learner_gpus,
        push_s=assumed.push_overhead_s + policy.weights / assumed.link_bandwidth,
        step_s=assumed.step_overhead_s + assumed.episode_overhead_s * episodes,
    )


def episodes(assumed: Capacity) -> list[list[Generation]]:
    """As many of each number of searches as `assumed.searches` has it, of a hundred, in a fixed mixture."""
    made = []
    for searches, share in enumerate(assumed.searches):
        turns = [
            Generation(assumed.prompt_tokens if i == 0 else assumed.passage_tokens, assumed.query_tokens, True)
            for i in range(searches)
        ]
        last = assumed.passage_tokens if searches else assumed.prompt_tokens
        made += [[*turns, Generation(last, assumed.answer_tokens, False)]] * round(100 * share)
    return [made[(37 * i) % len(made)] for i in range(len(made))] if len(made) % 37 else made


def project(name: str, gpus: int, assumed: Capacity) -> Cell | None:
    """None where the policy does not fit."""
    policy = POLICIES[name]
    width = tensor_parallel(policy, assumed.memory)
    least = math.ceil(_TRAINING_BYTES * policy.parameters / (_ROOM * assumed.memory))
    found = [
        _cell(name, gpus, learner, width, assumed)
        for learner in sorted({round(gpus * split) for split in _SPLITS})
        if learner >= least and gpus - learner >= width
    ]
    if not found:
        return None
    best = max(found, key=lambda cell: cell.outcome.episodes_a_second)
    return _with_retrieval(best, assumed)


def _cell(name: str, gpus: int, learner: int, width: int, assumed: Capacity) -> Cell:
    """With more retrieval than anybody asks for."""
    engines = (gpus - learner) // width
    count = min(assumed.episodes_per_gpu * gpus, assumed.most_episodes)
    layout = Layout(engines, assumed.concurrency, count, count, assumed.max_staleness)
    times = services(POLICIES[name], assumed, learner_gpus=learner, width=width, episodes=count)
    outcome = simulate(times, layout, episodes(assumed), steps=_STEPS)
    return Cell(name, gpus, learner, engines, width, count, count, outcome, "", 0.0, 0.0, *goodput(learner, assumed))


def _with_retrieval(cell: Cell, assumed: Capacity) -> Cell:
    """The fewest threads, within a quarter, that leave the step within `_SLACK` of one with no end of them."""
    policy, width = POLICIES[cell.policy], cell.tensor_parallel
    times = services(policy, assumed, learner_gpus=cell.learner_gpus, width=width, episodes=cell.episodes)
    searches = sum(turn.searches for turns in episodes(assumed) for turn in turns) / len(episodes(assumed))
    threads = max(1, math.floor(searches * cell.episodes * assumed.search_s / cell.outcome.step_s))
    while True:
        layout = Layout(cell.engines, assumed.concurrency, threads, cell.episodes, assumed.max_staleness)
        outcome = simulate(times, layout, episodes(assumed), steps=_STEPS)
        if outcome.step_s <= (1 + _SLACK) * cell.outcome.step_s:
            slowest, gain = _slowest(times, layout, outcome, assumed)
            share = _orchestration(cell, times, assumed)
            return replace(cell, threads=threads, outcome=outcome, slowest=slowest, gain=gain, orchestration=share)
        threads = max(threads + 1, round(1.25 * threads))


def _orchestration(cell: Cell, times: Services, assumed: Capacity) -> float:
    """Of a cell with more retrieval than anybody asks for: how long queries queue would hide it."""
    layout = Layout(cell.engines, assumed.concurrency, cell.threads, cell.episodes, assumed.max_staleness)
    free = replace(times, **dict.fromkeys(_PARTS["driver"], 0.0), push_s=times.push_s - assumed.push_overhead_s)
    return 1 - simulate(free, layout, episodes(assumed), steps=_STEPS).step_s / cell.outcome.step_s


_PARTS = {
    "learner": ("update_s", "token_s"),
    "engines": ("iteration_s", "sequence_s", "prompt_s", "prompt_token_s"),
    "retrieval": ("search_s",),
    "driver": ("send_s", "message_s", "step_s"),
    "push": ("push_s",),
}


def _slowest(times: Services, layout: Layout, outcome: Outcome, assumed: Capacity) -> tuple[str, float]:
    saved = {}
    for part, names in _PARTS.items():
        halved = replace(times, **{name: getattr(times, name) / 2 for name in names})
        saved[part] = 1 - simulate(halved, layout, episodes(assumed), steps=_STEPS).step_s / outcome.step_s
    slowest = max(saved, key=lambda part: saved[part])
    return slowest, saved[slowest]


def goodput(learner_gpus: int, assumed: Capacity) -> tuple[float, float]:
    """(seconds between checkpoints, share of the time that brings the run on): the interval that loses least (Young
    1974). A failure in the learner group costs a restart and, on average, half of what has been done since the
    last checkpoint; an engine's makes its episodes be played again, and is not counted.
    """
    between_s = assumed.gpu_mtbf_s / learner_gpus
    every_s = math.sqrt(2 * assumed.save_s * between_s)
    return every_s, 1 / (1 + assumed.save_s / every_s + (assumed.restart_s + every_s / 2) / between_s)
