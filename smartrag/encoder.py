"""Texts as vectors, for dense retrieval.

An encoder is a folder with a Hugging Face encoder model, or a function of people's own, package.module:name: texts ->
float32 [n, d], one row a text. A model's vector of a text is the mean of its last hidden states over the text's tokens
(Reimers & Gurevych 2019, arXiv 1908.10084); with `cosine` vectors are scaled to length 1, so that inner products are
cosines.

Shapes: n texts, T tokens of the longest, d numbers of a vector.
"""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from smartrag.config import Dense
from smartrag.dotted import is_dotted, named, told

if TYPE_CHECKING:
    import torch

Vectors = np.ndarray  # [n, d] float32
SETTING = "retriever.dense.encoder"
_WEIGHTS = "*.safetensors"


class EncoderProblem(ValueError):
    """What cannot serve as an encoder; the message says why and what to do."""


def is_function(encoder: str) -> bool:
    return is_dotted(encoder) and not Path(encoder).exists()


def identity(encoder: str) -> str:
    """sha256 of a model's files; "" of a function, whose code nobody can hash. Raises EncoderProblem."""
    if is_function(encoder):
        return ""
    folder = _folder(encoder)
    digest = hashlib.sha256()
    for path in sorted(
        [folder / "config.json", *folder.glob("tokenizer*"), *folder.glob("vocab*"), *folder.glob(_WEIGHTS)]
    ):
        with path.open("rb") as file:
            digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def opened(dense: Dense) -> Callable[[Sequence[str]], Vectors]:
    """The encoder: texts -> [n, d], checked and scaled. Raises EncoderProblem, ValueError."""
    if is_function(dense.encoder):
        raw = named(SETTING, dense.encoder)
    else:
        raw = _Model(_folder(dense.encoder), dense.max_tokens)

    def encode(texts: Sequence[str]) -> Vectors:
        try:
            vectors = raw(list(texts))
        except Exception as error:
            raise EncoderProblem(f"{SETTING}={dense.encoder} failed on {len(texts)} text(s) ({told(error)})") from error
        return scaled(_checked(vectors, len(texts), dense.encoder), cosine=dense.cosine)

    return encode


def scaled(vectors: Vectors, *, cosine: bool) -> Vectors:
    """v / ‖v‖ where cosines are wanted; a vector of zeros stays one."""
    if not cosine:
        return vectors
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(lengths > 0, lengths, 1)


def mean_pooled(hidden: "torch.Tensor", mask: "torch.Tensor") -> "torch.Tensor":
    """Σₜ mₜ hₜ / Σₜ mₜ. hidden: [n, T, d]; mask: [n, T], 1 on tokens of the text. [n, d]"""
    weights = mask.unsqueeze(-1).to(hidden.dtype)  # [n, T, 1]
    return (hidden * weights).sum(1) / weights.sum(1).clamp(min=1)


class _Model:
    """On the GPU of this process, where it has one."""

    def __init__(self, folder: Path, max_tokens: int):
        import torch
        from transformers import AutoModel, AutoTokenizer

        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
            model, found = AutoModel.from_pretrained(
                folder, trust_remote_code=False, use_safetensors=True, output_loading_info=True
            )
        except (OSError, ValueError, KeyError) as error:
            said = " ".join(str(error).split())[:300]
            raise EncoderProblem(
                f"{SETTING}={folder} cannot be loaded ({said}); take a model of transformers"
            ) from error
        if lacks := sorted(name for name in found["missing_keys"] if not name.startswith("pooler.")):
            raise EncoderProblem(
                f"{SETTING}={folder} has no weights for {lacks[0]} and {len(lacks) - 1} more, which would be "
                "drawn at random; take the folder of a whole encoder"
            )
        room = min(getattr(model.config, "max_position_embeddings", max_tokens), self._tokenizer.model_max_length)
        if room < max_tokens:
            raise EncoderProblem(
                f"{SETTING}={folder} takes {room} tokens, retriever.dense.max_tokens={max_tokens} are more; lower it"
            )
        self._model, self._max_tokens = model.to(self._device).float().eval(), max_tokens

    def __call__(self, texts: list[str]) -> Vectors:
        import torch

        inputs: Any = self._tokenizer(
            texts, padding=True, truncation=True, max_length=self._max_tokens, return_tensors="pt"
        ).to(self._device)
        with torch.inference_mode():
            hidden = self._model(**inputs).last_hidden_state
            return mean_pooled(hidden, inputs["attention_mask"]).cpu().numpy()


def _folder(encoder: str) -> Path:
    folder = Path(encoder).expanduser()
    if not folder.is_dir():
        kind = "is a file" if folder.exists() else "does not exist"
        raise EncoderProblem(
            f"{SETTING}={encoder} {kind}; give the folder of a Hugging Face encoder (of one on the hub: hf "
            "download NAME --local-dir FOLDER), or package.module:name of a function"
        )
    lacks = [name for name in ("config.json", "tokenizer*", _WEIGHTS) if not any(folder.glob(name))]
    if lacks:
        raise EncoderProblem(
            f"{SETTING}={encoder} has no {', '.join(lacks)}; save model and tokenizer there, as safetensors"
        )
    return folder


def _checked(vectors: Any, count: int, encoder: str) -> Vectors:
    """Raises EncoderProblem unless it is [count, d] float32, all of it finite."""
    found = f"a {type(vectors).__name__}"
    if isinstance(vectors, np.ndarray):
        if vectors.ndim == 2 and len(vectors) == count and vectors.dtype == np.float32 and vectors.shape[1] > 0:
            if np.isfinite(vectors).all():
                return np.ascontiguousarray(vectors)
            raise EncoderProblem(
                f"{SETTING}={encoder} gave numbers that are not finite; it must give a vector for any text"
            )
        found = f"{vectors.dtype} {list(vectors.shape)}"
    raise EncoderProblem(f"{SETTING}={encoder} must give a float32 array [{count}, d] for {count} text(s), got {found}")
