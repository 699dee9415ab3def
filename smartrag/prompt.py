"""The words around the policy: what it is shown, and what its tokens mean.

A conversation is one growing token sequence. The template's text and the passages are tokenised in segments and
appended; generated ids are kept as the engine returned them and are never decoded and encoded again:

    question(q)      <user> {instruction} {q} <assistant>
    generation                                            [Search] who leads Norway <end>
    observation(p)   <user> {passages} <assistant>
    generation                                            [Answer] Jonas Gahr Støre <end>

The actions are those of the authors' code: "[Search] query" and "[Answer] text" (paper: [RETRIEVE], [ANSWER]).
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from smartrag.choices import Role
from smartrag.types import Action, ActionKind, Empty, Hits, Stop

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SEARCH_TAG = "[Search]"
ANSWER_TAG = "[Answer]"
NOTHING_FOUND = "(nothing found)"

_TAG = re.compile(r"\[\s*(search|answer)\s*\]", re.IGNORECASE)
_WELL_FORMED = re.compile(r"\s*\[(Search|Answer)\]\s*(\S.*)", re.DOTALL)
_OPENING = re.compile(r"\s*\[(Search|Answer)\]")
_TAG_REST = re.compile(r"\A(\s*((search|answer)\s*)?\])+", re.IGNORECASE)  # closes one that a passage left open
_MARK = re.compile(r"<+[^<>\s]+>+|\[/?[A-Z_]+\]")  # what templates mark with in plain text: [INST], <<SYS>>
REPLACEMENT = "\ufffd"
# Sentinels that no template alters: private-use characters.
_FIRST, _REPLY, _SECOND = "\ue000", "\ue001", "\ue002"


@dataclass(frozen=True, slots=True)
class Budget:
    """Tokens. `context` bounds the whole conversation, generations included."""

    context: int  # of the whole conversation
    new_tokens: int  # of one generation
    passage: int  # of one passage


def visible(text: str) -> str:
    """Without control, format, private-use and surrogate characters; line breaks and tabs stay."""
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf", "Co", "Cs"))


class Prompt:
    """Turns questions and passages into token ids, generated ids into actions.

    Raises ValueError if the tokenizer has no chat template or no end-of-turn token.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", instruction: str, budget: Budget):
        if not tokenizer.chat_template:
            raise ValueError(f"tokenizer {tokenizer.name_or_path!r} has no chat template; use an instruct model")
        self.tokenizer, self.instruction, self.budget = tokenizer, instruction, budget
        tokenizer.model_max_length = 1 << 30  # the budget rules; the tokenizer would warn of lengths nobody asks for
        head, between, tail = self._split_template()
        between = between.lstrip()  # some templates pad a reply with a space, which ends nothing
        if not between:
            raise ValueError(f"the chat template of {tokenizer.name_or_path!r} does not mark the end of a turn")
        self._head, self._tail = head, tail
        self.end_id, *between_ids = self._encode(between)  # the first token after a reply ends it: the policy writes it
        # Around what the retriever brought: behind the end token, and up to what the policy writes next.
        self.frame = tuple(between_ids), tuple(self._encode(tail))
        self._newline, self._nothing = self._encode("\n"), self._encode(NOTHING_FOUND)
        self.search_ids = tuple(self._encode(SEARCH_TAG))
        self.answer_ids = tuple(self._encode(ANSWER_TAG))
        # Every string with a meaning of its own to the model; none may come out of a passage.
        strings = {*tokenizer.get_added_vocab(), *_MARK.findall(str(tokenizer.chat_template))}
        control = sorted((c for c in strings if c.strip()), key=len, reverse=True)
        self._control = re.compile("|".join([_TAG.pattern, *map(re.escape, control)]), re.IGNORECASE)

    def question(self, text: str, quota: int) -> tuple[int, ...]:
        """Token ids of the opening: instruction, question, and the mark that the policy writes next.

        `{quota}` in the instruction becomes the number of retrievals allowed.
        """
        return tuple(self._encode(self._head + self.opening(text, quota) + self._tail))

    def opening(self, text: str, quota: int) -> str:
        """What the first user message says: instruction and question."""
        # The instruction is ours and names the tags; only the question is untrusted.
        told = self.instruction.replace("{quota}", str(quota)) + "\n\n" if self.instruction else ""
        return told + self.neutralise(text)

    def observation(self, retrieved: Hits | Empty, room: int) -> tuple[int, ...]:
        """Token ids of what the retriever brought, in at most `room` tokens (template included). Passages are cut, the
        last first; the template never is."""
        before, after = self.frame
        body: list[int] = []
        if isinstance(retrieved, Empty):
            body = self._nothing
        else:
            for passage in retrieved.passages:
                text = _TAG_REST.sub("", self.neutralise(passage.contents))
                ids = self._encode(text)[: self.budget.passage]
                body += (self._newline if body else []) + ids
        body = body[: max(0, room - len(before) - len(after))]
        return (*before, *body, *after)

    def parse(self, token_ids: Sequence[int], stop: Stop, *, tag: Sequence[int] = ()) -> Action:
        """The action that these generated ids spell. `tag`: the forced tag that stood before them, if any."""
        ids = token_ids[:-1] if stop is Stop.END else token_ids
        text = self._decode(ids).strip()
        if stop is Stop.LENGTH:
            return Action(ActionKind.CUT, text)
        spelled = f"{self._decode(tag)} {text}" if tag else text
        match = _WELL_FORMED.fullmatch(spelled)
        if match is None or len(_TAG.findall(spelled)) != 1:
            return Action(ActionKind.MALFORMED, text)
        kind = ActionKind.SEARCH if match[1] == "Search" else ActionKind.ANSWER
        return Action(kind, match[2].strip())

    def tag(self, token_ids: Sequence[int]) -> tuple[int, Role] | None:
        """How many of the first generated ids it takes to write a tag, and whose the ids behind it are.

        None while they spell no tag. What begins with anything else never comes to: `parse` finds it malformed.
        """
        for count in range(1, len(token_ids) + 1):
            text = self._decode(token_ids[:count])
            if match := _OPENING.match(text):
                return count, Role.query if match[1] == "Search" else Role.answer
            if not any(tag.startswith(text.lstrip()) for tag in (SEARCH_TAG, ANSWER_TAG)):
                return None
        return None

    def spell(self, action: Action) -> tuple[int, ...]:
        """The ids a policy would write for this action, end-of-turn token included (warm-up targets)."""
        tag = SEARCH_TAG if action.kind is ActionKind.SEARCH else ANSWER_TAG
        return (*self._encode(f"{tag} {self.neutralise(action.text)}"), self.end_id)

    def neutralise(self, text: str) -> str:
        """Untrusted text made harmless: NFKC, no control or format characters, no control string of the model or us.

        A control string becomes U+FFFD: deleting it could join the halves of another (Unicode TR 36, section 3.5).
        """
        text = visible(unicodedata.normalize("NFKC", text).replace("\u2581", " "))  # as sentencepiece writes a space
        return self._control.sub(REPLACEMENT, unicodedata.normalize("NFKC", text))

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=False))

    def _split_template(self) -> tuple[str, str, str]:
        """(before the question, from the end of a reply to the next user text, after a user text)."""
        messages = [
            {"role": "user", "content": _FIRST},
            {"role": "assistant", "content": _REPLY},
            {"role": "user", "content": _SECOND},
        ]
        text = str(self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
        head, rest = text.split(_FIRST)
        _, rest = rest.split(_REPLY)
        between, tail = rest.split(_SECOND)
        return head, between, tail
