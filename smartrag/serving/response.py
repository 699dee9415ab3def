"""An episode as OpenAI's chat completion: whole, or in chunks as its turns happen. Dicts that are JSON.

The message's content is the answer. What led to it stands in a field of our own, `smartrag`. An episode without an
answer has no content: its `refusal` says so, and `finish_reason` is "length" where tokens ran out.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from smartrag.episode import end_of
from smartrag.evaluation.evaluate import tokens
from smartrag.types import ActionKind, Empty, End, Turn

DONE = b"data: [DONE]\n\n"
_NO_ANSWER = {
    End.FORMAT_ERROR: "No answer: the policy wrote neither a search nor an answer.",
    End.TRUNCATED: "No answer: the policy came to the limit of tokens before its answer ended.",
}


@dataclass(frozen=True, slots=True)
class Head:
    """What a completion and all of its chunks begin with."""

    id: str  # of the episode
    created: int  # seconds since 1970
    model: str

    def of(self, kind: str) -> dict[str, Any]:
        return {"id": f"chatcmpl-{self.id}", "object": kind, "created": self.created, "model": self.model}


def told(turn: Turn) -> dict[str, Any]:
    """One turn: {"action", "text", "forced", "passages"}; `passages` is null unless the action is a search."""
    passages = None
    if turn.retrieved is not None:
        found = () if isinstance(turn.retrieved, Empty) else turn.retrieved.passages
        passages = [{"id": p.id, "contents": p.contents, "score": p.score} for p in found]
    action = turn.action
    return {"action": action.kind.value, "text": action.text, "forced": turn.forced, "passages": passages}


def summary(turns: Sequence[Turn]) -> dict[str, Any]:
    """The field `smartrag` of an episode: its first decision (null where it was none), its queries, how many retrievals
    that were, how it ended, and its turns."""
    first = turns[0].action.kind
    queries = [turn.action.text for turn in turns if turn.action.kind is ActionKind.SEARCH]
    return {
        "decision": first.value if first in (ActionKind.SEARCH, ActionKind.ANSWER) else None,
        "queries": queries,
        "retrievals": len(queries),
        "end": end_of(turns[-1]).value,
        "turns": [told(turn) for turn in turns],
    }


def usage(turns: Sequence[Turn]) -> dict[str, int]:
    read, written = tokens(turns)
    return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def completion(head: Head, turns: Sequence[Turn]) -> dict[str, Any]:
    message = {"role": "assistant", "content": None, "refusal": None} | _said(turns[-1])
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _finish_reason(turns[-1])}
    return head.of("chat.completion") | {"choices": [choice], "usage": usage(turns), "smartrag": summary(turns)}


def opening(head: Head) -> dict[str, Any]:
    """The first chunk."""
    return _chunk(head, {"role": "assistant"})


def happened(head: Head, turn: Turn) -> dict[str, Any]:
    """The chunk of one turn; that of the last one holds the answer."""
    return _chunk(head, _said(turn) if turn.retrieved is None else {}) | {"smartrag": {"turn": told(turn)}}


def closing(head: Head, turns: Sequence[Turn], *, with_usage: bool) -> list[dict[str, Any]]:
    """The last chunks: how it ended, the whole field `smartrag`, and token counts where they were asked for."""
    last = _chunk(head, {}, _finish_reason(turns[-1])) | {"smartrag": summary(turns)}
    counted = head.of("chat.completion.chunk") | {"choices": [], "usage": usage(turns)}
    return [last, counted] if with_usage else [last]


def event(data: dict[str, Any]) -> bytes:
    """One server-sent event. JSON has no line breaks, which would end it."""
    return f"data: {json.dumps(data, ensure_ascii=False)}\n\n".encode("utf-8", errors="replace")


def _chunk(head: Head, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
    return head.of("chat.completion.chunk") | {"choices": [choice]}


def _said(last: Turn) -> dict[str, Any]:
    """The answer, or that there is none."""
    end = end_of(last)
    return {"content": last.action.text} if end is End.ANSWERED else {"refusal": _NO_ANSWER[end]}


def _finish_reason(last: Turn) -> str:
    return "length" if end_of(last) is End.TRUNCATED else "stop"
