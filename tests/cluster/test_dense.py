"""Dense retrieval against exact search in numpy; an index that is built once, whole, and is what the run asks for."""

import asyncio
import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cluster import dense
from cluster.dense import DenseSearcher, cached, verify_dense
from cluster.manifest import IndexProblem
from cluster.replica import RetrievalReplica
from cluster.searcher import absolute, open_searcher, prepare
from smartrag import ROOT
from smartrag.choices import Corpus
from smartrag.compose import load
from smartrag.config import Retriever
from smartrag.data.passages import Recipe, dealt, kept
from smartrag.encoder import opened
from smartrag.types import Empty, Hits
from tests import encoders
from tests.cluster.passages import PASSAGES, write

LETTERS = "tests.encoders:letters"
QUERIES = ["soup Oslo", "plum", "Zürich 東京", "gulf port", "kiwi " * 100, "!"]


def settings(encoder: str, **changes: object) -> Retriever:
    run = load(["retriever=dense", f"retriever.dense.encoder='{encoder}'", "retriever.dense.batch=7"])
    changes.setdefault("max_tokens", 64)
    own = {name: changes.pop(name) for name in asdict(run.retriever.dense) if name in changes}  # type: ignore[call-overload]
    return replace(run.retriever, dense=replace(run.retriever.dense, **own), **changes)  # type: ignore[arg-type, type-var]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("corpus") / "corpus.jsonl")


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(encoders.bert(tmp_path_factory.mktemp("encoder")))


def made(corpus: Path, cache: Path, retriever: Retriever) -> Path:
    assert retriever.dense is not None
    return cached(corpus, cache, retriever.dense, Recipe.of(retriever))


def exact(retriever: Retriever, query: str) -> dict[str, float]:
    """Passage -> inner product, by numpy alone."""
    assert retriever.dense is not None
    encode, own = opened(retriever.dense), retriever.dense
    vectors = encode([own.passage_prefix + text for text in PASSAGES.values()])
    return dict(zip(PASSAGES, (vectors @ encode([own.query_prefix + query])[0]).tolist(), strict=True))


@pytest.mark.parametrize("cosine", [True, False])
@pytest.mark.parametrize("which", ["model", "function"])
def test_the_best_are_those_of_exact_search(which: str, cosine: bool, corpus: Path, bert: str, tmp_path: Path) -> None:
    encoder = bert if which == "model" else LETTERS
    retriever = settings(encoder, cosine=cosine, query_prefix="query: ", passage_prefix="passage: ")
    searcher = DenseSearcher(made(corpus, tmp_path, retriever), retriever)
    ks = [1, 2, 5, 29, 30, 100]
    for query, k, found in zip(QUERIES, ks, searcher.search(QUERIES, ks), strict=True):
        expected = exact(retriever, query)
        assert isinstance(found, Hits)
        scores = [p.score for p in found.passages]
        best = sorted(expected.values(), reverse=True)[:k]
        np.testing.assert_allclose(scores, best, rtol=2e-4, atol=2e-5)
        for passage in found.passages:
            assert passage.contents == PASSAGES[passage.id]
            assert passage.score == pytest.approx(expected[passage.id], rel=2e-4, abs=2e-5)
        assert len({p.id for p in found.passages}) == min(k, len(PASSAGES))


def test_shares_and_useless_passages_are_those_of_any_retriever(corpus: Path, tmp_path: Path) -> None:
    retriever = settings(LETTERS, corpus=Corpus.useless, corpus_share=0.5)
    names = [name for name in PASSAGES if kept(name, 0.5)]
    shown = dealt(names)
    [found] = DenseSearcher(made(corpus, tmp_path, retriever), retriever).search(["soup"], [100])
    assert isinstance(found, Hits)
    assert sorted(p.id for p in found.passages) == sorted(names)
    assert all(p.contents == PASSAGES[shown[p.id]] for p in found.passages)


