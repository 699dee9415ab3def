"""A Lucene index and the manifest that proves it: built aside, counted, hashed, then renamed into place."""

import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from rich.console import Console

from cluster.java import anserini_jar, java_home, preflight
from cluster.manifest import FORMAT, MANIFEST, IndexManifest, IndexProblem, open_manifest, sha256
from smartrag.choices import Corpus
from smartrag.data.corpus import check_corpus
from smartrag.data.passages import SHOWN, Recipe, lines

_BUILD_HEAP = "2g"  # Anserini's own buffer default of 4096 MB would overrun it
_BUILD_BUFFER_MB = 512


def cached_index(corpus: Path, cache: Path, recipe: Recipe, *, threads: int, k1: float, b: float) -> Path:
    """Folder of the index of `corpus` below `cache`, built when it is missing: one folder for one content.

    Raises what `build_index` raises.
    """
    digest = _corpus_sha256(corpus)
    made = f"{recipe.stemmer}-{recipe.corpus}-{recipe.share}"
    folder = cache.expanduser() / f"{digest[:16]}-{made}-anserini{_anserini_version()}-v{FORMAT}"
    _build(corpus, digest, folder, recipe, threads=threads, k1=k1, b=b)
    return folder


def build_index(corpus: Path, folder: Path, recipe: Recipe, *, threads: int, k1: float, b: float) -> IndexManifest:
    """Index `corpus` (a .jsonl file of {"id", "contents"} rows) into `folder`, or return its index when it is there.

    The index appears whole or not at all. `threads` index in parallel. Raises DataError for bad rows, IndexProblem when
    `folder` holds anything else or the build fails, ValueError for numbers out of range, JavaMissing, OSError.
    """
    wrong = [f"k1 must be at least 0, got {k1}"] * (not k1 >= 0) + [f"b must be 0 to 1, got {b}"] * (not 0 <= b <= 1)
    wrong += [f"threads must be 1 to 256, got {threads}"] * (not 1 <= threads <= 256)
    wrong += [f"share must be above 0 and at most 1, got {recipe.share}"] * (not 0 < recipe.share <= 1)
    if wrong:
        raise ValueError("; ".join(wrong))
    return _build(corpus, _corpus_sha256(corpus), folder, recipe, threads=threads, k1=k1, b=b)


def _build(
    corpus: Path, digest: str, folder: Path, recipe: Recipe, *, threads: int, k1: float, b: float
) -> IndexManifest:
    if (existing := _existing(folder, digest, recipe)) is not None:
        return existing
    check_corpus(corpus)
    java = preflight()
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", suffix=".building", dir=folder.parent) as scratch:
        made = Path(scratch) / "index"
        rows = _shards(corpus, recipe, Path(scratch) / "corpus", threads)
        fields = f" -fields {SHOWN}" * (recipe.corpus is Corpus.useless)
        with progress(f"indexing {rows:,} passages of {corpus.name}"):
            _run_anserini(
                "index.IndexCollection -collection JsonCollection -generator DefaultLuceneDocumentGenerator -optimize "
                f"-storeContents -stemmer {recipe.stemmer} -threads {threads} -memoryBuffer {_BUILD_BUFFER_MB} "
                f"-input {{}} -index {{}}{fields}",
                Path(scratch) / "corpus",
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
            stemmer=recipe.stemmer,
            corpus=recipe.corpus,
            share=recipe.share,
            k1=k1,
            b=b,
            pyserini=version("pyserini"),
            anserini=_anserini_version(),
            java=java,
            files={path.name: sha256(path) for path in sorted(made.iterdir())},
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        if publish(made, folder, manifest.to_json()):
            return manifest
        faster = _existing(folder, digest, recipe)
        assert faster is not None, "something is in the way"
        return faster


def _existing(folder: Path, digest: str, recipe: Recipe) -> IndexManifest | None:
    """The manifest in `folder` if it is of this corpus by this recipe, None if there is nothing. Raises IndexProblem
    otherwise."""
    if not in_the_way(folder):
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
    if manifest.recipe != recipe:
        raise IndexProblem(
            f"{folder} holds this corpus by another recipe ({manifest.recipe}; wanted is {recipe}); name another "
            "folder or remove that one"
        )
    return manifest


def in_the_way(folder: Path) -> bool:
    """Whether something is there that no index may replace."""
    return folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))


def publish(made: Path, folder: Path, manifest: str) -> bool:
    """Manifest last, everything on disk, then one rename. False where another build was faster, which then wins."""
    (made / MANIFEST).write_text(manifest, encoding="utf-8")
    for path in [*made.iterdir(), made]:
        _fsync(path)
    try:
        os.rename(made, folder)  # replaces an empty folder, fails on any other
    except OSError:
        if not in_the_way(folder):
            raise
        return False
    _fsync(folder.parent)
    return True


def _shards(corpus: Path, recipe: Recipe, folder: Path, threads: int) -> int:
    """Makes `folder`, with the lines to index; how many. Anserini takes no single file and gives each file to one
    thread, so deal the lines out."""
    folder.mkdir()
    count = 0
    with ExitStack() as stack:
        shards = [stack.enter_context((folder / f"corpus-{i:03d}.jsonl").open("wb")) for i in range(threads)]
        for count, line in enumerate(lines(corpus, recipe), 1):
            shards[count % threads].write(line)
    return count


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
def progress(what: str) -> Iterator[None]:
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
    return sha256(corpus)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _anserini_version() -> str:
    return anserini_jar().name.removeprefix("anserini-").removesuffix("-fatjar.jar")
