"""A retriever behind HTTP: a real server on this machine that says what a test wants, the worst of it included."""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from cluster import remote
from cluster.remote import Remote, ServiceProblem, check_service
from cluster.replica import RetrievalReplica
from smartrag.compose import load
from smartrag.config import Service
from smartrag.types import Empty, Failed, Hits, Passage

SHELF = {
    "oslo": [{"id": f"p{i}", "contents": f"Oslo\nfact {i}", "score": 9.5 - i, "more": True} for i in range(6)],
    "zürich 東京": [{"id": "z", "contents": "Zürich\n", "score": 1}],
}
DRIP = object()  # a sound answer, a byte at a time
CHUNKED = object()  # a sound answer in chunks


class Shop:
    """Answers as `reply(body, attempt)` says: (status, what to send), or None to close the connection at once."""

    def __init__(self, reply: Callable[[dict[str, Any], int], tuple[int, Any] | None]):
        self.requests: list[tuple[dict[str, Any], dict[str, str]]] = []
        shop = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                said = reply(body, sum(body == earlier for earlier, _ in shop.requests))
                shop.requests.append((body, {name.lower(): value for name, value in self.headers.items()}))
                self.close_connection = said is None
                if said is not None:
                    self._send(body, *said)

            def _send(self, body: dict[str, Any], status: int, answer: Any) -> None:
                sound = json.dumps(found(body)).encode()
                raw = (
                    sound
                    if answer in (DRIP, CHUNKED)
                    else answer
                    if isinstance(answer, bytes)
                    else json.dumps(answer).encode()
                )
                try:
                    self.send_response(status)
                    if status == 307:
                        self.send_header("location", "/elsewhere")
                    if answer is CHUNKED:
                        self.send_header("transfer-encoding", "chunked")
                    else:
                        self.send_header("content-length", str(len(raw)))
                    self.end_headers()
                    for part in [raw[i : i + 1] for i in range(len(raw))] if answer is DRIP else [raw[:9], raw[9:]]:
                        self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part) if answer is CHUNKED else part)
                        time.sleep(0.05 if answer is DRIP else 0)
                    if answer is CHUNKED:
                        self.wfile.write(b"0\r\n\r\n")
                except (BrokenPipeError, ConnectionResetError):
                    self.close_connection = True

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def service(self, **changes: Any) -> Service:
        url = f"http://127.0.0.1:{self.http.server_address[1]}/search"
        return Service(**{"url": url, "key_variable": None, "timeout_s": 5.0, "attempts": 3} | changes)


def found(body: dict[str, Any]) -> dict[str, Any]:
    return {"results": [SHELF.get(query.lower(), [])[: body["k"]] for query in body["queries"]]}


@pytest.fixture
def shop() -> Iterator[Callable[..., Shop]]:
    open_: list[Shop] = []

    def start(reply: Callable[[dict[str, Any], int], Any] = lambda body, _: (200, found(body))) -> Shop:
        open_.append(Shop(reply))
        return open_[-1]

    yield start
    for one in open_:
        one.http.shutdown()
        one.http.server_close()


def hits(*numbers: int) -> Hits:
    return Hits(tuple(Passage(f"p{i}", f"Oslo\nfact {i}", 9.5 - i) for i in numbers))


def test_a_batch_is_one_request_and_each_query_gets_its_k(shop: Callable[..., Shop], monkeypatch: Any) -> None:
    monkeypatch.setenv("SHOP_KEY", "secret")
    one = shop()
    searcher = Remote(one.service(key_variable="SHOP_KEY"))
    answers = searcher.search(["Oslo", "nothing", "Zürich 東京", "Oslo"], [2, 4, 3, 1])
    assert answers == [hits(0, 1), Empty(), Hits((Passage("z", "Zürich\n", 1.0),)), hits(0)]
    [(body, headers)] = one.requests
    assert body == {"queries": ["Oslo", "nothing", "Zürich 東京", "Oslo"], "k": 4}
    assert headers["authorization"] == "Bearer secret"
    assert headers["content-type"] == "application/json"
    assert (
        searcher.fingerprint == Remote(one.service()).fingerprint != Remote(one.service(url="http://h/x")).fingerprint
    )


