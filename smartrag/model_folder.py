"""A model as it lies in a folder, judged from names, JSON and headers before anything of it is loaded.

`check` is of the folder alone: that nothing of it could run, and that it is whole and a causal language model.
`check_fit` is of the folder and a run that wants to train it.
"""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from smartrag.config import Run

_CONFIGS = ("config.json", "tokenizer_config.json", "generation_config.json")
_PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")
_CAUSAL = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")  # the last: of text and pictures
_INDEX = "model.safetensors.index.json"
_SHOWN = 3


def check(folder: Path) -> None:
    """Raises ValueError with everything for which the model in `folder` cannot be a policy."""
    _refuse(folder, [*code(folder), *_of_the_weights(folder), *_of_the_kind(folder)])


def check_fit(folder: Path, run: Run, tokens: int) -> None:
    """Raises ValueError with everything in which the model is too small for `run`, or cannot be divided as it asks.

    `tokens`: in the tokenizer's vocabulary.
    """
    found = _json(folder / "config.json")
    config = found | found.get("text_config", {})
    positions = next((config[n] for n in ("max_position_embeddings", "n_positions") if config.get(n)), None)
    stretched = "factor" in {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    problems = []
    if positions is not None and not stretched and run.model.context_tokens > positions:
        problems.append(
            f"it has {positions} positions, model.context_tokens={run.model.context_tokens} are more; lower it"
        )
    if tokens > config.get("vocab_size", tokens):
        problems.append(
            f"its tokenizer has {tokens} tokens, its weights know {config['vocab_size']} (vocab_size in config.json); "
            "take the tokenizer that belongs to it"
        )
    shared, heads = run.cluster.engine.tensor_parallel, config.get("num_attention_heads")
    if heads is not None and heads % shared:
        problems.append(
            f"its {heads} attention heads cannot be divided over cluster.engine.tensor_parallel={shared} GPUs"
        )
    if run.model.lora is not None:
        layers = {name.split(".")[-2] for name in tensors(folder) if name.endswith(".weight") and "." in name[:-7]}
        if unknown := [target for target in run.model.lora.targets if target not in layers]:
            problems.append(
                f"it has no layer called {', '.join(unknown)} (model.lora.targets); see {_some(sorted(layers))}"
            )
    _refuse(folder, problems)


def code(folder: Path) -> list[str]:
    """What in `folder` is code, or asks for code, that would run when it is loaded with trust."""
    problems = []
    if scripts := sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.py")):
        problems.append(f"{_some(scripts)} is code; take a model that transformers knows by itself")
    for name in _CONFIGS:
        if "auto_map" in _json(folder / name):
            problems.append(
                f"{name} asks for code of its own (auto_map); take a model that transformers knows by itself"
            )
    return problems


def tensors(folder: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of all that the *.safetensors of `folder` hold, from their headers alone."""
    from safetensors import safe_open

    found: dict[str, tuple[int, ...]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="np") as file:
            found |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    return found


def parameters(folder: Path) -> int:
    """How many numbers the *.safetensors of `folder` hold."""
    return sum(map(math.prod, tensors(folder).values()))


def _of_the_weights(folder: Path) -> Iterator[str]:
    from safetensors import SafetensorError, safe_open

    weights = sorted(folder.glob("*.safetensors"))
    if not weights:
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES)
        there = f", only {_some(pickles)}, which can run code when loaded" if pickles else ""
        yield f"it has no *.safetensors file{there}; save it as safetensors"
    for path in weights:
        try:
            with safe_open(path, framework="np"):
                pass
        except (SafetensorError, OSError) as error:
            yield f"{path.name} is damaged or cut short ({error}); fetch it again"
    shards = _json(folder / _INDEX).get("weight_map", {})
    if missing := sorted({*map(str, shards.values())} - {path.name for path in weights}):
        yield f"{_some(missing)} is missing, which {_INDEX} names; fetch it again"


def _of_the_kind(folder: Path) -> Iterator[str]:
    try:
        json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        yield f"config.json cannot be read ({error}); fetch it again"
    config = _json(folder / "config.json")
    kinds = config.get("architectures") or []
    if config.get("is_encoder_decoder"):
        kind = config.get("model_type", "its kind is not said")
        yield (
            f"it is an encoder-decoder ({kind}); the policy is one growing token sequence, which only a decoder can "
            "continue: use a causal language model"
        )
    elif kinds and not any(str(kind).endswith(_CAUSAL) for kind in kinds):
        yield f"config.json says {', '.join(map(str, kinds))}; the policy is a causal language model, ...ForCausalLM"
    if not any((folder / name).is_file() for name in _TOKENIZERS):
        yield f"it has no tokenizer (none of {', '.join(_TOKENIZERS)}); save one beside the weights"


def _json(path: Path) -> dict[str, Any]:
    """Nothing where there is no such file, or no object in it."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def _refuse(folder: Path, problems: Sequence[str]) -> None:
    if problems:
        raise ValueError("\n".join(f"the model in {folder}: {problem}" for problem in problems))