def test_a_replica_serves_it_like_any_other(corpus: Path, tmp_path: Path) -> None:
    retriever = settings(LETTERS)
    place = prepare(retriever, corpus, tmp_path)
    replica = RetrievalReplica(retriever, str(place))

    async def ask() -> list[object]:
        return await asyncio.gather(replica.search("plum", 5), replica.search("\x00 ", 2), replica.search("kiwi", 1))

    plum, nothing, kiwi = asyncio.run(ask())
    [alone] = open_searcher(retriever, place).search(["plum"], [5])
    assert isinstance(plum, Hits)
    assert isinstance(alone, Hits)
    assert [p.id for p in plum.passages] == [p.id for p in alone.passages]
    assert nothing == Empty()
    assert isinstance(kiwi, Hits)
    assert replica.fingerprint() == open_searcher(retriever, place).fingerprint


def test_an_index_is_built_once_and_named_by_what_it_is_of(corpus: Path, bert: str, tmp_path: Path) -> None:
    retriever = settings(LETTERS)
    first = made(corpus, tmp_path, retriever)
    stamp = (first / "manifest.json").stat().st_mtime_ns
    assert made(corpus, tmp_path, settings(LETTERS, query_prefix="q: ")) == first  # of queries alone
    assert (first / "manifest.json").stat().st_mtime_ns == stamp
    others = [settings(bert), *(settings(LETTERS, **{n: v}) for n, v in CHANGES.items())]
    folders = [made(corpus, tmp_path, other) for other in others]
    assert len({first, *folders}) == len(others) + 1
    prints = [DenseSearcher(folder, other).fingerprint for folder, other in zip(folders, others, strict=True)]
    assert len(set(prints)) == len(others)
    assert DenseSearcher(first, settings(LETTERS, query_prefix="q: ")).fingerprint not in {
        DenseSearcher(first, retriever).fingerprint,
        *prints,
    }
    assert not list(tmp_path.glob(".*"))


def test_an_index_behind_a_uri_is_fetched_once(corpus: Path, tmp_path: Path) -> None:
    folder, cache = made(corpus, tmp_path, settings(LETTERS)), tmp_path / "cache"
    retriever = settings(LETTERS, index=f"file://{folder}")
    place = prepare(retriever, None, cache)
    assert place is not None
    assert place.parent == cache
    assert {path.name: path.read_bytes() for path in place.iterdir()} == {
        path.name: path.read_bytes() for path in folder.iterdir()
    }
    before = (place / "manifest.json").stat().st_mtime_ns
    assert prepare(retriever, None, cache) == place
    assert (place / "manifest.json").stat().st_mtime_ns == before
    (place / "vectors.faiss").write_bytes(b"cut short")
    with pytest.raises(IndexProblem, match=r"vectors\.faiss is damaged"):
        prepare(retriever, None, cache)
    with pytest.raises(ValueError, match=r"no index there \(no manifest\.json\)"):
        prepare(settings(LETTERS, index=f"file://{tmp_path}/no"), None, cache)


CHANGES = {"passage_prefix": "p: ", "max_tokens": 8, "cosine": False, "corpus": Corpus.useless, "corpus_share": 0.5}


@pytest.mark.parametrize("name", CHANGES)
def test_a_named_index_must_be_what_the_run_asks_for(name: str, corpus: Path, tmp_path: Path) -> None:
    folder = made(corpus, tmp_path, settings(LETTERS))
    assert prepare(settings(LETTERS, index=str(folder)), None, tmp_path) == folder
    with pytest.raises(IndexProblem, match=r"was made with encoder tests\.encoders:letters, .* but the run asks for"):
        prepare(settings(LETTERS, index=str(folder), **{name: CHANGES[name]}), None, tmp_path)


