"""What an index was made of: the manifest that lies in its folder, and the proof that the index is what it says."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from smartrag.choices import Corpus, Stemmer
from smartrag.data.passages import Recipe

MANIFEST = "manifest.json"
FORMAT = 2  # of the manifest


class IndexProblem(RuntimeError):
    """An index that is absent, incomplete, damaged or another one; the message says which and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexManifest:
    """What an index was made of. Lies in its folder as manifest.json, written last."""

    format: int
    corpus_sha256: str
    rows: int  # passages taken = documents of the index
    stemmer: Stemmer  # of Anserini's DefaultEnglishAnalyzer, beside Lucene's English stop words
    corpus: Corpus
    share: float  # of the corpus's passages
    k1: float  # BM25 values the index was built for; a searcher may choose others
    b: float
    pyserini: str
    anserini: str
    java: str
    files: dict[str, str]  # name -> sha256 of every Lucene file
    created: str  # ISO 8601, UTC

    @property
    def fingerprint(self) -> str:
        """Identity of the searchable content, 16 hex digits: equal when the same queries find the same passages.

        Two builds of one corpus differ in their files (Lucene names segments at random) and agree in this.
        """
        content = json.dumps([self.corpus_sha256, self.rows, str(self.recipe), self.anserini])
        return hashlib.sha256(content.encode()).hexdigest()[:16]

    @property
    def recipe(self) -> Recipe:
        return Recipe(stemmer=self.stemmer, corpus=self.corpus, share=self.share)

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, sort_keys=True) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "IndexManifest":
        """Raises ValueError naming what does not fit."""
        row = json.loads(text)
        names = {field.name for field in fields(cls)}
        if not isinstance(row, dict) or set(row) != names:
            raise ValueError(f"its fields are not {', '.join(sorted(names))}")
        if row["format"] != FORMAT:
            raise ValueError(f"its format is {row['format']}, this version reads {FORMAT}")
        row |= {"stemmer": Stemmer(row["stemmer"]), "corpus": Corpus(row["corpus"])}
        return cls(**row)


def open_manifest(folder: Path) -> IndexManifest:
    """The manifest of the index in `folder`, which must hold documents. Raises IndexProblem; reads no Lucene file."""
    build = f"build it with: python launch/index.py corpus=CORPUS out={folder}"
    if not folder.is_dir():
        found = "a file" if folder.exists() else "no such folder"
        raise IndexProblem(f"no Lucene index at {folder} ({found}); {build}")
    if not any(folder.glob("segments_*")):
        raise IndexProblem(f"no Lucene index at {folder} (no segments file); {build}")
    try:
        manifest = IndexManifest.from_json((folder / MANIFEST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise IndexProblem(f"the Lucene index at {folder} has no {MANIFEST}; remove it and {build}") from None
    except ValueError as error:
        raise IndexProblem(f"{folder / MANIFEST} cannot be read ({error}); remove the folder and {build}") from None
    if manifest.rows < 1:
        raise IndexProblem(f"the Lucene index at {folder} has no documents; {build}")
    return manifest


def verify(folder: Path) -> IndexManifest:
    """Hash every file of the index against its manifest. Raises IndexProblem naming all damaged files.

    Lucene itself checks only some files when it opens an index: a flipped bit can change the ranking in silence.
    """
    manifest = open_manifest(folder)
    problems = damages(folder, manifest.files)
    commits = sorted(path.name for path in folder.glob("segments_*"))  # Lucene opens the newest, whosever it is
    problems += [f"{name} is foreign" for name in commits if name not in manifest.files]
    if problems:
        raise IndexProblem(
            f"the Lucene index at {folder} is not what was built: {'; '.join(problems)}; "
            "remove the folder and build it again"
        )
    return manifest


def damages(folder: Path, files: Mapping[str, str]) -> list[str]:
    """What of the files, name -> sha256, is not there as it was written."""
    problems = []
    for name, expected in sorted(files.items()):
        path = folder / name
        if not path.is_file():
            problems.append(f"{name} is missing")
        elif (found := sha256(path)) != expected:
            problems.append(f"{name} is damaged (sha256 {found[:12]}, written as {expected[:12]})")
    return problems


def check_recipe(folder: Path, manifest: IndexManifest, recipe: Recipe) -> None:
    """Raises IndexProblem when the index that `retriever.index` names is not what the run asks for."""
    if manifest.recipe != recipe:
        raise IndexProblem(
            f"retriever.index={folder} was made with {manifest.recipe}, but the run asks for {recipe}; set "
            "retriever.stemmer, retriever.corpus and retriever.corpus_share to what it is, or build another with "
            "launch/index.py"
        )


def sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
