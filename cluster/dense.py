"""Dense retrieval with FAISS: every passage a vector, the best those with the largest inner product. Search is exact.

    vectors.faiss    IndexFlatIP, [rows, d] float32, mapped into memory: replicas of one node share it
    passages.jsonl   the passages, in the same order
    offsets.npy      where the line of each begins
    manifest.json    what it was made of, and the sha256 of the three

Built aside and renamed into place, as a Lucene index is.
"""

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from importlib.metadata import version
from itertools import islice
from pathlib import Path

import numpy as np

from cluster.index import in_the_way, progress, publish
from cluster.manifest import MANIFEST, IndexProblem, damages, sha256
from smartrag.choices import Corpus
from smartrag.config import Dense, Retriever
from smartrag.data.corpus import check_corpus
from smartrag.data.passages import SHOWN, Recipe, lines
from smartrag.encoder import Vectors, identity, opened
from smartrag.types import Empty, Hits, Passage, Retrieved

FORMAT = 1  # of the manifest
_VECTORS, _PASSAGES, _OFFSETS = "vectors.faiss", "passages.jsonl", "offsets.npy"
_CANARIES, _TOLERANCE = 4, 0.02  # passages encoded again on opening, and how far, of its length, a vector may move


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseRecipe:
    """What of a corpus becomes vectors, and how."""

    encoder: str
    encoder_sha256: str  # of a model's files; "" of a function
    passage_prefix: str
    max_tokens: int
    cosine: bool
    corpus: Corpus
    share: float

    @classmethod
    def of(cls, dense: Dense, passages: Recipe) -> "DenseRecipe":
        """Raises EncoderProblem."""
        digest = identity(dense.encoder)
        return cls(
            encoder="a model" if digest else dense.encoder,
            encoder_sha256=digest,
            passage_prefix=dense.passage_prefix,
            max_tokens=dense.max_tokens,
            cosine=dense.cosine,
            corpus=passages.corpus,
            share=passages.share,
        )

    def __str__(self) -> str:
        model = f"{self.encoder}{' ' * bool(self.encoder_sha256)}{self.encoder_sha256[:12]}"
        how = f"passage_prefix {self.passage_prefix!r}, max_tokens {self.max_tokens}, cosine {self.cosine}"
        return f"encoder {model}, {how}, {self.corpus} corpus, share {self.share}"


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseManifest:
    """Lies in the index's folder as manifest.json, written last."""

    format: int
    corpus_sha256: str
    rows: int
    dimension: int
    recipe: DenseRecipe
    faiss: str
    files: dict[str, str]  # name -> sha256

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "DenseManifest":
        """Raises ValueError naming what does not fit."""
        row = json.loads(text)
        if not isinstance(row, dict) or set(row) != {field.name for field in fields(cls)}:
            raise ValueError("it is not that of a dense index")
        if row["format"] != FORMAT:
            raise ValueError(f"its format is {row['format']}, this version reads {FORMAT}")
        recipe = row["recipe"]
        if not isinstance(recipe, dict) or set(recipe) != {field.name for field in fields(DenseRecipe)}:
            raise ValueError("its recipe is not that of a dense index")
        return cls(**row | {"recipe": DenseRecipe(**recipe | {"corpus": Corpus(recipe["corpus"])})})


def cached(corpus: Path, cache: Path, dense: Dense, passages: Recipe) -> Path:
    """Folder of the index of `corpus` below `cache`, built when it is missing. Raises as `build`."""
    named = hashlib.sha256(str(DenseRecipe.of(dense, passages)).encode()).hexdigest()[:16]
    folder = cache.expanduser() / f"{sha256(corpus)[:16]}-dense-{named}-v{FORMAT}"
    build(corpus, folder, dense, passages)
    return folder


