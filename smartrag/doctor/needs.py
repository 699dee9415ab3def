"""What a run takes of memory and disk, told from its settings and the size of its model before anything starts.

Estimates: activations, communication buffers and what a process's libraries cost differ between machines.

Ψ = parameters of the model. ZeRO as in Rajbhandari et al. 2020 (arXiv 1910.02054), figure 1.
"""

from smartrag.choices import Critic, Precision
from smartrag.config import Run

GIB = 1 << 30
ADAM = 12  # bytes of a parameter: its float32 copy and AdamW's two moments

# Of one process, libraries and small buffers, in memory that it does not share: measured in a quickstart.
_DRIVER = 1.0 * GIB  # and Ray's own processes
_RANK = 0.6 * GIB
_REPLICA = 0.4 * GIB  # its heap comes on top
_ENGINE = 2.1 * GIB  # vLLM's three processes


def zero_bytes(parameters: int, ranks: int, stage: int, *, weights: int, gradients: int, optimizer: int) -> float:
    """Memory of one rank for a model under ZeRO `stage` 0 to 3; the last three are bytes a parameter."""
    shards = [ranks if stage >= least else 1 for least in (3, 2, 1)]  # of weights, of gradients, of the optimiser
    each = zip((weights, gradients, optimizer), shards, strict=True)
    return parameters * sum(size / count for size, count in each)


def rank_bytes(run: Run, parameters: int) -> float:
    """Policy, critic and reference in one learner rank. Adapters count as nothing beside what they stand on."""
    group, width = run.learner, _width(run)
    trained = (0, 0) if run.model.lora is not None else (4 if group.zero_stage else width, ADAM)  # gradients, optimiser
    one = zero_bytes(
        parameters, group.ranks, group.zero_stage, weights=width, gradients=trained[0], optimizer=trained[1]
    )
    reference = 0.0
    if run.model.lora is None:  # with adapters it is what they stand on
        reference = zero_bytes(parameters, group.ranks, group.zero_stage, weights=width, gradients=0, optimizer=0)
    return _models(run) * one + reference


def machine_bytes(run: Run, parameters: int) -> float:
    """Memory of one machine that holds all of a run on CPUs; on GPUs without what lies on those. A checkpoint that is
    being written is a copy in memory."""
    group, engine, retriever = run.learner, run.cluster.engine, run.retriever
    heap = int(retriever.heap[:-1]) * (GIB if retriever.heap[-1] in "gG" else 1 << 20)
    learning, serving = group.ranks * _RANK, engine.workers * _ENGINE
    if not group.gpus:
        learning += group.ranks * rank_bytes(run, parameters)
        serving += engine.workers * (parameters * _width(run) + (engine.kv_cache_gib or 0) * GIB)
    learning += checkpoint_bytes(run, parameters)
    return _DRIVER + learning + serving + retriever.replicas * (_REPLICA + heap)


def checkpoint_bytes(run: Run, parameters: int) -> float:
    """One checkpoint: weights and optimiser of every trained model, the reference, the policy to use elsewhere."""
    width = _width(run)
    if run.model.lora is not None:
        return parameters * width * (_models(run) + 1)
    return parameters * (_models(run) * (width + ADAM) + 2 * width)


def _width(run: Run) -> int:
    return 2 if run.model.precision is Precision.bfloat16 else 4


def _models(run: Run) -> int:
    return 2 if run.algorithm.advantage.has_critic and run.algorithm.critic is Critic.separate else 1
