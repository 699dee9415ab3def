"""What makes the bad inputs of test_bad_input.py, and the layers that must refuse them: each returns what it said."""

import io
import json
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet as pq
from safetensors.numpy import save_file

from cluster.checkpoint import Checkpoints
from cluster.machine import check_places
from cluster.manifest import IndexManifest, sha256, verify
from cluster.resume import find as find_run
from cluster.resume import shape
from smartrag.arguments import harmless
from smartrag.capacity import study
from smartrag.choices import Corpus, Stemmer
from smartrag.commands import Export
from smartrag.compose import alone, as_yaml, change, load, understood
from smartrag.config import Data, Run
from smartrag.data.corpus import check_corpus
from smartrag.data.load import load as load_data
from smartrag.evaluation.compare import settings
from smartrag.exits import USAGE_ERROR
from smartrag.experiments import ablation, bench, sweep
from smartrag.model_folder import check_fit
from smartrag.origin import find as find_model

ROW = {"id": "q1", "question": "Which country is Oslo in?", "answers": ["Norway"]}
PASSAGE = {"id": "p1", "contents": "Oslo\nOslo is a city in Norway."}
COMMANDS: dict[str, Callable[[Sequence[str]], Any]] = {
    "train": load,
    "evaluate": settings,
    "ablate": ablation.load,
    "sweep": sweep.load,
    "bench": bench.load,
    "capacity": study.load,
    "hydra": harmless,  # what is looked at before Hydra itself reads a command line with flags
    "export": lambda words: alone(Export, "export.yaml", words),
}


@dataclass(frozen=True, slots=True)
class Bad:
    """A bad input: what is wrong with it, how it is made and given to the layer that must refuse it, what that says."""

    name: str
    refused: Callable[[Path], str]
    said: str


# ---- command lines


def line(name: str, words: str | Sequence[str], said: str, command: str = "train") -> Bad:
    """A command line; `words` are cut at white space where they are one text."""
    given = words.split() if isinstance(words, str) else words

    def refused(_: Path) -> str:
        with redirect_stderr(io.StringIO()) as told, pytest.raises(SystemExit) as exit:
            understood(COMMANDS[command], given)
        assert exit.value.code == USAGE_ERROR
        return told.getvalue()

    return Bad(f"{command}: {name}", refused, said)


def _refused(act: Callable[[], object]) -> str:
    """An error of ours: no other is told to people without its traceback."""
    with pytest.raises((ValueError, RuntimeError, FileNotFoundError)) as caught:
        act()
    assert not isinstance(caught.value, UnicodeError | json.JSONDecodeError)
    return str(caught.value)


# ---- a config.yaml that a run left


def saved(name: str, text: Callable[[str], str | bytes], said: str) -> Bad:
    def refused(tmp_path: Path) -> str:
        path, made = tmp_path / "config.yaml", text(as_yaml(load([])))
        path.write_bytes(made if isinstance(made, bytes) else made.encode())
        message = _refused(lambda: change(path, []))
        assert message.startswith(str(path))
        return message

    return Bad(f"saved: {name}", refused, said)


# ---- questions and passages