def build(corpus: Path, folder: Path, dense: Dense, passages: Recipe) -> DenseManifest:
    """Encodes `corpus`, a .jsonl file, into `folder`, or returns what is there. Whole or not at all. On the GPU of this
    process, where it has one.

    Raises DataError for bad rows, EncoderProblem, IndexProblem when `folder` holds anything else, OSError.
    """
    digest, recipe = sha256(corpus), DenseRecipe.of(dense, passages)
    if (there := _existing(folder, digest, recipe)) is not None:
        return there
    count, encode = check_corpus(corpus), opened(dense)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", suffix=".building", dir=folder.parent) as scratch:
        made = Path(scratch) / "index"
        made.mkdir()
        with progress(f"encoding {count:,} passages of {corpus.name}"):
            rows, dimension = _encode(lines(corpus, passages), made, dense, encode)
        if sha256(corpus) != digest:
            raise IndexProblem(f"{corpus} changed while it was being encoded; nothing was kept")
        manifest = DenseManifest(
            format=FORMAT,
            corpus_sha256=digest,
            rows=rows,
            dimension=dimension,
            recipe=recipe,
            faiss=version("faiss-cpu"),
            files={path.name: sha256(path) for path in sorted(made.iterdir())},
        )
        if not publish(made, folder, manifest.to_json()):
            there = _existing(folder, digest, recipe)
            assert there is not None, "another build was faster"
            return there
        return manifest


def _encode(
    rows: Iterator[bytes], made: Path, dense: Dense, encode: Callable[[Sequence[str]], Vectors]
) -> tuple[int, int]:
    """Writes the three files; (rows, d)."""
    import faiss

    index, offsets = None, [0]
    with (made / _PASSAGES).open("wb") as out:
        while batch := list(islice(rows, dense.batch)):
            vectors = encode([dense.passage_prefix + json.loads(line)["contents"] for line in batch])
            index = faiss.IndexFlatIP(vectors.shape[1]) if index is None else index
            if vectors.shape[1] != index.d:
                raise IndexProblem(f"the encoder gave vectors of {index.d} and of {vectors.shape[1]} numbers")
            index.add(vectors)
            for line in batch:
                out.write(line)
                offsets.append(offsets[-1] + len(line))
    assert index is not None, "a corpus has passages"
    faiss.write_index(index, str(made / _VECTORS))
    np.save(made / _OFFSETS, np.array(offsets[:-1], dtype=np.int64))
    return len(offsets) - 1, index.d


