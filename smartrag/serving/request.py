"""A request of OpenAI's chat completions as a question to the policy. What would be ignored is refused.

The policy was trained on single questions under its own instruction, so there is one message, the user's. A system
message or an earlier turn would put it where it has never been.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from smartrag.serving import refusal

MOST_TOKENS = 1 << 20
_READ = {"model", "messages", "stream", "stream_options", "temperature", "max_tokens", "max_completion_tokens", "seed"}
# Fields that change nothing where they hold one of these values; null never does.
_WITHOUT_EFFECT: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "top_p": (1,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "parallel_tool_calls": (True, False),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "stop": ([],),
    "store": (False,),
    "service_tier": ("auto", "default"),
}
_ABOUT_THE_CALLER = {"user", "metadata", "safety_identifier", "prompt_cache_key"}


@dataclass(frozen=True, slots=True)
class Asked:
    """What a client wants. Example: Asked("Which country is Oslo in?", 0.0, None, False, False)."""

    question: str
    temperature: float  # 0: greedily
    max_tokens: int | None  # of all that the policy writes for this question, queries included
    stream: bool
    with_usage: bool  # a last chunk with token counts, where it streams


def understood(body: Any, model: str) -> Asked:
    """What a body, parsed as JSON, asks of `model`. Raises Refused with all that is wrong."""
    if not isinstance(body, dict):
        raise refusal.invalid(f"the body must be a JSON object, got {_kind(body)}")
    if isinstance(name := body.get("model"), str) and name != model:
        raise refusal.unknown(f"there is no model {_short(name)}; this server has {model!r}", "model_not_found")
    problems = dict(_problems(body))
    if not isinstance(name, str):
        problems = {"model": f"model must be {model!r}, got {_short(name)}"} | problems
    if problems:
        only = next(iter(problems)) if len(problems) == 1 else None
        raise refusal.invalid("; ".join(problems.values()), only)
    options = body.get("stream_options") or {}
    return Asked(
        _text(body["messages"][0]["content"]),
        float(body.get("temperature") or 0),
        body.get("max_completion_tokens") or body.get("max_tokens"),
        bool(body.get("stream")),
        bool(options.get("include_usage")),
    )


def _problems(body: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """(field, what is wrong with it)."""
    if wrong := _of_messages(body.get("messages")):
        yield "messages", wrong
    temperature = body.get("temperature")
    if temperature is not None and not (_number(temperature) and 0 <= temperature <= 2):
        yield "temperature", f"temperature must be a number from 0 to 2, got {_short(temperature)}"
    yield from _of_limits(body)
    if not isinstance(body.get("stream"), bool | None):
        yield "stream", f"stream must be true or false, got {_short(body['stream'])}"
    yield from _of_stream_options(body)
    if body.get("seed") is not None and temperature not in (None, 0):
        yield "seed", "seed is not supported; at temperature 0, the default, a question gets one answer without it"
    for name, value in body.items():
        if name in _WITHOUT_EFFECT and not any(_same(value, x) for x in (None, *_WITHOUT_EFFECT[name])):
            yield name, f"{name}={_short(value)} is not supported; leave it out"
        elif name not in _WITHOUT_EFFECT and name not in _READ and name not in _ABOUT_THE_CALLER:
            yield name, f"there is no field {_short(name)}; leave it out"


def _of_messages(messages: Any) -> str:
    if not isinstance(messages, list) or not messages or not all(isinstance(m, dict) for m in messages):
        return 'messages must be a list with one message, {"role": "user", "content": QUESTION}'
    roles = [message.get("role") for message in messages]
    if roles != ["user"]:
        return (
            "messages must hold one message of the role user, got "
            f"{', '.join(_short(role) for role in roles[:8])}{', ...' * (len(roles) > 8)}: this policy takes single "
            "questions, under the instruction that it was trained with; leave the others out"
        )
    text = _text(messages[0].get("content"))
    if text is None:
        return "the content of the message must be text; images, sound and files are not supported"
    return "" if text.strip() else "the question is empty"


def _text(content: Any) -> Any:
    """The text of a message's content, a string or a list of parts; None when there is something else in it."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return None
    texts: list[Any] = [part.get("text") for part in content if isinstance(part, dict) and part.get("type") == "text"]
    return "\n".join(texts) if len(texts) == len(content) and all(isinstance(t, str) for t in texts) else None


def _of_limits(body: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    given = {name: body[name] for name in ("max_tokens", "max_completion_tokens") if body.get(name) is not None}
    for name, value in given.items():
        if type(value) is not int or not 1 <= value <= MOST_TOKENS:
            yield name, f"{name} must be an integer from 1 to {MOST_TOKENS}, got {_short(value)}"
    if len(given) == 2 and not _same(*given.values()):
        yield "max_tokens", "max_tokens and max_completion_tokens mean the same and differ; give one of them"


def _of_stream_options(body: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    options = body.get("stream_options")
    if options is None:
        return
    known = {"include_usage", "include_obfuscation"}
    if not isinstance(options, dict) or not all(k in known and type(v) is bool for k, v in options.items()):
        yield "stream_options", f'stream_options must be {{"include_usage": true or false}}, got {_short(options)}'
    elif options.get("include_obfuscation"):
        yield "stream_options", "include_obfuscation is not supported; leave it out"
    elif not body.get("stream"):
        yield "stream_options", "stream_options goes with stream=true; leave it out, or stream"


def _number(value: Any) -> bool:
    return type(value) in (int, float)


def _same(a: Any, b: Any) -> bool:
    """Equal as JSON has it, where true is no number."""
    return a == b and isinstance(a, bool) == isinstance(b, bool)


def _kind(value: Any) -> str:
    named: Sequence[tuple[type, str]] = ((list, "a list"), (str, "a text"), (bool, "true or false"))
    return next((name for kind, name in named if isinstance(value, kind)), "null" if value is None else "a number")


def _short(value: Any) -> str:
    """So much of a value as an error message should repeat."""
    said = repr(value)
    return said if len(said) <= 40 else f"{said[:40]}..."