def good_data(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for i, split in enumerate(("train", "dev", "test")):
        row = ROW | {"id": f"q{i}", "question": f"Which country is Oslo {i} in?"}
        (folder / f"{split}.jsonl").write_text(json.dumps(row) + "\n")
    (folder / "corpus.jsonl").write_text(json.dumps(PASSAGE) + "\n")
    return folder


def _as_bytes(content: Any) -> bytes:
    if isinstance(content, bytes):
        return content
    return (content if isinstance(content, str) else json.dumps(content)).encode()


def row(name: str, content: Any, said: str, split: str = "train") -> Bad:
    """A second line of a split's file: an object, a text or bytes."""

    def refused(tmp_path: Path) -> str:
        path = good_data(tmp_path / "data") / f"{split}.jsonl"
        path.write_bytes(path.read_bytes() + _as_bytes(content) + b"\n")
        message = _refused(lambda: _load(tmp_path))
        assert message.startswith("1 problem(s) in the data:\n")
        assert f"{path}:2: " in message
        return message

    return Bad(f"row: {name}", refused, said)


def data(name: str, spoil: Callable[[Path], object], said: str) -> Bad:
    """A folder of data that was sound before `spoil`."""

    def refused(tmp_path: Path) -> str:
        spoil(good_data(tmp_path / "data"))
        return _refused(lambda: _load(tmp_path))

    return Bad(f"data: {name}", refused, said)


def _load(tmp_path: Path) -> object:
    limits: dict[str, None] = dict.fromkeys(("train_questions", "dev_questions", "test_questions"))
    source = str(tmp_path / "data")
    return load_data(
        Data(source=source, mix={"folder": 1.0}, questions=None, corpus=None, allow_overlap=False, **limits),
        tmp_path / "cache",
    )


def table(name: str, content: Any, said: str, *, file: str = "q.csv", corpus: Any = None) -> Bad:
    """A file of questions of one's own, or of passages: text, bytes, or what writes it; "{}" in `said`: its folder."""

    def refused(tmp_path: Path) -> str:
        _put(tmp_path / file, content)
        (tmp_path / "good.csv").write_text(GOOD_TABLE)
        asked, passages = (tmp_path / "good.csv", tmp_path / file) if corpus else (tmp_path / file, None)
        words = [f"data.questions={asked}", *([f"data.corpus={passages}"] if passages else [])]
        message = _refused(lambda: load_data(load(["data=files", *words]).data, tmp_path / "cache"))
        assert not list(tmp_path.glob("cache/*"))
        return message

    return Bad(f"{'passages' if corpus else 'questions'}: {name}", refused, said)


def passages(name: str, content: Any, said: str, file: str = "p.csv") -> Bad:
    return table(name, content, said, file=file, corpus=True)


def _put(path: Path, content: Any) -> None:
    if callable(content):
        content(path)
    elif content is not None:
        path.write_bytes(_as_bytes(content))


def parquet(**columns: list[Any]) -> Callable[[Path], None]:
    return lambda path: pq.write_table(pa.table(columns), path)


GOOD_TABLE = "question,answer,split\n" + "".join(
    f"q{i}?,a,{split}\n" for i, split in enumerate(("train", "dev", "test"))
)


def passage(name: str, content: Any, said: str) -> Bad:
    """A second line of a corpus."""

    def refused(tmp_path: Path) -> str:
        path = good_data(tmp_path / "data") / "corpus.jsonl"
        path.write_bytes(path.read_bytes() + _as_bytes(content) + b"\n")
        message = _refused(lambda: check_corpus(path))
        assert f"{path}:2: " in message
        return message

    return Bad(f"passage: {name}", refused, said)


# ---- what is imported or asked by name


def own(name: str, act: Callable[[Path], object], said: str) -> Bad:
    return Bad(f"own: {name}", lambda tmp_path: _refused(lambda: act(tmp_path)), said)


# ---- models

CONFIG = {
    **{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 300},
    **{"num_attention_heads": 6, "max_position_embeddings": 512},
}


def good_model(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "tokenizer.json").write_text("{}")
    (folder / "tokenizer_config.json").write_text("{}")
    save_file({"model.layers.0.self_attn.q_proj.weight": np.ones((2, 2))}, folder / "model.safetensors")
    return folder


def model(name: str, spoil: Callable[[Path], object], said: str) -> Bad:
    """The folder that model.path names; it was sound before `spoil`, which may say what to name instead."""

    def refused(tmp_path: Path) -> str:
        folder = good_model(tmp_path / "model")
        given = spoil(folder)
        before = sorted(tmp_path.rglob("*"))
        message = _refused(lambda: find_model(given if isinstance(given, str) else str(folder), tmp_path / "cache"))
        assert sorted(tmp_path.rglob("*")) == before
        return message

    return Bad(f"model: {name}", refused, said)


def fit(name: str, words: str, said: str, tokens: int = 300) -> Bad:
    """A sound model under a run that asks too much of it."""

    def refused(tmp_path: Path) -> str:
        return _refused(lambda: check_fit(good_model(tmp_path / "model"), load(words.split()), tokens))

    return Bad(f"fit: {name}", refused, said)


# ---- runs to go on with


def good_run(tmp_path: Path) -> tuple[Run, Path]:
    """A run, and the folder of its only checkpoint."""
    run, home = load([f"runs={tmp_path}", "resume=latest"]), tmp_path / "custom" / "20260101-000000-abcd"
    home.mkdir(parents=True)
    (home.parent / "latest").symlink_to(home.name)
    (home / "config.yaml").write_text(as_yaml(run))
    (home / "splits.json").write_text("{}")
    with Checkpoints(home / "checkpoints", keep=2).publish(3, {"steps_done": 3}) as draft:
        (draft / "learner" / "critic").mkdir(parents=True)
        (draft / "learner" / "critic" / "part").write_bytes(b"weights")
        (draft / "learner" / "learner.json").write_text(json.dumps(shape(run)))
    return run, home / "checkpoints" / "step_00000003"


def resume(name: str, spoil: Callable[[Path], object], said: str, words: Sequence[str] = ()) -> Bad:
    """`spoil` gets the checkpoint; `words` is what is asked for now, "{}" in it for the test's folder."""

    def refused(tmp_path: Path) -> str:
        _, checkpoint = good_run(tmp_path)
        spoil(checkpoint)
        asked = [word.format(tmp_path) for word in words]
        if not any(word.startswith("resume=") for word in asked):
            asked.append("resume=latest")
        return _refused(lambda: find_run(load([f"runs={tmp_path}", *asked])))

    return Bad(f"resume: {name}", refused, said)


def place(name: str, words: str, said: str) -> Bad:
    """Folders that a run would write to; "{}" stands for a file."""

    def refused(tmp_path: Path) -> str:
        (tmp_path / "file").touch()
        message = _refused(lambda: check_places(load(words.format(tmp_path / "file").split())))
        assert [path.name for path in tmp_path.iterdir()] == ["file"]
        return message

    return Bad(f"place: {name}", refused, said)


# ---- indexes


def good_index(folder: Path) -> Path:
    folder.mkdir()
    (folder / "segments_1").write_bytes(b"lucene")
    manifest = IndexManifest(
        format=2,
        corpus_sha256="0" * 64,
        rows=3,
        stemmer=Stemmer.porter,
        corpus=Corpus.real,
        share=1.0,
        k1=0.9,
        b=0.4,
        pyserini="1",
        anserini="1",
        java="21",
        files={"segments_1": sha256(folder / "segments_1")},
        created="2026-01-01T00:00:00+00:00",
    )
    (folder / "manifest.json").write_text(json.dumps(asdict(manifest)))
    return folder


def index(name: str, spoil: Callable[[Path], object], said: str) -> Bad:
    def refused(tmp_path: Path) -> str:
        folder = good_index(tmp_path / "index")
        spoil(folder)
        return _refused(lambda: verify(folder))

    return Bad(f"index: {name}", refused, said)


# ---- what spoils them


def write(name: str, content: Any) -> Callable[[Path], None]:
    """A file of the folder holds that, and nothing else."""
    return lambda folder: (folder / name).write_bytes(_as_bytes(content)) and None


def change_json(name: str, **values: Any) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / name).write_text(json.dumps(json.loads((folder / name).read_text()) | values))

    return spoil


def append(name: str, text: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        with (folder / name).open("a") as file:
            file.write(text)

    return spoil


def remove(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def nothing(_: Path) -> None:
    pass