def test_more_than_k_are_cut_and_chunks_are_put_together(shop: Callable[..., Shop]) -> None:
    one = shop(lambda body, _: (200, {"results": [SHELF["oslo"]] * len(body["queries"])}))
    assert Remote(one.service()).search(["a", "b"], [1, 2]) == [hits(0), hits(0, 1)]
    assert Remote(shop(lambda *_: (200, CHUNKED)).service()).search(["Oslo"], [2]) == [hits(0, 1)]


@pytest.mark.fault("Q12", "a retrieval service is busy, restarts, or closes connections")
@pytest.mark.parametrize("first", [(500, {}), (503, b"busy"), (429, {}), (502, b""), None])
def test_what_may_pass_is_tried_again(first: Any, shop: Callable[..., Shop]) -> None:
    one = shop(lambda body, attempt: first if attempt == 0 else (200, found(body)))
    assert Remote(one.service()).search(["Oslo"], [1]) == [hits(0)]
    assert len(one.requests) == 2


PASSAGE = {"id": "p", "contents": "text", "score": 1.0}
GARBAGE: dict[str, tuple[Any, str]] = {
    "no JSON": (b"<html>oops</html>", "answered what is no JSON (Expecting value: line 1 column 1 (char 0)): b'<html>"),
    "no UTF-8": (b'"\xff"', "answered what is no JSON ("),
    "cut short": (b'{"results": [', "answered what is no JSON ("),
    "deep": (b"[" * 100_000, "answered what is no JSON ("),
    "a list": ([], 'answered without a list of "results": []'),
    "no results": ({"hits": []}, 'answered without a list of "results": {"hits": []}'),
    "too few results": ({"results": [[]]}, "gave 1 results for 2 queries"),
    "too many results": ({"results": [[], [], []]}, "gave 3 results for 2 queries"),
    "no list": ({"results": [[], {}]}, "a result is no list: {}"),
    "no object": ({"results": [[], ["x"]]}, 'a passage is no object: "x"'),
    "no id": ({"results": [[], [{"contents": "x", "score": 1}]]}, 'field "id" of a passage must be a text of 1 to'),
    "a number for an id": ({"results": [[], [PASSAGE | {"id": 7}]]}, "characters, got 7"),
    "blank contents": (
        {"results": [[], [PASSAGE | {"contents": " "}]]},
        'field "contents" of a passage must be a text',
    ),
    "a huge passage": ({"results": [[], [PASSAGE | {"contents": "x" * 1_000_001}]]}, "a text of 1 to 1,000,000"),
    "no score": (
        {"results": [[], [{"id": "p", "contents": "x"}]]},
        'field "score" of a passage must be a finite number',
    ),
    "a score of no number": (
        b'{"results": [[], [{"id": "p", "contents": "x", "score": NaN}]]}',
        "a finite number, got NaN",
    ),
}


@pytest.mark.fault("Q13", "a retrieval service answers garbage")
@pytest.mark.parametrize("what", GARBAGE)
def test_garbage_is_a_failure_and_never_an_empty_result(what: str, shop: Callable[..., Shop]) -> None:
    answer, said = GARBAGE[what]
    failed = Remote(shop(lambda *_: (200, answer)).service()).search(["Oslo", "nothing"], [2, 2])
    assert all(isinstance(one, Failed) for one in failed)
    assert said in failed[0].reason  # type: ignore[union-attr]
    assert len(failed) == 2


