"""One open Lucene index in this process: lists of queries in, typed outcomes out. Blocking; one thread at a time."""

import sys
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from cluster.java import start_jvm
from cluster.manifest import IndexManifest, IndexProblem, verify
from smartrag.choices import Corpus, Stemmer
from smartrag.data.passages import SHOWN
from smartrag.types import Empty, Failed, Hits, Passage, Retrieved

# A character makes at most one term (Chinese text makes that many), and Lucene refuses queries of more than 1,024.
MAX_QUERY_CHARACTERS = 512
_NEURAL = {
    "_impact_searcher": ("LuceneImpactSearcher", "SlimSearcher"),
    "_hnsw_searcher": ("LuceneHnswDenseSearcher", "LuceneFlatDenseSearcher"),
}


def clean(query: str) -> str:
    """`query` as Lucene can take it: control characters and lone surrogates become blanks, the excess is cut."""
    head = query[: 4 * MAX_QUERY_CHARACTERS]  # bounds the work on a runaway generation
    shown = "".join(" " if unicodedata.category(c) in ("Cc", "Cs") else c for c in head)
    return " ".join(shown.split())[:MAX_QUERY_CHARACTERS].rstrip()


class Lucene:
    """Implements `Searcher`: BM25 over a verified index; queries are analysed as its passages were.

    Starts this process's JVM and imports Pyserini: 5 seconds or more. Raises IndexProblem (absent or damaged),
    JavaMissing, ValueError for a bad `heap`.
    """

    def __init__(self, index: Path, *, k1: float, b: float, threads: int, heap: str) -> None:
        self.manifest: IndexManifest = verify(index)  # before the slow part
        self._threads = threads
        start_jvm(heap)
        _leave_out_neural_searchers()
        from pyserini.analysis import get_lucene_analyzer
        from pyserini.search.lucene import LuceneSearcher

        stemmer = self.manifest.stemmer
        self._searcher = LuceneSearcher(str(index))
        self._searcher.set_analyzer(get_lucene_analyzer(stemming=stemmer is not Stemmer.none, stemmer=stemmer.value))
        self._searcher.set_bm25(k1, b)
        self._field = SHOWN if self.manifest.corpus is Corpus.useless else "contents"
        if self._searcher.num_docs != self.manifest.rows:
            raise IndexProblem(
                f"the Lucene index at {index} has {self._searcher.num_docs} documents, its manifest says "
                f"{self.manifest.rows}; remove the folder and build it again"
            )

    @property
    def fingerprint(self) -> str:
        return self.manifest.fingerprint

    def search(self, queries: Sequence[str], ks: Sequence[int]) -> list[Retrieved]:
        """The best `ks[i]` passages for the cleaned `queries[i]`, best first, ties in the order of their ids.

        One bad query makes Anserini refuse the whole list: then each is tried alone and only the guilty are Failed.
        """
        try:
            return self._batch(queries, ks)
        except Exception as error:  # whatever pyjnius makes of a Java exception
            if len(queries) == 1:
                return [Failed(f"Lucene refused the query {queries[0][:80]!r}: {str(error)[:300]}")]
            return [self.search([query], [k])[0] for query, k in zip(queries, ks, strict=True)]

    def _batch(self, queries: Sequence[str], ks: Sequence[int]) -> list[Retrieved]:
        names = [str(i) for i in range(len(queries))]
        # Anserini sorts by score and then id before it cuts, so the best k are the first k of the best max(ks).
        found = self._searcher.batch_search(list(queries), names, k=max(ks), threads=self._threads)
        return [_outcome(found[name][:k], self._field) for name, k in zip(names, ks, strict=True)]


def _leave_out_neural_searchers() -> None:
    """Pyserini imports two searchers that need torch and transformers beside ours that does not: 11 of the 15 seconds
    of a replica's start, and 500 MB. Something empty stands in their place; nothing else misses them."""
    for module, names in _NEURAL.items():
        stand_in = ModuleType(f"pyserini.search.lucene.{module}")
        vars(stand_in).update(dict.fromkeys(names))
        sys.modules.setdefault(stand_in.__name__, stand_in)


def _outcome(hits: Sequence[Any], field: str) -> Retrieved:
    passages = tuple(Passage(hit.docid, hit.lucene_document.get(field), float(hit.score)) for hit in hits)
    return Hits(passages) if passages else Empty()
