"""Supervised warm-up data: the three kinds of samples of the paper's first stage, in set shares.

    direct   question                          -> [Answer] answer
    search   question (and what came so far)   -> [Search] query
    read     question, all observations        -> [Answer] answer

Which question gets which kind is drawn blindly, but for a share `self_knowledge`: there a first move is `direct` when
the policy's own closed-book answer is right and `search` when it is wrong (SKR, Wang et al. 2023, arXiv 2310.05002; the
authors' "warm-up-skr"). A small share leaves the decision to reinforcement learning and gives it something to go by.
The observations are the retriever's own. Queries are those in the question's `meta["queries"]` when the data set has
them, else the question itself.
"""

import asyncio
import random
from collections.abc import Container, Iterator, Sequence

from smartrag.config import Warmup
from smartrag.prompt import Prompt
from smartrag.score import contains
from smartrag.trajectory import imitation
from smartrag.types import Action, ActionKind, EpisodeFailed, Failed, Question, Retrieve, Trajectory


async def samples(
    questions: Sequence[Question],
    warmup: Warmup,
    prompt: Prompt,
    retrieve: Retrieve,
    *,
    k: int,
    seed: int,
    known: Container[str] = (),
) -> list[Trajectory]:
    """`warmup.steps` x `warmup.batch` trajectories. A `read` sample whose passages lack the answer becomes a `search`.

    `known`: ids of the questions that the policy answers right closed-book. Raises EpisodeFailed when the retriever
    failed.
    """
    rng = random.Random(f"warmup/{seed}")
    drawn = _draw(questions, warmup.steps * warmup.batch, rng)
    kinds = rng.choices(("direct", "search", "read"), (warmup.direct, warmup.search, warmup.read), k=len(drawn))
    for i, question in enumerate(drawn):
        if kinds[i] != "read" and rng.random() < warmup.self_knowledge:
            kinds[i] = "direct" if question.id in known else "search"
    gate = asyncio.Semaphore(64)  # queries in flight

    async def one(i: int) -> Trajectory:
        async with gate:
            return await _sample(f"warmup-{i}", drawn[i], kinds[i], prompt, retrieve, k)

    return list(await asyncio.gather(*(one(i) for i in range(len(drawn)))))


def batches(trajectories: Sequence[Trajectory], size: int) -> Iterator[Sequence[Trajectory]]:
    for start in range(0, len(trajectories), size):
        yield trajectories[start : start + size]


async def _sample(id: str, question: Question, kind: str, prompt: Prompt, retrieve: Retrieve, k: int) -> Trajectory:
    context = prompt.question(question.text)
    answer = prompt.spell(Action(ActionKind.ANSWER, question.answers[0]))
    if kind == "direct":
        return imitation(id, context, answer)
    queries = tuple(question.meta.get("queries", ())) or (question.text,)
    # Which hop a search sample asks for: the id is unique, so its hash spreads the samples over the hops.
    hops = random.Random(id).randrange(len(queries)) if kind == "search" else len(queries)
    hit = False
    for query in queries[:hops]:
        retrieved = await retrieve(query, k)
        if isinstance(retrieved, Failed):
            raise EpisodeFailed(f"warm-up: retrieval failed: {retrieved.reason}")
        hit = hit or any(contains(p.contents, question.answers) for p in getattr(retrieved, "passages", ()))
        context += prompt.spell(Action(ActionKind.SEARCH, query))
        context += prompt.observation(retrieved, room=prompt.budget.context - len(context) - prompt.budget.new_tokens)
    if kind == "read" and hit:
        return imitation(id, context, answer)
    if kind == "read":
        return imitation(id, prompt.question(question.text), prompt.spell(Action(ActionKind.SEARCH, queries[0])))
    return imitation(id, context, prompt.spell(Action(ActionKind.SEARCH, queries[hops])))


def _draw(questions: Sequence[Question], count: int, rng: random.Random) -> list[Question]:
    """`count` questions, every one of the set once before any comes twice."""
    drawn: list[Question] = []
    while len(drawn) < count:
        drawn += rng.sample(questions, len(questions))
    return drawn[:count]
