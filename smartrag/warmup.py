"""Supervised warm-up data: the three kinds of samples of the paper's first stage, in set shares.

    direct   question                          -> [Answer] answer
    search   question (and what came so far)   -> [Search] query
    read     question, all observations        -> [Answer] answer

`warmup.teacher` says who shows them.

gold     `samples`: answers and queries of the data set, the queries those in the question's `meta["queries"]`, else
         the question itself. Which question gets which kind is drawn blindly, but for a share `self_knowledge`: there a
         first move is `direct` when the policy's own closed-book answer is right and `search` when it is wrong (SKR,
         Wang et al. 2023, arXiv 2310.05002; the authors' "warm-up-skr"). A small share leaves the decision to
         reinforcement learning and gives it something to go by. With it, the answers of `direct` samples are the
         policy's own, right or wrong: they show the form and teach no facts, since a model that is tuned on facts new
         to it comes to make them up (Gekhman et al. 2024, arXiv 2405.05904).
policy   `mined`: the policy's own moves that turned out right (rejection sampling, as in STaR, Zelikman et al. 2022,
         arXiv 2203.14465), out of the episodes that `practice` asks for.
endpoint `mined` likewise, out of what a larger model writes (`teacher.py`).

The observations are the retriever's own.
"""

import asyncio
import logging
import random
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TypeVar

from smartrag.config import Warmup
from smartrag.data.rows import DataError
from smartrag.episode import episode_id
from smartrag.prompt import Prompt
from smartrag.score import contains, exact_match
from smartrag.trajectory import imitation
from smartrag.types import (
    Action,
    ActionKind,
    Episode,
    EpisodeFailed,
    EpisodeRequest,
    Failed,
    Gate,
    Question,
    Retrieve,
    Retrieved,
    Trajectory,
)

logger = logging.getLogger("smartrag")

KINDS = ("direct", "search", "read")
_T = TypeVar("_T")


async def samples(
    questions: Sequence[Question],
    warmup: Warmup,
    prompt: Prompt,
    retrieve: Retrieve,
    *,
    quotas: Sequence[int],
    k: int,
    seed: int,
    own: Mapping[str, str] = MappingProxyType({}),
) -> list[Trajectory]:
    """`warmup.steps` x `warmup.batch` trajectories. A `read` sample whose passages lack the answer becomes a `search`.

    `quotas`: those of the training; each sample is told one that allows its searches, if there is any. `own`: by
    question id, what the policy answers closed-book. Raises EpisodeFailed when the retriever failed.
    """
    rng = random.Random(f"warmup/{seed}")
    drawn = _draw(questions, warmup.steps * warmup.batch, rng)
    kinds = _kinds(warmup, len(drawn), rng)
    for i, question in enumerate(drawn):
        if kinds[i] != "read" and rng.random() < warmup.self_knowledge:
            kinds[i] = "direct" if exact_match(own.get(question.id, ""), question.answers) else "search"
    gate = asyncio.Semaphore(64)  # queries in flight

    async def one(i: int) -> Trajectory:
        async with gate:
            return await _sample(f"warmup-{i}", drawn[i], kinds[i], prompt, retrieve, quotas, k, own.get(drawn[i].id))

    return list(await asyncio.gather(*(one(i) for i in range(len(drawn)))))


def to_practise(questions: Sequence[Question], warmup: Warmup, seed: int) -> list[Question]:
    """As many questions as there will be samples, drawn once, or all."""
    return _draw(questions, min(len(questions), warmup.steps * warmup.batch), random.Random(f"practice/{seed}"))


def practice(
    questions: Sequence[Question], warmup: Warmup, *, quotas: Sequence[int], k: int, seed: int
) -> list[EpisodeRequest]:
    """The episodes to mine: of each question `to_practise`, `warmup.samples` closed-book and as many that begin with a
    search.

    The closed-book ones are told the `quotas` of the training in turn. Of the others the j-th may search 1 + j mod
    max(quotas) times: at 1 the answer is forced after one search, so that a policy that does not yet write the tags
    shows how it reads; more let it show the later hops.
    """
    drawn = to_practise(questions, warmup, seed)
    return [
        EpisodeRequest(episode_id(seed, f"practice/{gate}", i, j), question, quota, k, gate)
        for i, question in enumerate(drawn)
        for j in range(warmup.samples)
        for gate, quota in ((Gate.NEVER, quotas[j % len(quotas)]), (Gate.ALWAYS, 1 + j % max(quotas)))
    ]


def mined(
    closed_book: Sequence[Episode], searched: Sequence[Episode], warmup: Warmup, prompt: Prompt, *, seed: int
) -> list[Trajectory]:
    """`warmup.steps` x `warmup.batch` trajectories out of the teacher's episodes, token by token as they were written.

        direct   right closed-book answers to known questions
        search   queries up to the first that hit, of unknown questions: the shortest way to a hit of each
        read     right answers after a hit

    A question is known when the share of right ones among its closed-book answers is `warmup.knows` or more. Forced
    tags are imitated too: the policy must learn to write them. Equal samples count once; where a kind is short, its
    samples come again. Raises DataError when a wanted kind has none.
    """
    known = _known(closed_book, warmup.knows)
    found = {
        "direct": [_move(e, 0, prompt) for e in closed_book if e.question.id in known and _right(e)],
        "search": [
            _move(e, number, prompt)
            for e in _shortest([e for e in searched if e.question.id not in known])
            for number in range(_first_hit(e) + 1)
        ],
        "read": [_move(e, len(e.turns) - 1, prompt) for e in searched if _first_hit(e) < e.retrievals and _right(e)],
    }
    distinct = {kind: list({t.token_ids: t for t in moves}.values()) for kind, moves in found.items()}
    rng = random.Random(f"warmup/{seed}")
    kinds = _kinds(warmup, warmup.steps * warmup.batch, rng)
    told = ", ".join(f"{len(distinct[kind])} {kind}" for kind in KINDS)
    asked = len({e.question.id for e in (*closed_book, *searched)})
    logger.info("warm-up: %d questions, %d of them known, gave %s samples", asked, len(known), told)
    lacking = [kind for kind in KINDS if kind in kinds and not distinct[kind]]
    if lacking:
        raise DataError(
            f"warmup.teacher={warmup.teacher}: {asked} questions, {len(known)} of them known, gave {told} samples; "
            f"without {' and '.join(lacking)} there is no such warm-up. Raise warmup.samples, move warmup.knows, set "
            "the share of that kind to 0, or take warmup.teacher=gold"
        )
    moves = {kind: iter(_draw(distinct[kind], kinds.count(kind), rng)) for kind in KINDS}
    return [next(moves[kind]) for kind in kinds]


