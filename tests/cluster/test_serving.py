"""A trained policy behind HTTP, for real: one server on the tiny model, asked by OpenAI's client and by a browser."""

import asyncio
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from openai import AsyncOpenAI, AuthenticationError, BadRequestError, OpenAI
from playwright.sync_api import expect

from cluster.checkpoint import Checkpoints
from smartrag import ROOT
from smartrag.compose import as_yaml, load
from smartrag.data import world
from smartrag.exits import STOPPED
from tests import browser
from tests.browser import Visit
from tests.processes import free_port

pytestmark = pytest.mark.slow

START_S, BACK_S = 400, 200
CITIES = ("Jonkoping", "Oslo", "Wels", "Ede", "Como", "Bo", "Turin", "Perth")
QUESTIONS = [f"Which country is {city} in?" for city in CITIES]


@dataclass(frozen=True)
class Server:
    process: subprocess.Popen[str]
    address: str
    token: str

    def client(self) -> OpenAI:
        return OpenAI(base_url=f"{self.address}/v1", api_key=self.token, timeout=60)

    def processes(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def post(self, body: Any = None, token: str | None = None, **more: Any) -> httpx.Response:
        given = self.token if token is None else token
        headers = {"Authorization": f"Bearer {given}"} if given else {}
        content = {} if "content" in more else {"json": body}
        with httpx.Client(trust_env=False, timeout=60) as client:
            return client.post(f"{self.address}/v1/chat/completions", headers=headers, **content, **more)


def _data(folder: Path) -> Path:
    """Some of the world's passages, and a few questions for each split."""
    folder.mkdir()
    passages = world.corpus()
    wanted = [p for i, p in enumerate(passages) if i % 20 == 0 or p["contents"].split("\n")[0] in CITIES]
    rows: dict[str, list[dict[str, Any]]] = {"corpus": wanted}
    for split, city in zip(("train", "dev", "test"), CITIES, strict=False):
        rows[split] = [{"id": split, "question": f"Which country is {city} in?", "answers": ["x"], "meta": {}}]
    for name, lines in rows.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """launch/serve.py in a process of its own, with a token that it has made, on a Ray of its own with tokens."""
    top = tmp_path_factory.mktemp("served")
    data = _data(top / "data")
    changes = ["data=folder", f"data.source={data}", f"cache={top / 'cache'}"]
    (top / "run").mkdir()
    (top / "run" / "config.yaml").write_text(as_yaml(load(["+experiment=quickstart", *changes])))
    with Checkpoints(top / "run" / "checkpoints", keep=1).publish(1, {"steps_done": 1}) as draft:
        shutil.copytree(ROOT / "models" / "tiny", draft / "policy")
    port = free_port()
    env = os.environ | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    for name in ("RAY_ADDRESS", "SMARTRAG_SERVE_TOKEN"):
        env.pop(name, None)
    command = [sys.executable, str(ROOT / "launch" / "serve.py"), str(top / "run"), f"port={port}", "timeout_s=30"]
    began = time.monotonic()
    with (top / "log").open("w") as log:
        process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=log, text=True)
    try:
        assert process.stdout is not None
        lines = []
        while len(lines) < 2:
            assert time.monotonic() - began < START_S
            lines.append(process.stdout.readline())
            assert lines[-1], (top / "log").read_text()[-4000:]
        print(f"\nserved after {time.monotonic() - began:.1f} s")
        address = re.search(r"http://\S+:\d+", lines[0])
        assert address is not None, lines
        yield Server(process, address[0], lines[1].split()[-1])
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(90)
        print((top / "log").read_text()[-4000:])


def _messages(question: str) -> Any:
    return [{"role": "user", "content": question}]


def test_openai_client_gets_the_same_at_once_and_in_a_stream(server: Server) -> None:
    client, searches, seconds = server.client(), 0, []
    assert [model.id for model in client.models.list()] == ["quickstart"]
    for question in QUESTIONS:
        began = time.monotonic()
        whole = client.chat.completions.create(model="quickstart", messages=_messages(question))
        seconds.append(time.monotonic() - began)
        chunks = list(
            client.chat.completions.create(
                model="quickstart",
                messages=_messages(question),
                stream=True,
                stream_options={"include_usage": True},
            )
        )
        message, told = whole.choices[0].message, whole.model_extra["smartrag"]
        deltas = [chunk.choices[0].delta for chunk in chunks if chunk.choices]
        assert [d.content for d in deltas if d.content] == ([message.content] if message.content else [])
        assert [d.refusal for d in deltas if d.refusal] == ([message.refusal] if message.refusal else [])
        assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
        assert chunks[-2].model_extra["smartrag"] == told
        assert chunks[-1].usage == whole.usage
        ours = [chunk.model_extra.get("smartrag", {}) for chunk in chunks]
        assert [field["turn"] for field in ours if "turn" in field] == told["turns"]
        assert (message.content is None) == (told["end"] != "answered") == (message.refusal is not None)
        for turn in told["turns"][:-1]:
            assert 0 <= len(turn["passages"]) <= 2
            scores = [passage["score"] for passage in turn["passages"]]
            assert scores == sorted(scores, reverse=True)
        searches += told["retrievals"]
    print(f"{len(QUESTIONS)} questions, {searches} searches, median {sorted(seconds)[len(seconds) // 2]:.3f} s each")
    assert searches > 0, "or nothing was shown of passages"


