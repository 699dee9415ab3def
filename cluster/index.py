"""A Lucene index and the manifest that proves it: built aside, counted, hashed, then renamed into place."""

import hashlib
import json
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from rich.console import Console

from cluster.java import anserini_jar, java_home, preflight

MANIFEST = "manifest.json"
FORMAT = 1  # of the manifest
ANALYZER = "anserini DefaultEnglishAnalyzer: porter stemmer, Lucene's English stop words"
_BUILD_HEAP = "2g"  # Anserini's own buffer default of 4096 MB would overrun it
_BUILD_BUFFER_MB = 512


class IndexProblem(RuntimeError):
    """An index that is absent, incomplete, damaged or another one; the message says which and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexManifest:
    """What an index was made of. Lies in its folder as manifest.json, written last."""

    format: int
    corpus_sha256: str
    rows: int  # passages of the corpus = documents of the index
    analyzer: str
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
        content = json.dumps([self.corpus_sha256, self.rows, self.analyzer, self.anserini])
        return hashlib.sha256(content.encode()).hexdigest()[:16]

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
    problems = []
    for name, expected in sorted(manifest.files.items()):
        path = folder / name
        if not path.is_file():
            problems.append(f"{name} is missing")
        elif (found := _sha256(path)) != expected:
            problems.append(f"{name} is damaged (sha256 {found[:12]}, written as {expected[:12]})")
    commits = sorted(path.name for path in folder.glob("segments_*"))  # Lucene opens the newest, whosever it is
    problems += [f"{name} is foreign" for name in commits if name not in manifest.files]
    if problems:
        raise IndexProblem(
            f"the Lucene index at {folder} is not what was built: {'; '.join(problems)}; "
            "remove the folder and build it again"
        )
    return manifest


def cached_index(corpus: Path, cache: Path, *, threads: int, k1: float, b: float) -> Path:
    """Folder of the index of `corpus` below `cache`, built when it is missing: one folder for one content.

    Raises what `build_index` raises.
    """
    digest = _corpus_sha256(corpus)
    folder = cache.expanduser() / f"{digest[:16]}-anserini{_anserini_version()}-v{FORMAT}"
    _build(corpus, digest, folder, threads=threads, k1=k1, b=b)
    return folder


def build_index(corpus: Path, folder: Path, *, threads: int, k1: float, b: float) -> IndexManifest:
    """Index `corpus` (a .jsonl file of {"id", "contents"} rows) into `folder`, or return its index when it is there.

    The index appears whole or not at all. `threads` index in parallel. Raises DataError for bad rows, IndexProblem when
    `folder` holds anything else or the build fails, ValueError for numbers out of range, JavaMissing, OSError.
    """
    wrong = [f"k1 must be at least 0, got {k1}"] * (not k1 >= 0) + [f"b must be 0 to 1, got {b}"] * (not 0 <= b <= 1)
    wrong += [f"threads must be 1 to 256, got {threads}"] * (not 1 <= threads <= 256)
    if wrong:
        raise ValueError("; ".join(wrong))
    return _build(corpus, _corpus_sha256(corpus), folder, threads=threads, k1=k1, b=b)


def _build(corpus: Path, digest: str, folder: Path, *, threads: int, k1: float, b: float) -> IndexManifest:
    if (existing := _existing(folder, digest)) is not None:
        return existing
    from smartrag.data import check_corpus

    rows = check_corpus(corpus)
    java = preflight()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", suffix=".building", dir=folder.parent) as scratch:
        made = Path(scratch) / "index"
        shards = _shards(corpus, Path(scratch) / "corpus", threads)
        with _progress(f"indexing {rows:,} passages of {corpus.name}"):
            _run_anserini(
                "index.IndexCollection -collection JsonCollection -generator DefaultLuceneDocumentGenerator -optimize "
                f"-storeContents -threads {threads} -memoryBuffer {_BUILD_BUFFER_MB} -input {{}} -index {{}}",
                shards,
                made,
            )
        if (documents := _documents(made)) != rows:
            raise IndexProblem(f"Lucene indexed {documents} of the {rows} rows of {corpus}; nothing was kept")
        if _corpus_sha256(corpus) != digest:
            raise IndexProblem(f"{corpus} changed while it was being indexed; nothing was kept")
        (made / "write.lock").unlink(missing_ok=True)
        manifest = IndexManifest(
            format=FORMAT,
            corpus_sha256=digest,
            rows=rows,
            analyzer=ANALYZER,
            k1=k1,
            b=b,
            pyserini=version("pyserini"),
            anserini=_anserini_version(),
            java=java,
            files={path.name: _sha256(path) for path in sorted(made.iterdir())},
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        return _publish(made, folder, manifest)


def _existing(folder: Path, digest: str) -> IndexManifest | None:
    """The manifest in `folder` if it is of this corpus, None if there is nothing. Raises IndexProblem otherwise."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return None
    try:
        manifest = open_manifest(folder)
    except IndexProblem as error:
        raise IndexProblem(f"{folder} is in the way and is left as it is: {error}") from None
    if manifest.corpus_sha256 != digest:
        raise IndexProblem(
            f"{folder} holds the index of another corpus ({manifest.rows} passages, sha256 "
            f"{manifest.corpus_sha256[:12]}; this one's is {digest[:12]}); name another folder or remove that one"
        )
    return manifest


