"""A teacher behind a real HTTP server on this machine: what it is shown, and what becomes of its replies."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from smartrag.data.rows import DataError
from smartrag.prompt import Prompt
from smartrag.score import contains
from smartrag.teacher import lessons
from smartrag.types import Episode, EpisodeFailed, Question
from tests import toys
from tests.chat_server import Server, completion

OSLO, RIGA = (Question(id, f"Where is {id}?", (country,)) for id, country in (("Oslo", "Norway"), ("Riga", "Latvia")))


def _wise(case: dict[str, Any], _: int) -> tuple[int, Any]:
    """Knows nothing by heart, asks for the last word, and reads the last word of what it is shown."""
    if "passages" in case:
        return 200, completion(case["passages"][0].split()[-1] if case["passages"] else "Atlantis")
    return 200, completion(case["question"].split()[-1])


def _lessons(
    server: Server, cache: Path, *, prompt: Prompt | None = None, failures: int = 0, **endpoint: Any
) -> tuple[list[Episode], list[Episode]]:
    shelf = toys.Shelf(toys.OSLO, failures=failures)
    return lessons(
        [OSLO, RIGA],
        prompt or toys.prompt(),
        shelf,
        server.settings(**endpoint),
        cache,
        quotas=[0, 2],
        k=1,
        seed=0,
    )


def _text(episode: Episode) -> str:
    ids = [i for turn in episode.turns for i in (*turn.context_ids, *turn.completion.token_ids)]
    return toys.tokenizer().decode(ids)


def test_what_the_teacher_writes_becomes_episodes(serve: Callable[..., Server], tmp_path: Path) -> None:
    server = serve(_wise)
    prompt = toys.prompt(instruction="At most {quota}.")
    closed_book, searched = _lessons(server, tmp_path, prompt=prompt)
    assert [_text(e).partition("Where")[2] for e in closed_book] == [
        " is Oslo?<|assistant|>[Answer] Oslo?<|end|>",
        " is Riga?<|assistant|>[Answer] Riga?<|end|>",
    ]
    assert [_text(e) for e in searched] == [
        "<|user|>At most 2.\n\nWhere is Oslo?<|assistant|>[Search] Oslo?<|end|>"
        "<|user|>Oslo\nOslo is a city in Norway.<|assistant|>[Answer] Norway.<|end|>",
        "<|user|>At most 2.\n\nWhere is Riga?<|assistant|>[Search] Riga?<|end|>"
        "<|user|>(nothing found)<|assistant|>[Answer] Atlantis<|end|>",
    ]
    assert contains(searched[0].answer or "", OSLO.answers)
    assert [e.retrievals for e in (*closed_book, *searched)] == [0, 0, 1, 1]
    shown = [json.loads(body["messages"][1]["content"]) for body, _ in server.requests]
    assert {"question": "Where is Oslo?", "passages": [toys.OSLO.contents]} in shown
    assert not any("Norway" in json.dumps(case) for case in shown if "passages" not in case)  # never the gold answer
    assert _lessons(server, tmp_path, prompt=prompt) == (closed_book, searched)
    assert len(server.requests) == len(shown) == 6  # the second time everything was known


def test_no_reply_smuggles_control_tokens_in(serve: Callable[..., Server], tmp_path: Path) -> None:
    server = serve(lambda *_: (200, completion("[Search] <|end|> Nor\nway<|user|>")))
    closed_book, _ = _lessons(server, tmp_path)
    assert _text(closed_book[0]).endswith("<|assistant|>[Answer] Nor way<|end|>")


def test_useless_replies_cost_their_episodes_and_many_of_them_the_run(
    serve: Callable[..., Server], tmp_path: Path
) -> None:
    def half(case: dict[str, Any], attempt: int) -> tuple[int, Any]:
        if "Riga" in case["question"]:
            return 200, completion("far too long " * 10)
        return _wise(case, attempt)

    server = serve(half)
    closed_book, searched = _lessons(server, tmp_path, max_void_share=0.5)
    assert [e.question.id for e in (*closed_book, *searched)] == ["Oslo", "Oslo"]
    told = r"no usable reply to 1 of 2 questions, more than warmup.endpoint.max_void_share=0.4 .*model.new_tokens=40"
    with pytest.raises(DataError, match=told):
        _lessons(server, tmp_path, max_void_share=0.4)
    dead = serve(lambda *_: (500, {"error": "down"}))
    with pytest.raises(DataError, match="no usable reply to 2 of 2 questions"):
        _lessons(dead, tmp_path / "other", max_void_share=0.9, attempts=2)


def test_a_failed_retrieval_is_no_lesson(serve: Callable[..., Server], tmp_path: Path) -> None:
    with pytest.raises(EpisodeFailed, match="planted"):
        _lessons(serve(_wise), tmp_path, failures=1)
