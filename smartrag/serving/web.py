"""The HTTP side of a served policy, as a FastAPI application that knows nothing of the machines behind it.

    GET  /                      a page to try it
    GET  /health                whether an engine is there
    GET  /v1/models             the one model
    POST /v1/chat/completions   a question

All but the first two want the token, whatever else is wrong with a request. Errors are OpenAI's (refusal.py).
"""

import asyncio
import hashlib
import hmac
import json
import logging
import time
import uuid
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Protocol

from fastapi import FastAPI, Request
from fastapi.responses import Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Receive, Scope, Send

from smartrag.serving import page, refusal, response
from smartrag.serving.refusal import Refused, Said
from smartrag.serving.request import Asked, understood
from smartrag.serving.response import Head
from smartrag.types import Turn

logger = logging.getLogger("smartrag")

MOST_BYTES = 64 << 10  # of a body: a question of ten thousand words
_DRAINED = 4 << 20  # of one that is larger: so much is read and dropped, for its sender to hear why
_OPEN = ("/", "/health")
_ALWAYS = ((b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store"))


class Policy(Protocol):
    """What answers. `ask` raises Refused; `engines` is (how many are there, how many there should be)."""

    def ask(self, asked: Asked, id: str) -> AsyncGenerator[Turn, None]: ...

    def engines(self) -> tuple[int, int]: ...


@dataclass(frozen=True, slots=True)
class Served:
    """What a server says of itself and holds its clients to."""

    model: str
    created: int  # when the weights were made, seconds since 1970
    token_sha256: bytes  # the token itself is not kept
    timeout_s: float  # from a request to the end of its answer

    @property
    def card(self) -> dict[str, Any]:
        return {"id": self.model, "object": "model", "created": self.created, "owned_by": "smartrag"}


def application(policy: Policy, served: Served) -> FastAPI:
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Guard, token_sha256=served.token_sha256)
    app.add_exception_handler(Refused, _refused)
    app.add_exception_handler(HTTPException, _no_such_route)
    app.add_exception_handler(Exception, _bug)
    html, headers = page.render(served.model)

    @app.get("/")
    async def try_it() -> Response:
        return Response(html, media_type="text/html", headers=headers)

    @app.get("/health")
    async def health() -> Response:
        there, wanted = policy.engines()
        said = {"status": "ok" if there else "unavailable", "engines": there, "of": wanted}
        return _json(said, 200 if there else 503)

    @app.get("/v1/models")
    async def models() -> Response:
        return _json({"object": "list", "data": [served.card]})

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> Response:
        if name != served.model:
            raise refusal.unknown(f"there is no such model; this server has {served.model!r}", "model_not_found")
        return _json(served.card)

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await _chat(request, policy, served)

    return app


async def _chat(request: Request, policy: Policy, served: Served) -> Response:
    deadline = asyncio.get_running_loop().time() + served.timeout_s
    asked = understood(await _parsed(request, deadline), served.model)
    head = Head(uuid.uuid4().hex, int(time.time()), served.model)
    turns = _in_time(policy.ask(asked, head.id), deadline, served.timeout_s)
    if not asked.stream:
        return _json(response.completion(head, [turn async for turn in turns]))
    first = await anext(turns)  # what goes wrong before has a status of its own
    headers = {"X-Accel-Buffering": "no"}  # nginx would hold back what is to be seen at once
    return StreamingResponse(
        _events(head, first, turns, with_usage=asked.with_usage), media_type="text/event-stream", headers=headers
    )


async def _events(
    head: Head, first: Turn, turns: AsyncGenerator[Turn, None], *, with_usage: bool
) -> AsyncGenerator[bytes, None]:
    """Server-sent events. Where it goes wrong half-way the last one is an error, and nothing says that it is done."""
    seen = [first]
    async with aclosing(turns):
        yield response.event(response.opening(head))
        yield response.event(response.happened(head, first))
        try:
            async for turn in turns:
                seen.append(turn)
                yield response.event(response.happened(head, turn))
        except Refused as error:
            yield response.event(error.said.body)
            return
    for chunk in response.closing(head, seen, with_usage=with_usage):
        yield response.event(chunk)
    yield response.DONE


async def _in_time(turns: AsyncGenerator[Turn, None], deadline: float, timeout_s: float) -> AsyncGenerator[Turn, None]:
    """`turns`, each before `deadline` on the loop's clock. Raises nothing but Refused."""
    async with aclosing(turns):
        try:
            while True:
                async with asyncio.timeout_at(deadline):
                    turn = await anext(turns)
                yield turn
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise refusal.late(timeout_s) from None
        except Refused:
            raise
        except Exception:
            logger.exception("a question failed")
            raise refusal.broken() from None


async def _parsed(request: Request, deadline: float) -> Any:
    try:
        async with asyncio.timeout_at(deadline):
            body = await _body(request)
    except (TimeoutError, ClientDisconnect):
        raise refusal.unfinished() from None
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise refusal.invalid(f"the body is not JSON: {error}") from None


async def _body(request: Request) -> bytes:
    """All of it, whether its length was declared or not. Raises Refused when it is too large."""
    length = request.headers.get("content-length", "0")
    declared = int(length) if length.isdecimal() and len(length) < 20 else 0
    size, kept = 0, bytearray()
    if declared <= _DRAINED:
        async for chunk in request.stream():
            size += len(chunk)
            if size <= MOST_BYTES:
                kept += chunk
            elif size > _DRAINED:
                break
    if max(size, declared) > MOST_BYTES:
        raise refusal.too_large(MOST_BYTES)
    return bytes(kept)


class Guard:
    """Nobody comes in without the token, and every response says how it may be used."""

    def __init__(self, app: ASGIApp, token_sha256: bytes):
        self._app, self._token_sha256 = app, token_sha256

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return

        async def marked(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *_ALWAYS]
            await send(message)

        if scope["type"] == "http" and scope["path"] not in _OPEN:
            given = [value for name, value in scope["headers"] if name == b"authorization"]
            if not self._admits(given):
                await _said(refusal.unauthorised(bool(given)).said)(scope, receive, marked)
                return
        await self._app(scope, receive, marked)

    def _admits(self, given: list[bytes]) -> bool:
        """In a time that does not tell how much of a token is right."""
        if len(given) != 1:
            return False
        scheme, _, token = given[0].partition(b" ")
        right = hmac.compare_digest(hashlib.sha256(token.strip()).digest(), self._token_sha256)
        return right and scheme.lower() == b"bearer"


def _json(data: Mapping[str, Any], status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    text = json.dumps(data, ensure_ascii=False).encode("utf-8", errors="replace")
    return Response(text, status, headers, media_type="application/json")


def _said(said: Said) -> Response:
    return _json(said.body, said.status, said.headers)


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return _said(error.said)


async def _bug(_: Request, error: Exception) -> Response:
    """Starlette raises it again behind this, for the log."""
    return _said(refusal.broken().said)


async def _no_such_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    where = f"{request.method} {request.url.path[:80]!r}"
    message = f"{where}: {error.detail}; there are GET /v1/models and POST /v1/chat/completions"
    return _said(Said(error.status_code, message, "invalid_request_error", "unknown_url"))
