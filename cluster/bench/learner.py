"""The learner group against bare PyTorch: the same passes over the same packed tokens, in turns.

An update of PPO with a separate critic is, for every micro-batch, a forward pass of policy, reference and critic, and
then, an epoch, a forward and a backward pass of policy and critic, and a step of either a minibatch. `Bare` does just
that, without DeepSpeed, Ray, metrics or advantages.
"""

import logging
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

from cluster.learner import LearnerGroup
from smartrag import batch, loss, packing
from smartrag.choices import Critic
from smartrag.config import Run
from smartrag.experiments.bench import Figure, against, in_turns, rate, seconds
from smartrag.model import load_critic, load_policy
from smartrag.types import Batch, Trajectory
from smartrag.update import update_seed

logger = logging.getLogger("smartrag")

# Dense bfloat16 of the vendor's data sheets, FLOP/s.
_PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}


def bench(run: Run, path: Path, repeats: int) -> dict[str, Figure]:
    """Of the learner of `run`, whose weights are in `path`. With a shared critic nothing is compared."""
    episodes = trajectories(run, AutoConfig.from_pretrained(path).vocab_size)
    tokens, chosen = (float(sum(n)) for n in zip(*((len(t.token_ids), sum(t.mask)) for t in episodes), strict=True))
    memory = scoring_memory(run, path) if run.learner.gpus else {}
    bare = Bare(run, path) if run.algorithm.critic is Critic.separate else None
    group = LearnerGroup(run, path)
    padding: list[float] = []
    try:
        group.snapshot_reference()
        measured = [lambda: seconds(lambda: padding.append(group.update(episodes, 0)["padding"]))]
        if bare is not None:
            measured.append(lambda: seconds(lambda: bare.update(episodes)))
        for once in measured:
            once()  # kernels are chosen and memory is taken
        ours, *theirs = in_turns(measured, repeats)
    finally:
        group.close()
    found = memory | {
        "learner_tokens": rate(tokens, "tokens/s", ours),
        "learner_policy_tokens": rate(chosen, "tokens/s", ours),
        "learner_padding": Figure(padding[-1], "share of tokens"),
    }
    if theirs:
        found["torch_policy_tokens"] = rate(chosen, "tokens/s", theirs[0])
        found["learner_vs_torch"] = against(
            found["learner_policy_tokens"], "torch_policy_tokens", found["torch_policy_tokens"]
        )
    if run.learner.gpus:
        work = flops(run, path, tokens, chosen)
        found |= {
            f"{name}_mfu": rate(work / peak(), "of the GPU's peak", s)
            for name, s in zip(("learner", "torch"), (ours, *theirs), strict=False)
        }
    return found


def trajectories(run: Run, vocabulary: int) -> list[Trajectory]:
    """Episodes of one retrieval, of random tokens and lengths as the run's own limits make them: a prompt, a query, the
    passages, an answer. Half of the passages' and of the new tokens' limits is used on average."""
    rng = random.Random("bench")
    made = []
    for i in range(run.train.episodes):
        observation = run.retriever.k * rng.randint(1, run.model.passage_tokens)
        sizes = (rng.randint(20, 60), _some(rng, run), observation, _some(rng, run))
        mask = [chosen for n, chosen in zip(sizes, (False, True, False, True), strict=True) for _ in range(n)]
        rewards = [0.0] * len(mask)
        rewards[-1] = rng.uniform(0, 2)
        logprobs = tuple(-5.0 if chosen else 0.0 for chosen in mask)
        ids = tuple(rng.randrange(vocabulary) for _ in mask)
        first = tuple(0 if chosen else -1 for chosen in mask)  # of the first version, by the first role
        made.append(Trajectory(f"t{i:05d}", ids, tuple(mask), logprobs, tuple(rewards), first, False, i, first))
    return made


def _some(rng: random.Random, run: Run) -> int:
    return rng.randint(2, run.model.new_tokens)


