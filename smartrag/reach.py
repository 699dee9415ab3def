"""Whether somebody listens at a URL, found out in a bounded time and without sending anything."""

import socket
import threading
import urllib.parse
import urllib.request

_PORTS = {"http": 80, "https": 443}


def why_not(url: str, seconds: float) -> str:
    """Why nobody listens at `url`, or at the proxy that stands before it, within `seconds`; "" when somebody does.

    The name is looked up within that time too, on which sockets themselves set no limit. What it says names host and
    port alone: a URL may hold a password.
    """
    host, port = address(url)
    if not host:
        return "it names no host"
    said = [f"{host}:{port} does not answer within {seconds:g} s"]

    def knock() -> None:
        try:
            socket.create_connection((host, port), timeout=seconds).close()
            said[0] = ""
        except OSError as error:
            said[0] = f"{host}:{port} does not answer ({error.strerror or error})"

    thread = threading.Thread(target=knock, daemon=True)
    thread.start()
    thread.join(seconds)
    return said[0]


def address(url: str) -> tuple[str, int]:
    """(host, port) that a client connects to for `url`: its own, or those of the proxy in the environment.

    A URL without a scheme is host:port. The host is empty where there is none.
    """
    parts = urllib.parse.urlsplit(url if "://" in url else f"//{url}")
    proxy = urllib.request.getproxies().get(parts.scheme, "")
    if proxy and parts.hostname and not urllib.request.proxy_bypass(parts.hostname):
        parts = urllib.parse.urlsplit(proxy if "://" in proxy else f"//{proxy}")
    return parts.hostname or "", parts.port or _PORTS.get(parts.scheme, 80)
