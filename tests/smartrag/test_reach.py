"""Whether somebody listens: real sockets, a proxy in the way, a name server that says nothing."""

import socket
import time

import pytest

from smartrag.reach import address, why_not


def test_a_listener_is_found_and_a_closed_port_is_named() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        assert why_not(f"http://127.0.0.1:{port}/v1", 5.0) == ""
        assert why_not(f"127.0.0.1:{port}", 5.0) == ""
    said = why_not(f"http://me:password@127.0.0.1:{port}/v1?key=secret", 5.0)
    assert said.startswith(f"127.0.0.1:{port} does not answer (")
    assert "password" not in said
    assert "secret" not in said
    assert why_not("", 5.0) == "it names no host"


def test_nothing_is_waited_for_longer_than_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dead name server takes 10 s and more, whatever the timeout of a socket."""
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(3) or [])
    start = time.monotonic()
    assert why_not("https://somewhere", 0.2) == "somewhere:443 does not answer within 0.2 s"
    assert time.monotonic() - start < 2


def test_a_proxy_is_who_must_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    assert address("https://hub.example/x") == ("hub.example", 443)
    assert address("http://hub.example:81") == ("hub.example", 81)
    monkeypatch.setenv("https_proxy", "http://me:password@proxy.example:3128")
    assert address("https://hub.example") == ("proxy.example", 3128)
    assert address("http://hub.example") == ("hub.example", 80)
    monkeypatch.setenv("no_proxy", "hub.example")
    assert address("https://hub.example") == ("hub.example", 443)