@pytest.mark.fault("Q15", "a dense index is damaged, or another's")
def test_what_is_damaged_or_foreign_is_named(corpus: Path, tmp_path: Path) -> None:
    retriever = settings(LETTERS)
    folder = made(corpus, tmp_path, retriever)
    for name in ("vectors.faiss", "passages.jsonl", "offsets.npy"):
        sound = (folder / name).read_bytes()
        (folder / name).write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
        with pytest.raises(IndexProblem, match=rf"is not what was built: {name} is damaged"):
            verify_dense(folder)
        (folder / name).write_bytes(sound)
    manifest = json.loads((folder / "manifest.json").read_text())
    for change, said in [
        ({"format": 0}, "its format is 0, this version reads 1"),
        ({"recipe": {}}, "its recipe is not that of a dense index"),
        ({"more": 1}, "it is not that of a dense index"),
    ]:
        (folder / "manifest.json").write_text(json.dumps(manifest | change))
        with pytest.raises(IndexProblem, match=said):
            DenseSearcher(folder, retriever)
    with pytest.raises(IndexProblem, match="is in the way and is left as it is"):
        made(corpus, tmp_path, retriever)
    with pytest.raises(
        IndexProblem, match=r"no dense index at .* \(no such folder\); build it with: python launch/index.py"
    ):
        prepare(replace(retriever, index=str(tmp_path / "no")), None, tmp_path)


def test_an_encoder_that_changed_is_noticed(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing tells a function from what it was, but what it makes of the passages."""
    retriever = settings(LETTERS)
    folder = made(corpus, tmp_path, retriever)
    before = encoders.letters
    for changed in (lambda texts: before(texts)[:, ::-1].copy(), lambda texts: before(texts)[:, :32].copy()):
        monkeypatch.setattr(encoders, "letters", changed)
        with pytest.raises(IndexProblem, match=r"holds other vectors than tests\.encoders:letters now"):
            DenseSearcher(folder, retriever)
    monkeypatch.setattr(encoders, "letters", lambda texts: before(texts) * 1.001)
    DenseSearcher(folder, retriever)


def test_a_build_that_is_cut_short_leaves_nothing(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(texts: list[str]) -> np.ndarray:
        if any("Kiwi" in text for text in texts):
            raise MemoryError("planted")
        return encoders.letters(texts)

    retriever = settings("tests.cluster.test_dense:breaks")
    monkeypatch.setattr(sys.modules[__name__], "breaks", broken, raising=False)
    with pytest.raises(ValueError, match=r"failed on 2 text\(s\) \(MemoryError: planted"):
        made(corpus, tmp_path, retriever)
    assert list(tmp_path.iterdir()) == []


def test_the_command_builds_one_of_any_file(corpus: Path, tmp_path: Path) -> None:
    rows = [{"id": name, "text": text} for name, text in PASSAGES.items()]
    pd.DataFrame(rows).to_parquet(tmp_path / "passages.parquet")
    out = tmp_path / "vectors"
    words = [f"corpus={tmp_path / 'passages.parquet'}", f"out={out}", f"encoder={LETTERS}", "max_tokens=64"]
    line = [sys.executable, str(ROOT / "launch" / "index.py"), *words]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(line, capture_output=True, text=True, timeout=120, env=env)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{out}: 30 passages, 64 numbers each\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["passages.parquet", "vectors"]
    retriever = settings(LETTERS, index=str(out))
    from_lines = settings(LETTERS)
    place = prepare(retriever, None, tmp_path)
    assert place == out
    found = DenseSearcher(out, retriever).search(["plum"], [3])
    assert found == DenseSearcher(made(corpus, tmp_path, from_lines), from_lines).search(["plum"], [3])
    again = subprocess.run([*line, "cosine=false"], capture_output=True, text=True, timeout=120, env=env)
    assert again.returncode == 3
    assert "holds another dense index" in again.stderr


def test_replicas_find_a_folder_that_was_named_from_here(monkeypatch: pytest.MonkeyPatch, bert: str) -> None:
    monkeypatch.chdir(Path(bert).parent)
    here = absolute(settings(Path(bert).name))
    assert here.dense is not None
    assert here.dense.encoder == bert
    assert absolute(settings(LETTERS)) == settings(LETTERS)
    assert absolute(load([]).retriever) == load([]).retriever


def test_no_java_is_needed() -> None:
    code = (
        "import sys, cluster.dense, cluster.remote, cluster.searcher\nassert not {'jnius', 'pyserini'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    assert dense.FORMAT == 1