def test_32_clients_at_once_are_all_answered_as_one_is(server: Server) -> None:
    alone = {q: server.client().chat.completions.create(model="quickstart", messages=_messages(q)) for q in QUESTIONS}

    async def ask(number: int) -> tuple[str, Any]:
        question = QUESTIONS[number % len(QUESTIONS)]
        async with AsyncOpenAI(base_url=f"{server.address}/v1", api_key=server.token, max_retries=0) as client:
            return question, await client.chat.completions.create(model="quickstart", messages=_messages(question))

    async def everybody() -> list[tuple[str, Any]]:
        return await asyncio.gather(*map(ask, range(32)))

    began = time.monotonic()
    found = asyncio.run(everybody())
    print(f"32 clients at once: {time.monotonic() - began:.2f} s")
    assert len({answer.id for _, answer in found}) == 32
    for question, answer in found:
        assert answer.choices == alone[question].choices


def test_who_is_refused_hears_why(server: Server) -> None:
    with pytest.raises(AuthenticationError, match="is not the one of this server"):
        OpenAI(base_url=f"{server.address}/v1", api_key="wrong" * 8).models.list()
    missing = server.post({}, token="")
    assert (missing.status_code, missing.json()["error"]["code"]) == (401, "invalid_api_key")

    megabyte = b"x" * 1_000_000
    for content in (megabyte, iter([megabyte[:1000]] * 1000)):  # with and without a Content-Length
        large = server.post(content=content)
        assert (large.status_code, large.json()["error"]["code"]) == (413, "request_too_large")
    assert server.post(content=b"x" * 70_000, token="wrong").status_code == 401

    with pytest.raises(BadRequestError, match="no room for an answer") as long:
        server.client().chat.completions.create(model="quickstart", messages=_messages("Oslo? " * 2000))
    assert long.value.code == "context_length_exceeded"
    cut = server.post({"model": "quickstart", "messages": _messages(QUESTIONS[0]), "max_tokens": 1}).json()
    assert cut["choices"][0]["finish_reason"] == "length"
    assert cut["choices"][0]["message"]["content"] is None
    assert cut["usage"]["completion_tokens"] == 1

    open_ones = [c for p in server.processes() for c in p.net_connections("tcp") if c.status == "LISTEN"]
    assert {c.laddr.ip for c in open_ones if c.laddr.port == httpx.URL(server.address).port} == {"127.0.0.1"}


@pytest.mark.skipif(browser.installed() is None, reason="no Chromium or Chrome on PATH; make browser as root")
@pytest.mark.parametrize(("width", "dark"), [(1100, False), (390, True)])
def test_the_page_asks_and_shows_what_happens(server: Server, tmp_path: Path, width: int, dark: bool) -> None:
    with browser.chromium() as chromium, Visit(chromium, f"{server.address}/", width=width, dark=dark) as visit:
        page = visit.page
        page.get_by_label("Token").fill("wrong" * 8)
        page.get_by_label("Question").fill(QUESTIONS[0])
        page.get_by_role("button", name="Ask").click()
        expect(page.locator("article").first).to_contain_text("is not the one of this server")
        assert "401 (Unauthorized)" in visit.errors.pop(0)
        page.get_by_label("Token").fill(server.token)
        for question in QUESTIONS[1::-1]:
            page.get_by_label("Question").fill(question)
            page.get_by_label("Question").press("Enter")
            expect(page.locator("article").first.locator(".outcome")).to_contain_text("tokens read", timeout=30_000)
            asked = server.client().chat.completions.create(model="quickstart", messages=_messages(question))
            turns = asked.model_extra["smartrag"]["turns"]
            shown = page.locator("article").first.locator(".moves > li")
            assert [turn["text"] for turn in turns] == shown.locator(".text").all_inner_texts()
            passages = [passage for turn in turns for passage in turn["passages"] or ()]
            assert shown.locator("blockquote").count() == len(passages)
        assert page.evaluate("sessionStorage.length === 1 && localStorage.length === 0")
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        # Chromium may call a stream that was read to its end aborted; that the page has all of it was seen above.
        assert {error for error in visit.errors if error != f"failed: {server.address}/v1/chat/completions"} == set()
        assert {httpx.URL(request).host for request in visit.requests} == {"127.0.0.1"}
        picture = Path(os.environ.get("SMARTRAG_PICTURE", tmp_path)) / f"serve-{width}.png"
        page.screenshot(path=picture, full_page=True)
        print(f"{picture}: {picture.stat().st_size:,} bytes")
        assert picture.stat().st_size < 200_000
        page.reload()
        expect(page.get_by_label("Token")).to_have_value(server.token)


def test_a_lost_worker_is_a_clear_503_and_then_it_answers_again(server: Server) -> None:
    [worker] = [p for p in server.processes() if "RolloutWorker" in " ".join(p.cmdline())]
    body = {"model": "quickstart", "messages": _messages(QUESTIONS[0])}
    before = server.post(body).json()["choices"]
    worker.kill()
    began, seen = time.monotonic(), []
    while time.monotonic() - began < BACK_S and (not seen or seen[-1] != 200):
        reply = server.post(body)
        seen.append(reply.status_code)
        if reply.status_code == 503:
            assert reply.json()["error"]["code"] == "unavailable"
            assert int(reply.headers["Retry-After"]) > 0
            time.sleep(0.5)
    print(f"after the kill: {seen.count(503)} times 503, answered again after {time.monotonic() - began:.1f} s")
    assert set(seen) <= {200, 503}
    assert seen[-1] == 200
    assert server.post(body).json()["choices"] == before
    assert httpx.get(f"{server.address}/health", trust_env=False).json() == {"status": "ok", "engines": 1, "of": 1}


def test_sigterm_leaves_nothing(server: Server) -> None:
    ours = server.processes()
    began = time.monotonic()
    server.process.send_signal(signal.SIGTERM)
    assert server.process.wait(90) == STOPPED
    print(f"ended after {time.monotonic() - began:.1f} s")
    _, left = psutil.wait_procs(ours, timeout=30)
    assert left == []