def open_dense(folder: Path) -> DenseManifest:
    """The manifest of the index in `folder`. Raises IndexProblem; reads no vector."""
    build_it = f"build it with: python launch/index.py corpus=CORPUS out={folder} encoder=ENCODER"
    if not folder.is_dir():
        raise IndexProblem(
            f"no dense index at {folder} ({'a file' if folder.exists() else 'no such folder'}); {build_it}"
        )
    try:
        return DenseManifest.from_json((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise IndexProblem(f"no dense index at {folder} (no {MANIFEST}); {build_it}") from None
    except (ValueError, TypeError) as error:
        raise IndexProblem(
            f"{folder / MANIFEST} cannot be read as that of a dense index ({error}); {build_it}"
        ) from None


def verify_dense(folder: Path) -> DenseManifest:
    """Hashes every file of the index against its manifest. Raises IndexProblem naming all that are damaged."""
    manifest = open_dense(folder)
    if problems := damages(folder, manifest.files):
        raise IndexProblem(
            f"the dense index at {folder} is not what was built: {'; '.join(problems)}; remove the folder and "
            "build it again"
        )
    return manifest


def check_dense_recipe(folder: Path, manifest: DenseManifest, retriever: Retriever) -> None:
    """Raises IndexProblem when the index that `retriever.index` names is not what the run asks for; EncoderProblem."""
    assert retriever.dense is not None, "check.py demands it"
    recipe = DenseRecipe.of(retriever.dense, Recipe.of(retriever))
    if manifest.recipe != recipe:
        raise IndexProblem(
            f"retriever.index={folder} was made with {manifest.recipe}, but the run asks for {recipe}; set "
            "retriever.dense to what it is, or leave retriever.index out"
        )


class DenseSearcher:
    """Implements `Searcher` over a verified index. Raises IndexProblem, EncoderProblem."""

    def __init__(self, folder: Path, retriever: Retriever) -> None:
        import faiss
        import torch

        assert retriever.dense is not None, "check.py demands it"
        self.manifest, self._dense = verify_dense(folder), retriever.dense
        check_dense_recipe(folder, self.manifest, retriever)
        torch.set_num_threads(retriever.threads)
        faiss.omp_set_num_threads(retriever.threads)
        self._encode = opened(self._dense)
        self._index = faiss.read_index(str(folder / _VECTORS), faiss.IO_FLAG_MMAP_IFC)
        self._offsets = np.load(folder / _OFFSETS, mmap_mode="r")
        self._passages = (folder / _PASSAGES).open("rb")
        self._check_encoder(folder)

    @property
    def fingerprint(self) -> str:
        """16 hex digits: equal when the same queries find the same passages."""
        content = [self.manifest.corpus_sha256, self.manifest.rows, str(self.manifest.recipe), self._dense.query_prefix]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    def search(self, queries: Sequence[str], ks: Sequence[int]) -> list[Retrieved]:
        """The best `ks[i]` passages for `queries[i]`, best first."""
        vectors = self._encode([self._dense.query_prefix + query for query in queries])
        scores, rows = self._index.search(vectors, min(max(ks), self.manifest.rows))
        return [self._outcome(scores[i, :k], rows[i, :k]) for i, k in enumerate(ks)]

    def _outcome(self, scores: np.ndarray, rows: np.ndarray) -> Retrieved:
        found = [self._passage(int(row), float(score)) for row, score in zip(rows, scores, strict=True) if row >= 0]
        return Hits(tuple(found)) if found else Empty()

    def _passage(self, row: int, score: float) -> Passage:
        self._passages.seek(int(self._offsets[row]))
        told = json.loads(self._passages.readline())
        return Passage(told["id"], told.get(SHOWN, told["contents"]), score)

    def _check_encoder(self, folder: Path) -> None:
        """The first passages, encoded again, must come to the vectors that are kept: a function may have changed."""
        some = range(min(_CANARIES, self.manifest.rows))
        texts = []
        for row in some:
            self._passages.seek(int(self._offsets[row]))
            texts.append(self._dense.passage_prefix + json.loads(self._passages.readline())["contents"])
        now, then = self._encode(texts), np.stack([self._index.reconstruct(row) for row in some])
        if now.shape != then.shape or not _close(now, then):
            raise IndexProblem(
                f"the dense index at {folder} holds other vectors than {self._dense.encoder} now gives for its "
                "passages; remove the folder to have it built again, or bring back the encoder that built it"
            )


def _close(now: Vectors, then: Vectors) -> bool:
    moved = np.linalg.norm(now - then, axis=1)
    return bool((moved <= _TOLERANCE * np.maximum(np.linalg.norm(then, axis=1), 1e-6)).all())


def _existing(folder: Path, digest: str, recipe: DenseRecipe) -> DenseManifest | None:
    """The manifest in `folder` if it is of this corpus by this recipe, None if nothing is there. Raises
    IndexProblem."""
    if not in_the_way(folder):
        return None
    try:
        manifest = open_dense(folder)
    except IndexProblem as error:
        raise IndexProblem(f"{folder} is in the way and is left as it is: {error}") from None
    if (manifest.corpus_sha256, manifest.recipe) != (digest, recipe):
        raise IndexProblem(
            f"{folder} holds another dense index (corpus {manifest.corpus_sha256[:12]}, {manifest.recipe}; wanted is "
            f"{digest[:12]}, {recipe}); name another folder or remove that one"
        )
    return manifest