def _publish(made: Path, folder: Path, manifest: IndexManifest) -> IndexManifest:
    """Manifest last, everything on disk, then one rename. A build of the same corpus that was faster wins."""
    (made / MANIFEST).write_text(manifest.to_json(), encoding="utf-8")
    for path in [*made.iterdir(), made]:
        _fsync(path)
    try:
        os.rename(made, folder)  # replaces an empty folder, fails on any other
    except OSError:
        if (winner := _existing(folder, manifest.corpus_sha256)) is None:
            raise
        return winner
    _fsync(folder.parent)
    return manifest


def _shards(corpus: Path, folder: Path, threads: int) -> Path:
    """The folder made: Anserini takes no single file and gives each file to one thread, so deal the lines out."""
    folder.mkdir()
    if threads == 1:
        (folder / "corpus.jsonl").symlink_to(corpus.resolve())
        return folder
    shards = [(folder / f"corpus-{i:03d}.jsonl").open("wb") for i in range(threads)]
    try:
        with corpus.open("rb") as lines:
            for number, line in enumerate(lines):
                shards[number % threads].write(line.rstrip(b"\n") + b"\n")
    finally:
        for shard in shards:
            shard.close()
    return folder


def _run_anserini(line: str, *paths: Path) -> str:
    """Run a class of io.anserini, `{}` standing for paths; what it printed. Raises IndexProblem with its last words."""
    java = [str(java_home() / "bin" / "java"), f"-Xmx{_BUILD_HEAP}", "-cp", str(anserini_jar())]
    places = iter(paths)
    command = [*java, *(str(next(places)) if word == "{}" else word for word in f"io.anserini.{line}".split())]
    child = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    if child.returncode:
        said = " | ".join(line.strip() for line in child.stdout.splitlines()[-5:])[-600:]
        raise IndexProblem(f"Lucene could not build the index (exit {child.returncode}): {said}")
    return child.stdout


def _documents(index: Path) -> int:
    """Documents of the index as Lucene counts them, by opening it; Anserini exits with 0 even when it lost rows."""
    said = _run_anserini("index.IndexReaderUtils -stats -index {}", index)
    count = re.search(r"^documents:\s+([\d,]+)$", said, re.MULTILINE)
    return int(count[1].replace(",", "")) if count else 0


@contextmanager
def _progress(what: str) -> Iterator[None]:
    """A spinner on a terminal, nothing elsewhere."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    with console.status(what):
        yield


def _corpus_sha256(corpus: Path) -> str:
    if not corpus.is_file():
        raise IndexProblem(f'no corpus at {corpus}; it must be a .jsonl file, one {{"id", "contents"}} object a line')
    return _sha256(corpus)


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _anserini_version() -> str:
    return anserini_jar().name.removeprefix("anserini-").removesuffix("-fatjar.jar")
