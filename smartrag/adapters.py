"""LoRA: what is added to a language model, and the plain weights that base and adapters amount to (arXiv 2106.09685).

Shapes: r rank of an adapter; a linear layer's weight W is [out, in], its adapter A [r, in] and B [out, r].
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from smartrag.config import Lora

_ADAPTER = "default"  # peft's name of the only one


def add(lm: PreTrainedModel, lora: Lora) -> None:
    """Freezes `lm` and gives every layer that `lora` names an adapter, which is all that is trained afterwards.

    B starts at 0, so nothing is changed yet. Raises ValueError for a target that is no linear layer of the model.
    """
    embedding = lm.get_input_embeddings().weight
    linear = {
        name.rpartition(".")[2]
        for name, layer in lm.named_modules()
        if isinstance(layer, nn.Linear) and layer.weight is not embedding  # a tied head is the embedding
    }
    if unknown := [name for name in lora.targets if name not in linear]:
        raise ValueError(
            f"model.lora.targets: the model has no linear layer of its own called {', '.join(unknown)}; "
            f"choose among {', '.join(sorted(linear))}"
        )
    # No dropout: it would make the first-epoch ratio differ from 1, and the learner from the engine.
    settings = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=list(lora.targets), lora_dropout=0.0)
    inject_adapter_in_model(settings, lm, _ADAPTER)
    generator = torch.Generator().manual_seed(0)  # peft's own would differ between ranks
    with torch.no_grad():
        for layer in _layers(lm):
            a = layer.lora_A[_ADAPTER].weight
            nn.init.kaiming_uniform_(a, math.sqrt(5), generator=generator)  # as peft does


@dataclass(frozen=True, slots=True)
class Part:
    """One parameter of the model without adapters, and the adapter on it."""

    name: str  # in the model without adapters
    weight: nn.Parameter
    adapter: tuple[nn.Parameter, nn.Parameter] | None  # A, B
    scale: float  # α / r; 0 without an adapter

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [self.weight, *(self.adapter or ())]

    @torch.no_grad()
    def merged(self) -> Tensor:
        """What the parameter amounts to; a new tensor where there is an adapter. All `parameters` must be whole."""
        return self.weight.detach() if self.adapter is None else merged(self.weight, *self.adapter, self.scale)


def merged(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """W + (α / r) B A, [out, in], summed in float32 and rounded to W's type (Hu et al. 2021, section 4.1)."""
    return torch.addmm(weight.float(), b.float(), a.float(), alpha=scale).to(weight.dtype)


def parts(module: nn.Module) -> list[Part]:
    """Every parameter of `module` but the adapters, once (tied ones under their first name), in the module's order."""
    adapted = {id(layer.base_layer.weight): layer for layer in _layers(module)}
    made = []
    for name, weight in module.named_parameters():
        if ".lora_A." in name or ".lora_B." in name:
            continue
        layer = adapted.get(id(weight))
        adapter = (layer.lora_A[_ADAPTER].weight, layer.lora_B[_ADAPTER].weight) if layer else None
        scale = layer.scaling[_ADAPTER] if layer else 0.0
        made.append(Part(name.replace(".base_layer.", "."), weight, adapter, scale))
    return made


@contextmanager
def disabled(module: nn.Module) -> Iterator[None]:
    """Within it the base answers alone, as if there were no adapters. For forward passes without gradient."""
    layers = list(_layers(module))
    for layer in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer in layers:
            layer.enable_adapters(True)


def _layers(module: nn.Module) -> Iterator[Any]:
    return (layer for layer in module.modules() if isinstance(layer, LoraLayer))
