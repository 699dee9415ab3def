"""A retriever that knows the answer: what a perfect one over the same corpus could have brought."""

from collections.abc import Iterable

from smartrag.score import contains
from smartrag.types import Failed, Hits, Passage, Question, Retrieve, Retrieved

DEPTH = 100  # passages looked at, for the query and for the question each


class GoldFirst:
    """Implements `Retrieve` for one question: passages that hold a gold answer come first, in BM25's order.

    Looked for among the DEPTH best for the query and the DEPTH best for the question itself. What the corpus lacks, or
    BM25 does not rank among these, stays out of reach.
    """

    def __init__(self, retrieve: Retrieve, question: Question):
        self._retrieve, self._question = retrieve, question

    async def __call__(self, query: str, k: int) -> Retrieved:
        """As `Retrieve`: at most `k` passages."""
        by_query = await self._retrieve(query, DEPTH)
        by_question = await self._retrieve(self._question.text, DEPTH)
        for retrieved in (by_query, by_question):
            if isinstance(retrieved, Failed):
                return retrieved
        found = _once([*getattr(by_query, "passages", ()), *getattr(by_question, "passages", ())])
        gold = [p for p in found if contains(p.contents, self._question.answers)]
        best = [*gold, *(p for p in getattr(by_query, "passages", ()) if p not in gold)][:k]
        return Hits(tuple(best)) if best else by_query


def _once(passages: Iterable[Passage]) -> list[Passage]:
    """The first of each id."""
    return list({p.id: p for p in reversed(list(passages))}.values())[::-1]