class Bare:
    """Policy, reference and critic as plain modules in this process, each trained one with torch's AdamW."""

    def __init__(self, run: Run, path: Path):
        self._run = run
        self._device = torch.device("cuda" if run.learner.gpus else "cpu")
        torch.set_num_threads(run.learner.threads * run.learner.ranks)
        precision = run.model.precision
        self._policy, self._reference = (load_policy(path, precision).to(self._device) for _ in range(2))
        self._critic = load_critic(path, precision).to(self._device)
        self._steps = [
            (module, torch.optim.AdamW(module.parameters(), lr=run.learner.learning_rate))
            for module in (self._critic, self._policy)
        ]

    def update(self, episodes: Sequence[Trajectory]) -> None:
        """The passes and steps of one update; waits until the device has done them."""
        algorithm, seed = self._run.algorithm, update_seed(self._run.seed, 0)
        parts = batch.minibatches(episodes, algorithm.minibatches, seed)
        whole = batch.collate([t for part in parts for t in part], 0)
        with torch.no_grad():
            for ids, mask, positions in self._micro_batches(whole):
                self._policy(ids, mask, algorithm.temperature, positions)
                self._reference(ids, mask, algorithm.temperature, positions)
                self._critic(ids, positions)
        for _ in range(algorithm.epochs):
            for part in parts:
                self._step(batch.collate(part, 0))
        if self._device.type == "cuda":
            torch.cuda.synchronize()

    def _step(self, part: Batch) -> None:
        for ids, mask, positions in self._micro_batches(part):
            values = self._critic(ids, positions)
            loss.masked_sum(values**2, mask).backward()
            logp, _ = self._policy(ids, mask, self._run.algorithm.temperature, positions)
            (-loss.masked_sum(logp, mask)).backward()
        for module, adam in self._steps:
            nn.utils.clip_grad_norm_(module.parameters(), self._run.learner.max_grad_norm)
            adam.step()
            adam.zero_grad()

    def _micro_batches(self, part: Batch) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """(token ids, mask, positions), [R, L] each."""
        for some in packing.plan(packing.lengths(part), self._run.learner.micro_batch_tokens):
            x = packing.pack(part, some)
            yield x.token_ids.to(self._device), x.mask.to(self._device), x.positions.to(self._device)


def flops(run: Run, path: Path, tokens: float, chosen: float) -> float:
    """Of the matrix products that one update needs: 2 a parameter and token forwards, 4 backwards (Kaplan et al. 2020,
    arXiv 2001.08361, section 2.1), the output layer's at policy tokens alone. Attention's own, a few per cent at these
    lengths, are left out."""
    config = AutoConfig.from_pretrained(path)
    with torch.device("meta"):
        trunk = AutoModel.from_config(config)
    body = sum(p.numel() for p in trunk.parameters() if p.dim() == 2)  # norms and biases are no matrix products
    body -= config.vocab_size * config.hidden_size  # the embedding is looked up
    head = config.vocab_size * config.hidden_size
    epochs, shared = run.algorithm.epochs, run.algorithm.critic is Critic.shared
    # Forward passes alone of policy, reference and critic, or of trunk and reference; a training pass is worth three.
    trunks = (2 if shared else 3) + 3 * epochs * (1 if shared else 2)
    heads = 2 + 3 * epochs
    return 2 * body * tokens * trunks + 2 * head * chosen * heads


def peak() -> float:
    """FLOP/s of this GPU in dense bfloat16."""
    name = torch.cuda.get_device_name()
    for known, value in _PEAKS.items():
        if known in name:
            return value
    raise ValueError(f"the peak of {name} is not known here; add it to {__name__}._PEAKS")


def scoring_memory(run: Run, path: Path) -> dict[str, Figure]:
    """Bytes that log-probs of one micro-batch and their gradient take at their highest, beside logits of every token in
    float32."""
    policy = load_policy(path, run.model.precision).to("cuda")
    episodes = trajectories(run, policy.lm.config.vocab_size)
    whole = batch.collate(episodes, 0)
    part = packing.pack(whole, packing.plan(packing.lengths(whole), run.learner.micro_batch_tokens)[0])
    ids, mask, positions = (x.to("cuda") for x in (part.token_ids, part.mask, part.positions))

    def ours() -> Tensor:
        return policy(ids, mask, 1.0, positions)[0].sum()

    def naive() -> Tensor:
        logits = policy.lm(input_ids=ids, position_ids=positions, use_cache=False).logits.float()
        logp = logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
        return logp[mask[:, 1:]].sum()

    def highest(of: Callable[[], Tensor]) -> float:
        policy.zero_grad()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        of().backward()
        return float(torch.cuda.max_memory_allocated() - before)

    highest(ours)
    found = {"scoring_memory_naive": Figure(highest(naive) / 2**30, "GiB")}
    found["scoring_memory"] = against(
        Figure(highest(ours) / 2**30, "GiB"), "scoring_memory_naive", found["scoring_memory_naive"]
    )
    return found
