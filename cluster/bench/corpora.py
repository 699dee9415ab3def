"""What a search costs as the corpus grows: the run's own passages, fewer of them or spliced into more."""

import json
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from cluster.bench.retrieval import QUERIES, measure
from cluster.index import build_index
from cluster.system import BadInput, connect, inputs
from smartrag.config import Run
from smartrag.data.passages import Recipe
from smartrag.experiments.bench import Figure, against, median, rate

SIZES = (6_000, 60_000, 600_000)  # passages


def bench(run: Run, path: Path, repeats: int) -> dict[str, Figure]:
    """Queries a second of the service and of Lucene, seconds and bytes of an index, for each of SIZES."""
    found = inputs(run)
    connect(run)
    questions = [q.text for q in found.data.train]
    if found.data.corpus is None:
        raise BadInput("the data brings no passages to make corpora of; name a set that does, such as data=world")
    with found.data.corpus.open(encoding="utf-8") as file:
        passages = [json.loads(line)["contents"] for line in file]
    figures: dict[str, Figure] = {}
    for size in SIZES:
        figures |= _of_size(size, passages, questions, run, repeats)
    return figures


def _of_size(size: int, passages: Sequence[str], questions: Sequence[str], run: Run, repeats: int) -> dict[str, Figure]:
    label, retriever = f"{size // 1000}k", run.retriever
    with TemporaryDirectory() as scratch:
        corpus, index = Path(scratch) / "corpus.jsonl", Path(scratch) / "index"
        with corpus.open("w", encoding="utf-8") as file:
            file.writelines(grown(passages, size))
        start = time.perf_counter()
        build_index(corpus, index, Recipe.of(retriever), threads=retriever.threads, k1=retriever.k1, b=retriever.b)
        took = time.perf_counter() - start
        weight = sum(file.stat().st_size for file in index.rglob("*") if file.is_file())
        measured = measure(run, index, questions, repeats)
    lucene = rate(QUERIES, "queries/s", measured.lucene_s)
    return {
        f"index_seconds_{label}": median([took], "s"),
        f"index_size_{label}": median([weight / 2**20], "MiB"),
        f"lucene_queries_{label}": lucene,
        f"retrieval_queries_{label}": against(
            rate(QUERIES, "queries/s", measured.service_s), f"lucene_queries_{label}", lucene
        ),
    }


def grown(passages: Sequence[str], size: int) -> Iterator[str]:
    """`size` rows of a corpus: the passages themselves, then the first half of one with the second half of another, so
    that words are as frequent as in them."""
    rng = random.Random("corpora")
    order = list(passages)
    rng.shuffle(order)
    for i in range(size):
        if i < len(order):
            contents = order[i]
        else:
            one, other = rng.choice(order).split(), rng.choice(order).split()
            contents = " ".join([*one[: len(one) // 2], *other[len(other) // 2 :]])
        yield json.dumps({"id": f"p{i}", "contents": contents}, ensure_ascii=False) + "\n"
