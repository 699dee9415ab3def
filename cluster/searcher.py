"""What stands inside a retrieval replica, and what must be true before one is started.

A `Searcher` answers lists of queries in one process. `retriever.searcher` says which: `bm25` (lucene.py), `dense`
(dense.py), `http` (remote.py), or package.module:name of people's own, called in every replica with the settings and
the place to read: `retriever.index` where that is given, else the data's passages as a .jsonl file, or None. Batching,
replicas, restarts and retries are retrieval.py's, whatever it is.
"""

import hashlib
import inspect
import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from cluster.java import preflight
from cluster.manifest import MANIFEST
from cluster.objects import Objects
from smartrag.config import Retriever
from smartrag.data.passages import Recipe
from smartrag.dotted import named
from smartrag.encoder import is_function
from smartrag.files import is_uri, whole_folder
from smartrag.types import Empty, Failed, Hits, Retrieved

logger = logging.getLogger("smartrag")

_SETTING = "retriever.searcher"


class Searcher(Protocol):
    @property
    def fingerprint(self) -> str:
        """Identity of what is searched: equal in two replicas when the same queries find the same passages there."""

    def search(self, queries: Sequence[str], ks: Sequence[int]) -> list[Retrieved]:
        """For `queries[i]` at most `ks[i]` >= 1 passages, best first. Blocking; called by one thread at a time."""


def check_searcher(retriever: Retriever) -> None:
    """What can be known before anything is read or built. Raises ValueError or RuntimeError with what to do."""
    match retriever.searcher:
        case "bm25":
            preflight()
        case "dense":
            from smartrag.encoder import opened

            assert retriever.dense is not None, "check.py demands it"
            opened(retriever.dense)(["Oslo"])
        case "http":
            from cluster.remote import check_service

            assert retriever.http is not None, "check.py demands it"
            check_service(retriever.http)
        case own:
            make = named(_SETTING, own)
            try:
                inspect.signature(make).bind(retriever, None)
            except TypeError as error:
                raise ValueError(f"{_SETTING}={own}: must take two arguments, settings and place ({error})") from error


def prepare(retriever: Retriever, corpus: Path | None, cache: Path) -> Path | None:
    """The place that replicas read; an index is built when it is missing, or verified where it is named.

    `corpus`: the data's passages as a .jsonl file, None where there are none. Raises ValueError, RuntimeError, OSError.
    """
    given = None if retriever.index is None else _at_hand(retriever.index, cache)
    match retriever.searcher:
        case "bm25" if given is not None:
            from cluster.manifest import check_recipe, verify

            check_recipe(given, verify(given), Recipe.of(retriever))
            return given
        case "dense" if given is not None:
            from cluster.dense import check_dense_recipe, verify_dense

            check_dense_recipe(given, verify_dense(given), retriever)
            return given
        case "bm25" if corpus is not None:
            from cluster.index import cached_index

            recipe, threads = Recipe.of(retriever), os.cpu_count() or 1
            return cached_index(corpus, cache, recipe, threads=threads, k1=retriever.k1, b=retriever.b)
        case "dense" if corpus is not None:
            from cluster.dense import cached

            assert retriever.dense is not None, "check.py demands it"
            return cached(corpus, cache, retriever.dense, Recipe.of(retriever))
        case "bm25" | "dense":
            raise ValueError(
                "the data does not bring passages for every question; name a built index with "
                "retriever.index=FOLDER, or give passages beside data.questions with data.corpus=FILE"
            )
        case "http":
            return None
        case _:
            return given if given is not None else corpus


def _at_hand(index: str, cache: Path) -> Path:
    """The folder that `retriever.index` names. What a URI names is fetched into `cache` once."""
    if not is_uri(index):
        return Path(index).expanduser().resolve()
    there = Objects.at(index)
    manifest = there.read(MANIFEST)
    if manifest is None:
        raise ValueError(f"retriever.index={index}: no index there (no {MANIFEST})")
    folder = cache.expanduser().resolve() / f"fetched-{hashlib.sha256(manifest).hexdigest()[:16]}"
    if not folder.is_dir():
        logger.info("fetching the index %s, once, to %s", index, folder)
        with whole_folder(folder) as draft:
            there.get_all(draft)
    return folder


def absolute(retriever: Retriever) -> Retriever:
    """The settings for replicas, which start in another folder: an encoder's folder in full."""
    dense = retriever.dense
    if dense is None or is_function(dense.encoder):
        return retriever
    return replace(retriever, dense=replace(dense, encoder=str(Path(dense.encoder).expanduser().absolute())))


def open_searcher(retriever: Retriever, place: Path | None) -> Searcher:
    """Takes seconds. Raises whatever keeps it from serving."""
    match retriever.searcher:
        case "bm25":
            from cluster.lucene import Lucene

            assert place is not None, "`prepare` gave one"
            return Lucene(place, k1=retriever.k1, b=retriever.b, threads=retriever.threads, heap=retriever.heap)
        case "dense":
            from cluster.dense import DenseSearcher

            assert place is not None, "`prepare` gave one"
            return DenseSearcher(place, retriever)
        case "http":
            from cluster.remote import Remote

            assert retriever.http is not None, "check.py demands it"
            return Remote(retriever.http)
        case own:
            return named(_SETTING, own)(retriever, place)


def sound(answers: Sequence[Retrieved], ks: Sequence[int]) -> list[Retrieved]:
    """`answers`, one for each of `ks`. Raises ValueError where they are not what a Searcher gives."""
    if len(answers) != len(ks):
        raise ValueError(f"the searcher gave {len(answers)} answers for {len(ks)} queries")
    for answer, k in zip(answers, ks, strict=True):
        if not isinstance(answer, Hits | Empty | Failed):
            raise ValueError(f"the searcher gave a {type(answer).__name__}; it must give Hits, Empty or Failed")
        if isinstance(answer, Hits) and not 1 <= len(answer.passages) <= k:
            raise ValueError(f"the searcher gave {len(answer.passages)} passages where 1 to {k} were asked for")
    return list(answers)