def batches(trajectories: Sequence[Trajectory], size: int) -> Iterator[Sequence[Trajectory]]:
    for start in range(0, len(trajectories), size):
        yield trajectories[start : start + size]


async def _sample(
    id: str,
    question: Question,
    kind: str,
    prompt: Prompt,
    retrieve: Retrieve,
    quotas: Sequence[int],
    k: int,
    own: str | None,
) -> Trajectory:
    answer = prompt.spell(Action(ActionKind.ANSWER, question.answers[0]))
    queries = tuple(question.meta.get("queries", ())) or (question.text,)
    # Which hop a search sample asks for: the id is unique, so its hash spreads the samples over the hops.
    hops = random.Random(id).randrange(len(queries)) if kind == "search" else len(queries)
    needed = {"direct": 0, "search": hops + 1, "read": hops}[kind]
    quota = random.Random(f"quota/{id}").choice([n for n in quotas if n >= needed] or [max(quotas)])
    opening = prompt.question(question.text, quota)
    if kind == "direct":
        return imitation(id, opening, prompt.spell(Action(ActionKind.ANSWER, own)) if own else answer)
    context, hit = opening, False
    for query in queries[:hops]:
        retrieved = await retrieve(query, k)
        if isinstance(retrieved, Failed):
            raise EpisodeFailed(f"warm-up: retrieval failed: {retrieved.reason}")
        hit = hit or _hits(retrieved, question)
        context += prompt.spell(Action(ActionKind.SEARCH, query))
        context += prompt.observation(retrieved, room=prompt.budget.context - len(context) - prompt.budget.new_tokens)
    if kind == "read" and hit:
        return imitation(id, context, answer)
    if kind == "read":
        return imitation(id, opening, prompt.spell(Action(ActionKind.SEARCH, queries[0])))
    return imitation(id, context, prompt.spell(Action(ActionKind.SEARCH, queries[hops])))


def _move(episode: Episode, number: int, prompt: Prompt) -> Trajectory:
    """Turn `number` to imitate, its forced tag included, after all that stood before it."""
    turn = episode.turns[number]
    tag = prompt.search_ids if turn.action.kind is ActionKind.SEARCH else prompt.answer_ids
    own = len(tag) if turn.forced else 0
    context = [i for before in episode.turns[:number] for i in (*before.context_ids, *before.completion.token_ids)]
    context += turn.context_ids[: len(turn.context_ids) - own]
    written = (*turn.context_ids[len(turn.context_ids) - own :], *turn.completion.token_ids)
    return imitation(f"{episode.id}-{number}", context, written)


def _known(closed_book: Sequence[Episode], least: float) -> set[str]:
    """Ids of the questions of whose closed-book answers the share `least` or more is right."""
    marks: defaultdict[str, list[bool]] = defaultdict(list)
    for episode in closed_book:
        marks[episode.question.id].append(_right(episode))
    return {id for id, right in marks.items() if sum(right) / len(right) >= least}


def _shortest(episodes: Sequence[Episode]) -> list[Episode]:
    """Those that hit, of each question only the ones that hit soonest: longer ways hold a query that was wasted."""
    soonest: dict[str, int] = {}
    hitting = [e for e in episodes if _first_hit(e) < e.retrievals]
    for episode in hitting:
        id = episode.question.id
        soonest[id] = min(soonest.get(id, episode.retrievals), _first_hit(episode))
    return [e for e in hitting if _first_hit(e) == soonest[e.question.id]]


def _first_hit(episode: Episode) -> int:
    """Number of the first turn whose passages hold a gold answer; the number of retrievals when none does."""
    numbers = (i for i, turn in enumerate(episode.turns) if _hits(turn.retrieved, episode.question))
    return next(numbers, episode.retrievals)


def _hits(retrieved: Retrieved | None, question: Question) -> bool:
    return any(contains(p.contents, question.answers) for p in getattr(retrieved, "passages", ()))


def _right(episode: Episode) -> bool:
    return episode.answer is not None and exact_match(episode.answer, episode.question.answers) == 1.0


def _kinds(warmup: Warmup, count: int, rng: random.Random) -> list[str]:
    return rng.choices(KINDS, (warmup.direct, warmup.search, warmup.read), k=count)


def _draw(members: Sequence[_T], count: int, rng: random.Random) -> list[_T]:
    """`count` members, every one once before any comes twice."""
    drawn: list[_T] = []
    while len(drawn) < count:
        drawn += rng.sample(members, len(members))
    return drawn[:count]
