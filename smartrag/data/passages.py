"""Which passages of a corpus can be found, and what a search then shows.

share      A passage stays where its id hashes below the share: the same ones on every machine, and a smaller share is
           part of a larger one.
useless    A corpus that is searched as ever and helps nobody: a passage is found by its own words, and shown is another
           one, dealt by a hash. Whoever asks gets text of the same kind, size and fluency that knows of the question no
           more than a passage drawn blindly. Dealing only the texts out to other titles does not do that: each text is
           then found by its own words and brings its answer along. Hit rates, the question being the query:

                                   real    useless   drawn blindly   texts under other titles
               world, k = 2        0.858   0.026     0.023           0.854
               HotpotQA, k = 4     0.728   0.025     0.022           0.709
               PopQA, k = 4        0.860   0.092     0.084           0.779    (its answers have short aliases)
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from smartrag.choices import Corpus, Stemmer
from smartrag.config import Retriever
from smartrag.data.rows import DataError

SHOWN = "shown"  # the field that holds what a search shows where that is not what it searches


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What of a corpus becomes an index, and how words are matched."""

    stemmer: Stemmer
    corpus: Corpus
    share: float  # of the passages, above 0 and at most 1

    @classmethod
    def of(cls, retriever: Retriever) -> "Recipe":
        return cls(stemmer=retriever.stemmer, corpus=retriever.corpus, share=retriever.corpus_share)

    def __str__(self) -> str:
        return f"stemmer {self.stemmer}, {self.corpus} corpus, share {self.share}"


def kept(name: str, share: float) -> bool:
    """Whether the passage of that id belongs to the share."""
    return share >= 1 or _place(name) < share


def dealt(names: list[str]) -> dict[str, str]:
    """Passage -> the one shown in its place: a cycle through all ids in the order of their hashes.

    Every passage is shown once and none in its own place. Raises DataError for fewer than two.
    """
    if len(names) < 2:
        raise DataError(f"retriever.corpus=useless shows other passages in place of those found, and there are {names}")
    order = sorted(names, key=_place)
    return dict(zip(order, [*order[1:], order[0]], strict=True))


def lines(corpus: Path, recipe: Recipe) -> Iterator[bytes]:
    """The lines of JSON to index, in the order of the corpus, which must have passed `data.check_corpus`.

    They are {"id", "contents"}, as in the file; of a useless corpus {"id", "contents", SHOWN}. Raises DataError when
    the share leaves too few.
    """
    if recipe.share >= 1 and recipe.corpus is Corpus.real:
        with corpus.open("rb") as stream:
            yield from (line.rstrip(b"\n") + b"\n" for line in stream if line.strip())
        return
    places = {name: offset for name, offset in _offsets(corpus) if kept(name, recipe.share)}
    if not places:
        raise DataError(f"retriever.corpus_share={recipe.share:g} leaves no passage of {corpus}; raise it")
    shown = dealt(list(places)) if recipe.corpus is Corpus.useless else {}
    with corpus.open("rb") as stream:
        for name, offset in places.items():
            row = {"id": name, "contents": _contents(stream, offset)}
            if shown:
                row[SHOWN] = _contents(stream, places[shown[name]])
            yield json.dumps(row, ensure_ascii=False).encode() + b"\n"


def _offsets(corpus: Path) -> Iterator[tuple[str, int]]:
    """(id, where its line begins) of every passage."""
    offset = 0
    with corpus.open("rb") as stream:
        for line in stream:
            if line.strip():
                yield json.loads(line)["id"], offset
            offset += len(line)


def _contents(stream: BinaryIO, offset: int) -> str:
    stream.seek(offset)
    return json.loads(stream.readline())["contents"]


def _place(name: str) -> float:
    """In [0, 1), evenly spread and the same everywhere."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