@pytest.mark.parametrize(
    ("reply", "said", "requests"),
    [
        (lambda *_: (500, b"out of  cheese"), "HTTP 500 'out of cheese'", 3),
        (lambda *_: (404, b"no such path"), "HTTP 404 'no such path'", 1),
        (lambda *_: (401, {}), "HTTP 401 '{}'", 1),
        (lambda *_: (307, b""), "HTTP 307 ''", 1),
        (lambda *_: None, "Remote end closed connection without response", 3),
    ],
)
def test_what_does_not_pass_is_a_failure(reply: Any, said: str, requests: int, shop: Callable[..., Shop]) -> None:
    one = shop(reply)
    [failed] = Remote(one.service()).search(["Oslo"], [1])
    assert isinstance(failed, Failed)
    assert failed.reason.startswith(one.service().url)
    assert said in failed.reason
    assert len(one.requests) == requests


@pytest.mark.fault("Q14", "a retrieval service is silent, drips, or floods")
def test_no_answer_takes_longer_than_its_time_or_more_than_its_room(
    shop: Callable[..., Shop], monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(body: dict[str, Any], _: int) -> tuple[int, Any]:
        time.sleep(1.0)
        return 200, found(body)

    for reply, said in [(silent, "Read timed out"), (lambda *_: (200, DRIP), "was still answering after 0.3 s")]:
        start = time.monotonic()
        [failed] = Remote(shop(reply).service(timeout_s=0.3, attempts=1)).search(["Oslo"], [4])
        assert isinstance(failed, Failed)
        assert said in failed.reason
        assert time.monotonic() - start < 0.9
    monkeypatch.setattr(remote, "MAX_ANSWER_BYTES", 1000)
    [failed] = Remote(shop(lambda *_: (200, b" " * 5000)).service()).search(["Oslo"], [1])
    assert failed == Failed(failed.reason)
    assert "answered with more than" in failed.reason


def test_a_service_asks_for_a_pause_of_an_hour_and_gets_seconds() -> None:
    searcher = Remote(Service(url="http://127.0.0.1:9/", key_variable=None, timeout_s=1.0, attempts=3))
    assert searcher._http.connection_pool_kw["retries"].retry_after_max == remote.LONGEST_PAUSE_S


def test_it_is_asked_before_a_run(shop: Callable[..., Shop], monkeypatch: pytest.MonkeyPatch) -> None:
    check_service(shop().service())
    check_service(shop(lambda body, _: (200, {"results": [[]]})).service())  # it may know nothing of the probe
    with pytest.raises(
        ServiceProblem, match=r"retriever\.http\.url does not serve: http://127.*HTTP 404.*See that it is"
    ):
        check_service(shop(lambda *_: (404, b"")).service())
    with pytest.raises(ServiceProblem, match=r"retriever\.http\.url does not serve: .*Connection refused"):
        check_service(Service(url="http://127.0.0.1:9/x", key_variable=None, timeout_s=1.0, attempts=1))
    monkeypatch.delenv("SHOP_KEY", raising=False)
    with pytest.raises(
        ServiceProblem, match=r"SHOP_KEY \(retriever\.http\.key_variable\) is not set where the service"
    ):
        check_service(shop().service(key_variable="SHOP_KEY"))


def test_a_replica_batches_into_it(shop: Callable[..., Shop]) -> None:
    up = [True]
    one = shop(lambda body, _: (200, found(body)) if up else (404, b""))
    run = load(["retriever=http", f"retriever.http.url={one.service().url}", "retriever.batch_wait_ms=50"])
    replica = RetrievalReplica(replace(run.retriever, max_batch=8), None)

    async def ask() -> list[object]:
        return await asyncio.gather(*(replica.search("Oslo", k) for k in (1, 2, 3)), replica.search(" ", 1))

    assert asyncio.run(ask()) == [hits(0), hits(0, 1), hits(0, 1, 2), Empty()]
    assert len(one.requests) == 1
    up.clear()
    assert isinstance(asyncio.run(replica.search("Oslo", 1)), Failed)
