"""What a tiny model can do before any reward: recall, read, copy. The figures of pretraining."""

from collections.abc import Sequence

import torch
from transformers import LlamaForCausalLM

from smartrag.data.world import CITIES, corpus, questions, world
from smartrag.pretraining.mixture import HOPS, HORIZON
from smartrag.prompt import Prompt
from smartrag.score import exact_match
from smartrag.types import Action, ActionKind, Hits, Passage, Question, Stop


def check_skills(model: LlamaForCausalLM, prompt: Prompt, limit: int) -> dict[str, float]:
    """Shares in 0..1, each over at most `limit` questions of dev and test, which were never in the model's training.

    closed_book_1..5   exact match without passages, by fifths of popularity, the most popular first
    searches_1..5      mean probability of a search as first action, by the same fifths
    capitals           exact match without passages on capitals of countries
    reading, copy      exact match from true passages; exact queries: both of cities beyond the knowledge horizon
    two_hop            exact match after both gold searches; second_query: exact second queries after the first
    """
    model.eval()
    held_out = [q for split in ("test", "dev") for q in questions()[split]]
    rank = {city.name: i for i, city in enumerate(world().cities)}
    one_hop = [q for q in held_out if q.meta["type"] == "country"]
    rare = [q for q in one_hop if rank[q.meta["subject"]] >= HORIZON][:limit]
    two_hop = [q for q in held_out if q.meta["hops"] == 2][:limit]
    figures = {}
    for fifth in range(5):
        low, high = fifth * CITIES // 5, (fifth + 1) * CITIES // 5
        members = [q for q in one_hop if low <= rank[q.meta["subject"]] < high][: max(60, limit // 5)]
        figures[f"closed_book_{fifth + 1}"] = _answered(model, prompt, members, 0)
        figures[f"searches_{fifth + 1}"] = _search_share(model, prompt, members)
    figures["capitals"] = _answered(model, prompt, [q for q in held_out if q.meta["type"] == "capital"], 0)
    figures["reading"] = _answered(model, prompt, rare, 1)
    figures["copy"] = _queried(model, prompt, rare, 0)
    figures["two_hop"] = _answered(model, prompt, two_hop, 2)
    figures["second_query"] = _queried(model, prompt, two_hop, 1)
    model.train()
    return {name: round(value, 3) for name, value in figures.items()}


def _answered(model: LlamaForCausalLM, prompt: Prompt, asked: Sequence[Question], hops: int) -> float:
    """Exact match when the answer is forced after the first `hops` gold searches."""
    prompts = [(*_conversation(prompt, q, hops), *prompt.answer_ids) for q in asked]
    texts = [prompt.parse(ids, Stop.END, tag=prompt.answer_ids).text for ids in _write(model, prompt, prompts)]
    return _mean([exact_match(text, q.answers) for text, q in zip(texts, asked, strict=True)])


def _queried(model: LlamaForCausalLM, prompt: Prompt, asked: Sequence[Question], hops: int) -> float:
    """Exact match of the next query when a search is forced after the first `hops` gold searches."""
    prompts = [(*_conversation(prompt, q, hops), *prompt.search_ids) for q in asked]
    texts = [prompt.parse(ids, Stop.END, tag=prompt.search_ids).text for ids in _write(model, prompt, prompts)]
    return _mean([text == q.meta["queries"][hops] for text, q in zip(texts, asked, strict=True)])


@torch.no_grad()
def _search_share(model: LlamaForCausalLM, prompt: Prompt, asked: Sequence[Question]) -> float:
    """Mean probability of the search tag as first token."""
    shares = []
    for q in asked:
        logits = model(torch.tensor([prompt.question(q.text, HOPS)])).logits[0, -1]
        shares.append(logits.softmax(-1)[prompt.search_ids[0]].item())
    return _mean(shares)


def _conversation(prompt: Prompt, question: Question, hops: int) -> tuple[int, ...]:
    """Question, then `hops` gold searches, each with the true passage and another one that shares a word, if any."""
    ids = list(prompt.question(question.text, HOPS))
    for query in question.meta["queries"][:hops]:
        ids += prompt.spell(Action(ActionKind.SEARCH, query))
        ids += prompt.observation(_look_up(query), 1 << 16)
    return tuple(ids)


def _look_up(query: str) -> Hits:
    passages = [row["contents"] for row in corpus()]
    words = set(query.split())
    right = [text for text in passages if text.split("\n")[0] == query]
    others = [text for text in passages if text not in right and words & set(text.split("\n")[0].split())]
    return Hits(tuple(Passage(str(i), text, 0.0) for i, text in enumerate((right + others)[:2])))


@torch.no_grad()
def _write(model: LlamaForCausalLM, prompt: Prompt, prompts: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Greedy completions up to the end token (added where it does not come), in the order of the prompts."""
    written: list[tuple[int, ...]] = []
    pad = prompt.tokenizer.pad_token_id
    for start in range(0, len(prompts), 128):
        group = prompts[start : start + 128]
        width = max(map(len, group))
        ids = torch.tensor([(pad,) * (width - len(p)) + p for p in group])
        out = model.generate(  # type: ignore[misc]  # its stub wants a protocol that Llama does not spell out
            ids, attention_mask=(ids != pad).long(), max_new_tokens=16, do_sample=False
        )
        for row in out[:, width:].tolist():
            row = row[: row.index(prompt.end_id)] if prompt.end_id in row else row
            written.append((*row, prompt.end_id))
    return written


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(1, len(values))
