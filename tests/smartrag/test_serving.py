"""Requests, refusals, completions and chunks, through the real web application over a scripted policy."""

import asyncio
import base64
import hashlib
import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import AsyncOpenAI

from smartrag import ROOT
from smartrag.arguments import ConfigError
from smartrag.exits import USAGE_ERROR
from smartrag.serving import page, refusal, request
from smartrag.serving.capped import Capped
from smartrag.serving.refusal import Refused, Said
from smartrag.serving.request import Asked, understood
from smartrag.serving.settings import only_here, settings, token
from smartrag.serving.web import MOST_BYTES
from smartrag.types import Completion, Passage, Stop
from tests import toys
from tests.desk import TOKEN, Desk

DIRECT, SEARCHED = "Which country is Oslo in?", "Which country is Bo in?"
RAMBLING, ENDLESS, SLOW, STUCK = "Ramble!", "Go on!", "Slowly?", "Half-way?"
LOST, BUGGY, CROWDED = "Lost?", "A bug?", "Crowded?"
BO = (Passage("p1", "Bo\nBo is a city in Sierra Leone.", 2.5), Passage("p2", "Bo\nBo is a name.", 0.5))
SCRIPT: dict[str, list[Any]] = {
    DIRECT: ["[Answer] Norway"],
    SEARCHED: ["[Search] Bo", " Sierra Leone"],
    RAMBLING: ["Well"],
    ENDLESS: ["[Answer] Nor..."],
    SLOW: [9.0, "[Answer] late"],
    STUCK: ["[Search] Bo", 9.0, " late"],
    LOST: ["[Search] Bo", refusal.away()],
    BUGGY: [KeyError("a secret of the server")],
    CROWDED: [refusal.busy(3)],
}
TURNS = [
    {
        "action": "search",
        "text": "Bo",
        "forced": False,
        "passages": [
            {"id": "p1", "contents": "Bo\nBo is a city in Sierra Leone.", "score": 2.5},
            {"id": "p2", "contents": "Bo\nBo is a name.", "score": 0.5},
        ],
    },
    {"action": "answer", "text": "Sierra Leone", "forced": True, "passages": None},
]


