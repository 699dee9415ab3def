"""Encoders: the mean against numpy by hand, padding that changes nothing, what is said of one that will not do."""

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from smartrag import encoder
from smartrag.config import Dense
from smartrag.encoder import EncoderProblem, identity, mean_pooled, opened
from tests import encoders

DENSE = Dense(encoder="", query_prefix="", passage_prefix="", max_tokens=32, batch=4, cosine=True)
TEXTS = ["Oslo", "a much longer text about the port of Hanoi", "x", "東京 Ø"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return encoders.bert(tmp_path_factory.mktemp("encoder"))


def test_the_mean_is_over_the_tokens_of_the_text() -> None:
    hidden = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [9.0, 9.0]], [[5.0, 6.0], [7.0, 7.0], [8.0, 8.0]]])
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    assert mean_pooled(hidden, mask).tolist() == [[2.0, 3.0], [5.0, 6.0]]


def test_a_model_gives_the_mean_of_its_last_hidden_states_whatever_stands_beside_a_text(folder: Path) -> None:
    together = opened(replace(DENSE, encoder=str(folder), cosine=False))(TEXTS)
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), encoders.tokenizer()
    for text, vector in zip(TEXTS, together, strict=True):
        ids = tokenizer(text, truncation=True, max_length=32, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            alone = model(input_ids=ids).last_hidden_state[0].numpy().mean(axis=0)
        np.testing.assert_allclose(vector, alone, atol=1e-5)
    scaled = opened(replace(DENSE, encoder=str(folder)))(TEXTS)
    np.testing.assert_allclose(scaled, together / np.linalg.norm(together, axis=1, keepdims=True), rtol=1e-5)


def test_the_identity_is_that_of_the_weights(folder: Path, tmp_path: Path) -> None:
    other = encoders.bert(tmp_path / "other", seed=1)
    assert identity(str(folder)) == identity(str(encoders.bert(tmp_path / "same"))) != identity(str(other))
    assert identity("my.module:encode") == ""


GIVES = {
    "a list": (lambda texts: [[1.0]] * len(texts), r"must give a float32 array \[2, d\] for 2 text\(s\), got a list"),
    "doubles": (lambda texts: np.ones((len(texts), 3)), r"got float64 \[2, 3\]"),
    "too few": (lambda texts: np.ones((1, 3), np.float32), r"got float32 \[1, 3\]"),
    "one row": (lambda texts: np.ones(3, np.float32), r"got float32 \[3\]"),
    "no number": (lambda texts: np.full((len(texts), 3), np.nan, np.float32), "gave numbers that are not finite"),
    "an error": (lambda texts: 1 / 0, r"failed on 2 text\(s\) \(ZeroDivisionError: division by zero"),
}


@pytest.mark.parametrize("what", GIVES)
def test_what_a_function_may_not_give(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    function, said = GIVES[what]
    module = ModuleType("mine_encoders")
    module.encode = function  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mine_encoders", module)
    with pytest.raises(EncoderProblem, match=f"retriever.dense.encoder=mine_encoders:encode .*{said}"):
        opened(replace(DENSE, encoder="mine_encoders:encode"))(["a", "b"])


def test_folders_that_will_not_do(folder: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_text("{}")
    for given, said in [
        (tmp_path / "nowhere", "does not exist; give the folder of a Hugging Face encoder .*hf download NAME"),
        (folder / "config.json", "is a file; give the folder"),
        (bare, r"has no tokenizer\*, \*\.safetensors; save model and tokenizer there"),
    ]:
        with pytest.raises(EncoderProblem, match=said):
            opened(replace(DENSE, encoder=str(given)))
    with pytest.raises(EncoderProblem, match=r"takes 64 tokens, retriever\.dense\.max_tokens=65 are more; lower it"):
        opened(replace(DENSE, encoder=str(folder), max_tokens=65))
    half = encoders.bert(tmp_path / "half")
    kept = {n: w for n, w in load_file(half / "model.safetensors").items() if "layer.1" not in n}
    save_file(kept, half / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        EncoderProblem, match=r"has no weights for encoder\.layer\.1\..*, which would be drawn at random"
    ):
        opened(replace(DENSE, encoder=str(half)))
    assert encoder.is_function("a.b:c")
    assert not encoder.is_function(str(folder))
