"""Small stand-ins for tests: a tokenizer of bytes, a scripted policy, a retriever in memory. Fast, and no engine."""

import re
from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from smartrag.choices import Judge, Role
from smartrag.config import Reward
from smartrag.prompt import Budget, Prompt
from smartrag.types import (
    Action,
    ActionKind,
    Completion,
    Empty,
    End,
    Episode,
    Failed,
    Hits,
    Passage,
    Question,
    Retrieved,
    Stop,
    Turn,
)

CHAT = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'] }}{% if m['role'] == 'assistant' %}<|end|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
QUESTION = "Which country is Oslo in?"
OSLO = Passage("p1", "Oslo\nOslo is a city in Norway.", 2.0)
BERGEN = Passage("p2", "Bergen\nBergen is a city in Norway.", 1.0)
PAPER = Reward(  # conf/reward/paper.yaml
    judge=Judge.gold,
    function=None,
    exact_match=1.0,
    f1=1.0,
    retrieval=-0.2,
    gated=False,
    free_steps=0,
    ramp_steps=0,
    budget=None,
    format_error=-1.0,
    truncated=-1.0,
    endpoint=None,
)
ENDS = {
    ActionKind.ANSWER: End.ANSWERED,
    ActionKind.MALFORMED: End.FORMAT_ERROR,
    ActionKind.CUT: End.TRUNCATED,
}


class Unlabelled:
    """A question that nobody may ask for its gold answers."""

    id, text, meta = "u", QUESTION, {}  # type: ignore[var-annotated]

    @property
    def answers(self) -> tuple[str, ...]:
        raise AssertionError("the gold answers were read")


def finished(
    searches: int, last: ActionKind, text: str = "Norway", *, tokens: int = 3, question: Any = None
) -> Episode:
    """An episode without an engine: `searches` searches that find nothing, then `last`. Each turn has 2 tokens of
    context and `tokens` generated ones."""
    turns = []
    behind = {ActionKind.SEARCH: Role.query, ActionKind.ANSWER: Role.answer}
    for kind in [ActionKind.SEARCH] * searches + [last]:
        written = Completion((7,) * tokens, (-0.5,) * tokens, Stop.END, (1,) * tokens)
        retrieved = Empty() if kind is ActionKind.SEARCH else None
        roles = (Role.decision, *[behind.get(kind, Role.decision)] * (tokens - 1))
        turns.append(Turn((1, 2), written, Action(kind, text), retrieved, forced=False, roles=roles))
    asked = Question("q", QUESTION, ("Norway",)) if question is None else question
    return Episode(f"{searches} {last} {text}", asked, tuple(turns), ENDS[last])


def tokenizer(*, tags: bool = True, chat: str = CHAT) -> PreTrainedTokenizerFast:
    """One token a byte; control tokens are special, the action tags are added tokens that decode to themselves.

    tags=False: the tags are text like any other.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|end|>", pad_token="<|pad|>")
    made.add_special_tokens({"additional_special_tokens": ["<|user|>", "<|assistant|>"]})
    if tags:
        made.add_tokens(["[Search]", "[Answer]"])
    made.chat_template = chat
    return made


def prompt(*, context: int = 400, new_tokens: int = 40, passage: int = 60, instruction: str = "") -> Prompt:
    return Prompt(tokenizer(), instruction, Budget(context, new_tokens, passage))


class ScriptedPolicy:
    """A `Generate` that writes the given texts in turn, whoever asks; "..." at the end means cut by the budget."""

    def __init__(self, made: Prompt, *texts: str, version: int = 7):
        self.prompt, self.texts, self.version = made, list(texts), version
        self.prompts: list[tuple[int, ...]] = []
        self.seeds: list[int] = []

    async def __call__(
        self, prompt_ids: Sequence[int], *, max_new_tokens: int, temperature: float, seed: int, request_id: str
    ) -> Completion:
        self.prompts.append(tuple(prompt_ids))
        self.seeds.append(seed)
        text = self.texts.pop(0)
        cut = text.endswith("...")
        ids = self.prompt.tokenizer.encode(text.removesuffix("..."), add_special_tokens=False)
        ids = ids if cut else [*ids, self.prompt.end_id]
        assert len(ids) <= max_new_tokens
        stop = Stop.LENGTH if cut else Stop.END
        return Completion(tuple(ids), (-0.5,) * len(ids), stop, (self.version,) * len(ids))


class Shelf:
    """A `Retrieve` over a few passages: those that share a word with the query, in the order given."""

    def __init__(self, *passages: Passage, failures: int = 0):
        self.passages, self.failures = passages, failures
        self.queries: list[str] = []

    async def __call__(self, query: str, k: int) -> Retrieved:
        self.queries.append(query)
        if self.failures:
            self.failures -= 1
            return Failed("planted")
        words = set(re.findall(r"\w+", query.lower()))
        found = [p for p in self.passages if words & set(re.findall(r"\w+", p.contents.lower()))]
        return Hits(tuple(found[:k])) if found else Empty()