def asking(question: Any = DIRECT, **more: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": [{"role": "user", "content": question}], **more}


def web(desk: Desk, timeout_s: float = 5.0) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(desk.application(timeout_s), raise_app_exceptions=True)
    return httpx.AsyncClient(transport=transport, base_url="http://here", headers={"Authorization": f"Bearer {TOKEN}"})


def post(body: Any, desk: Desk | None = None, timeout_s: float = 5.0) -> httpx.Response:
    async def send() -> httpx.Response:
        async with web(desk or Desk(SCRIPT, *BO), timeout_s) as client:
            return await client.post("/v1/chat/completions", json=body)

    return asyncio.run(send())


def events(reply: httpx.Response) -> list[Any]:
    assert reply.headers["content-type"].startswith("text/event-stream")
    assert reply.text.endswith("\n\n")
    lines = [event.removeprefix("data: ") for event in reply.text.split("\n\n")[:-1]]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def test_openai_client_reads_what_happened() -> None:
    async def talk() -> tuple[Any, list[Any]]:
        client = AsyncOpenAI(base_url="http://here/v1", api_key=TOKEN, http_client=web(Desk(SCRIPT, *BO)))
        messages: Any = [{"role": "user", "content": [{"type": "text", "text": SEARCHED}]}]
        whole = await client.chat.completions.create(model="tiny", messages=messages, temperature=0, seed=1, n=1)
        stream = await client.chat.completions.create(
            model="tiny", messages=messages, stream=True, stream_options={"include_usage": True}
        )
        return whole, [chunk async for chunk in stream]

    whole, chunks = asyncio.run(talk())
    assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == ("Sierra Leone", "stop")
    told = {"decision": "search", "queries": ["Bo"], "retrievals": 1, "end": "answered", "turns": TURNS}
    assert whole.model_extra["smartrag"] == told
    # The toy tokenizer has a token a byte, one for each tag and mark. A call reads all that stands before it.
    first = len(SEARCHED) + 2
    second = first + len("T Bo") + 1 + len("Bo\nBo is a city in Sierra Leone.\nBo\nBo is a name.") + 2 + 1
    written = len("T Bo") + 1 + len(" Sierra Leone") + 1
    assert whole.usage.model_dump(include={"prompt_tokens", "completion_tokens", "total_tokens"}) == {
        "prompt_tokens": first + second,
        "completion_tokens": written,
        "total_tokens": first + second + written,
    }
    assert {chunk.id for chunk in chunks} == {chunks[0].id} != {whole.id}
    assert [c.model_extra.get("smartrag") for c in chunks] == [None, {"turn": TURNS[0]}, {"turn": TURNS[1]}, told, None]
    assert [c.choices[0].delta.content for c in chunks[:-1]] == [None, None, "Sierra Leone", None]
    assert [c.choices[0].finish_reason for c in chunks[:-1]] == [None, None, None, "stop"]
    assert chunks[-1].usage == whole.usage


@pytest.mark.parametrize(
    ("body", "end", "reason"),
    [
        (asking(RAMBLING), "format_error", "stop"),
        (asking(ENDLESS), "truncated", "length"),
        (asking(SEARCHED, max_tokens=5), "truncated", "length"),  # all of it went into the query
    ],
)
def test_no_answer_is_no_empty_answer(body: dict[str, Any], end: str, reason: str) -> None:
    whole = post(body).json()
    message = whole["choices"][0]["message"]
    assert (message["content"], whole["smartrag"]["end"], whole["choices"][0]["finish_reason"]) == (None, end, reason)
    assert message["refusal"].startswith("No answer: the policy ")
    chunks = events(post(body | {"stream": True}))
    assert [c["choices"][0]["delta"].get("refusal") for c in chunks[:-1]][-2:] == [message["refusal"], None]
    assert not any(c["choices"][0]["delta"].get("content") for c in chunks[:-1])


# what is asked, the field that is blamed, what is said
REFUSED = {
    "no object": ([], None, "must be a JSON object, got a list"),
    "no model": (asking() | {"model": None}, "model", "model must be 'tiny', got None"),
    "no messages": ({"model": "tiny"}, "messages", "must be a list with one message"),
    "system": (
        {"model": "tiny", "messages": [{"role": "system", "content": "x"}, {"role": "user", "content": "y"}]},
        "messages",
        "one message of the role user, got 'system', 'user'",
    ),
    "blank": (asking(" \n"), "messages", "the question is empty"),
    "image": (asking([{"type": "image_url", "image_url": {"url": "x"}}]), "messages", "must be text"),
    "tools": (asking(tools=[{"type": "function"}]), "tools", "is not supported; leave it out"),
    "n": (asking(n=2), "n", "n=2 is not supported"),
    "n is true": (asking(n=True), "n", "n=True is not supported"),
    "hot": (asking(temperature=2.1), "temperature", "from 0 to 2, got 2.1"),
    "warm text": (asking(temperature="1"), "temperature", "from 0 to 2, got '1'"),
    "seed": (asking(temperature=1, seed=3), "seed", "seed is not supported"),
    "max": (asking(max_tokens=0), "max_tokens", "an integer from 1"),
    "two limits": (asking(max_tokens=3, max_completion_tokens=4), "max_tokens", "mean the same and differ"),
    "stream": (asking(stream="yes"), "stream", "must be true or false, got 'yes'"),
    "usage": (asking(stream_options={"include_usage": True}), "stream_options", "goes with stream=true"),
    "unknown": (asking(temprature=1), "temprature", "there is no field 'temprature'"),
    "two": (asking(n=2, stop="x"), None, "n=2 is not supported; leave it out; stop='x' is not supported"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_be_ignored_is_refused(case: str) -> None:
    body, param, said = REFUSED[case]
    reply = post(body)
    error = reply.json()["error"]
    assert (reply.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert said in error["message"]


def test_what_changes_nothing_is_taken() -> None:
    neutral = {"n": 1, "top_p": 1.0, "tools": [], "stop": None, "user": "me", "response_format": {"type": "text"}}
    assert post(asking(**neutral)).status_code == 200
    assert understood(asking(temperature=0.7, max_completion_tokens=9), "tiny").temperature == 0.7
    with pytest.raises(Refused) as other:
        understood(asking() | {"model": "huge"}, "tiny")
    assert other.value.said.status == 404


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.sampled_from([*request._READ, *request._WITHOUT_EFFECT, "user", "unheard_of"])


@given(st.dictionaries(FIELDS, JSON, max_size=4), st.booleans())
def test_whatever_is_asked_is_understood_or_refused(fields: dict[str, Any], sound: bool) -> None:
    came: Asked | Said
    try:
        came = understood((asking() if sound else {}) | fields, "tiny")
    except Refused as error:
        came = error.said
    if isinstance(came, Said):
        assert came.status in (400, 404)
        json.dumps(came.body, ensure_ascii=False).encode()  # halves of surrogate pairs are spelled out
    else:
        assert came.question.strip()
        assert 0 <= came.temperature <= 2
        assert came.max_tokens is None or came.max_tokens > 0


def test_without_the_token_nothing_is_told() -> None:
    async def statuses() -> list[tuple[str, str, int]]:
        found = []
        async with web(Desk(SCRIPT)) as client:
            for given in (
                [],
                ["Bearer wrong"],
                [f"Basic {TOKEN}"],
                [TOKEN],
                [f"Bearer {TOKEN}x"],
                [f"Bearer {TOKEN}"] * 2,
            ):
                client.headers = httpx.Headers([("Authorization", value) for value in given])
                for method, path in (
                    ("GET", "/v1/models"),
                    ("POST", "/v1/chat/completions"),
                    ("GET", "/v1/x"),
                    ("GET", "/docs"),
                ):
                    reply = await client.request(method, path, content=b"not JSON")
                    found.append((str(given), path, reply.status_code))
                    assert reply.json()["error"]["code"] == "invalid_api_key"
                    assert reply.headers["www-authenticate"] == "Bearer"
                assert (await client.get("/health")).status_code == (await client.get("/")).status_code == 200
        return found

    assert {status for _, _, status in asyncio.run(statuses())} == {401}


def test_routes_and_health() -> None:
    async def talk() -> None:
        desk = Desk(SCRIPT)
        async with web(desk) as client:
            models = (await client.get("/v1/models")).json()
            assert models["data"] == [
                {"id": "tiny", "object": "model", "created": 1_700_000_000, "owned_by": "smartrag"}
            ]
            assert (await client.get("/v1/models/tiny")).json() == models["data"][0]
            for method, path, status in (
                ("GET", "/v1/models/x", 404),
                ("GET", "/v1/x", 404),
                ("GET", "/v1/chat/completions", 405),
            ):
                reply = await client.request(method, path)
                assert (reply.status_code, reply.json()["error"]["type"]) == (status, "invalid_request_error")
            assert (await client.get("/health")).json() == {"status": "ok", "engines": 1, "of": 1}
            desk.there = 0
            assert (await client.get("/health")).status_code == 503

    asyncio.run(talk())


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize(
    ("size", "status"), [(MOST_BYTES, 400), (MOST_BYTES + 1, 413), (1_000_000, 413), (9_000_000, 413)]
)
def test_a_large_body_is_refused_before_it_is_parsed(size: int, status: int, declared: bool) -> None:
    sent = 0

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal sent
        for start in range(0, size, 50_000):
            sent += 1
            yield b"[" * min(50_000, size - start)

    async def send() -> httpx.Response:
        async with web(Desk(SCRIPT)) as client:
            return await client.post("/v1/chat/completions", content=b"[" * size if declared else pieces())

    reply = asyncio.run(send())
    assert (reply.status_code, reply.headers.get("connection")) == (status, "close" if status == 413 else None)
    assert "not JSON" in reply.text or status == 413
    assert sent < 100, "an endless body is not read to its end"


def test_what_fails_behind_it_is_said_with_a_status() -> None:
    for question, status, code in (
        (SLOW, 504, "timeout"),
        (BUGGY, 500, "internal_error"),
        (CROWDED, 429, "rate_limit_exceeded"),
    ):
        for stream in (False, True):
            desk = Desk(SCRIPT, *BO)
            reply = post(asking(question, stream=stream), desk, timeout_s=0.2)
            assert (reply.status_code, reply.json()["error"]["code"]) == (status, code)
            assert "secret" not in reply.text
            assert desk.closed == 1
    assert reply.headers["retry-after"] == "1"


def test_a_stream_that_breaks_ends_with_an_error() -> None:
    for question, code in ((STUCK, "timeout"), (LOST, "unavailable")):
        desk = Desk(SCRIPT, *BO)
        *chunks, last = events(post(asking(question, stream=True), desk, timeout_s=0.3))
        assert last["error"]["code"] == code
        assert chunks[1]["smartrag"] == {"turn": TURNS[0]}
        assert desk.closed == 1
        assert post(asking(question), timeout_s=0.3).json()["error"]["code"] == code


def test_the_cap_holds_for_all_calls_together() -> None:
    sizes = []

    async def generate(ids: Any, *, max_new_tokens: int, **_: Any) -> Completion:
        sizes.append(max_new_tokens)
        return Completion((7,) * 3, (0.0,) * 3, Stop.END, (0,) * 3)

    async def calls() -> Completion:
        capped = Capped(generate, 7)  # type: ignore[arg-type]
        for _ in range(3):
            await capped([1], max_new_tokens=5, temperature=0.0, seed=0, request_id="x")
        return await capped([1], max_new_tokens=5, temperature=0.0, seed=0, request_id="x")

    last = asyncio.run(calls())
    assert sizes == [5, 4, 1]
    assert (last.token_ids, last.stop) == ((), Stop.LENGTH)
    prompt = toys.prompt()
    assert prompt.parse(last.token_ids, last.stop).text == ""


def test_the_page_allows_its_own_style_and_script_alone() -> None:
    html, headers = page.render('<b onload=x>"')
    policy = dict(part.split(" ", 1) for part in headers["Content-Security-Policy"].split("; "))
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == policy["frame-ancestors"] == "'none'"
    for tag in ("style", "script"):
        [text] = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        assert policy[f"{tag}-src"] == f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
    assert "<b onload" not in html
    assert not re.search(r"https?://|innerHTML|insertAdjacent|document\.write|eval\(", html)


def test_a_command_line_is_judged_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SMARTRAG_SERVE_TOKEN", raising=False)
    chosen, overrides = settings(["runs/x/latest", "port=8080", "retriever.k=4"])
    assert (chosen.run, chosen.host, chosen.port, overrides) == ("runs/x/latest", "127.0.0.1", 8080, ["retriever.k=4"])
    made, is_new = token()
    assert is_new
    assert len(made) >= 43  # 32 random bytes
    monkeypatch.setenv("SMARTRAG_SERVE_TOKEN", "two words")
    with pytest.raises(ConfigError) as wrong:
        settings(["port=0", "timeout_s=0", "--daemon", "pert=1"])
    said = str(wrong.value)
    for part in ("RUN must be given", "port must be between 1 and 65535, got 0", "timeout_s must be", "'--daemon'"):
        assert part in said
    assert "SMARTRAG_SERVE_TOKEN must hold 16 or more" in said
    assert "did you mean 'port'" in said
    assert "two words" not in said
    assert [only_here(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "box")] == [True] * 3 + [False] * 2


def test_help_and_mistakes_need_nothing_heavy() -> None:
    script = str(ROOT / "launch" / "serve.py")
    blocked = "import sys, runpy; sys.modules |= {'ray': None, 'torch': None, 'fastapi': None}"
    command = [sys.executable, "-c", f"{blocked}; runpy.run_path({script!r}, run_name='__main__')"]
    done = subprocess.run([*command, "runs/x", "prt=1"], capture_output=True, text=True, timeout=120)
    assert (done.returncode, "did you mean 'port'?" in done.stderr) == (USAGE_ERROR, True)
    helped = subprocess.run([*command, "--help"], capture_output=True, text=True, timeout=120)
    assert (helped.returncode, "SMARTRAG_SERVE_TOKEN" in helped.stdout) == (0, True)
