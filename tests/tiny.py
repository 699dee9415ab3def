"""A random Llama that optimises in milliseconds, trajectories for it, and an optimisation engine without ZeRO."""

import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from smartrag.ranks import Ranks
from smartrag.types import Trajectory
from tests import toys

WIDTH, LAYERS = 32, 2

torch.set_num_threads(1)  # tensors this small are slower on several, much slower on a busy machine


def llama(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(toys.tokenizer()),
        hidden_size=WIDTH,
        intermediate_size=64,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        initializer_range=0.2,
    )
    return LlamaForCausalLM(config)


def folder(path: Path, seed: int = 0) -> Path:
    """The model and a byte tokenizer as a Hugging Face folder."""
    llama(seed).save_pretrained(path)
    toys.tokenizer().save_pretrained(path)
    return path


def trajectories(count: int, seed: int = 0) -> list[Trajectory]:
    """Two-turn episodes of random tokens and lengths: a retrieval cost on the first turn, a reward at the end."""
    rng = random.Random(seed)
    made = []
    for i in range(count):
        sizes = [rng.randint(*bounds) for bounds in ((3, 10), (2, 6), (5, 40), (2, 9))]
        mask = [chosen for n, chosen in zip(sizes, (False, True, False, True), strict=True) for _ in range(n)]
        n = len(mask)
        rewards = [0.0] * n
        rewards[sizes[0] + sizes[1] - 1], rewards[-1] = -0.2, rng.uniform(0, 2)
        logprobs = [rng.uniform(-6, -5) if chosen else 0.0 for chosen in mask]
        ids = [rng.randrange(200) for _ in range(n)]
        versions = [0 if chosen else -1 for chosen in mask]
        cut, pair = i % 5 == 0, i // 2
        fields = (tuple(x) for x in (ids, mask, logprobs, rewards, versions))
        made.append(Trajectory(f"t{i:03d}", *fields, cut, pair, roles=_roles(sizes)))
    return made


def timeless(metrics: Mapping[str, float]) -> dict[str, float]:
    """Of an update: all that is the same when it is made again."""
    return {name: value for name, value in metrics.items() if not name.startswith("seconds")}


def _roles(sizes: Sequence[int]) -> tuple[int, ...]:
    """A decision of one token and a query, then a decision and an answer."""
    asked, searched, shown, answered = sizes
    return (-1,) * asked + (0,) + (1,) * (searched - 1) + (-1,) * shown + (0,) + (2,) * (answered - 1)


def unpacked_plan(sizes: Sequence[int], budget: int, chosen: Sequence[int] | None = None) -> list[list[list[int]]]:
    """In place of `packing.plan`: every trajectory in a row of its own, in micro-batches padded to their longest."""
    micro_batches: list[list[list[int]]] = []
    for i in range(len(sizes)) if chosen is None else chosen:
        rows = [*micro_batches[-1], [i]] if micro_batches else [[i]]
        if len(rows) == 1 or len(rows) * max(sizes[row[0]] for row in rows) > budget:
            micro_batches.append([[i]])
        else:
            micro_batches[-1] = rows
    return micro_batches


class PlainEngine:
    """AdamW on one module; gradients are averaged over ranks at the last backward, as DeepSpeed does."""

    def __init__(self, module: nn.Module, ranks: Ranks, learning_rate: float = 1e-3, max_norm: float = 1.0):
        self.module, self.ranks, self.max_norm = module, ranks, max_norm
        self.adam = torch.optim.AdamW(
            [p for p in module.parameters() if p.requires_grad], lr=learning_rate, weight_decay=0.01
        )

    def forward(self, *inputs: Any) -> Any:
        return self.module(*inputs)

    def backward(self, loss: Tensor, last: bool) -> None:
        loss.backward()
        if last:
            for p in (p for p in self.module.parameters() if p.requires_grad):
                assert p.grad is not None
                p.grad = (self.ranks.sum(p.grad) / self.ranks.count).float()

    def step(self) -> float:
        norm = float(nn.utils.clip_grad_norm_(self.module.parameters(), self.max_norm))
        if torch.isfinite(torch.tensor(norm)):
            self.adam.step()
        self.adam.zero_grad()
        return norm
