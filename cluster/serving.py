"""`serve`: a trained policy behind HTTP, on Ray Serve.

    client -> Serve's proxy -> Door (a Serve deployment, cluster/door.py) -> rollout worker -> engine, retrieval

The workers are those of training and `ask`.
"""

import hashlib
import logging
import os
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayError
from ray.serve.config import HTTPOptions, ProxyLocation

from cluster import trained
from cluster.dispatch import RolloutFailed
from cluster.door import Door
from cluster.refusal import show_log
from cluster.system import BadInput, System
from cluster.trained import Trained
from smartrag.commands import Serving
from smartrag.config import Run
from smartrag.exits import STOPPED
from smartrag.serving.settings import TOKEN_VARIABLE, only_here, token
from smartrag.serving.web import Served

logger = logging.getLogger("smartrag")

_NAME = "smartrag"  # of the Serve application
_CONTROLLER = ("SERVE_CONTROLLER_ACTOR", "serve")  # name and namespace of what every Serve has one of
_LOOK_EVERY_S = 5.0  # between two looks after engines and replicas
_INTERRUPTED = 130


def serve_policy(settings: Serving, overrides: Sequence[str]) -> int:
    """Serves until it is told to stop; returns the exit code."""
    show_log()
    logging.getLogger("ray.serve").setLevel(logging.ERROR)
    signal.signal(signal.SIGTERM, _stop)
    try:
        return trained.serve(
            settings.run,
            overrides,
            lambda found, _, system: _serve(settings, found, system),
            check=lambda found: _check(settings, found.run),
        )
    except KeyboardInterrupt:
        return _INTERRUPTED
    except SystemExit as told:  # Ray's own handler, in place while it starts, says the signal's number
        return STOPPED if told.code in (STOPPED, int(signal.SIGTERM)) else 1


def _stop(*_: object) -> None:
    raise SystemExit(STOPPED)


def _check(settings: Serving, run: Run) -> None:
    """Raises BadInput where serving would be refused or unsafe, before anything is started."""
    mode, joins = os.environ.get("RAY_AUTH_MODE"), run.cluster.address or os.environ.get("RAY_ADDRESS")
    if mode != "token" and (mode or joins):
        raise BadInput(
            f"RAY_AUTH_MODE is {mode or 'not set'}: Ray and Ray Serve listen on all interfaces, and without tokens who "
            "reaches them runs code here; export RAY_AUTH_MODE=token, where a cluster that is joined is started, too"
        )
    if not joins:
        _check_free(settings.host, settings.port)


def _check_free(host: str, port: int) -> None:
    """Of this machine. Serve shares its port with whoever lets it, so it would not find out."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.bind(address)
    except OSError as error:
        raise BadInput(f"cannot listen on host={host} port={port}: {error}; choose others") from error


def _serve(settings: Serving, found: Trained, system: System) -> None:
    """Opens the door and looks after what stands behind it. Returns by an exception alone."""
    _check_alone()
    word, made = token()
    run = found.run
    served = Served(
        model=run.name,
        created=int(found.weights.stat().st_mtime) if found.weights else int(time.time()),
        token_sha256=hashlib.sha256(word.encode()).digest(),
        timeout_s=settings.timeout_s,
    )
    workers = list(system.rollout.handles().values())
    door: Any = Door  # the decorator has made a deployment of the class
    with _open(settings, door.bind(workers, run, settings.waiting, served)):
        _announce(settings, served, word, made)
        _look_after(system, settings.timeout_s, run.cluster.placement_timeout_s)


def _check_alone() -> None:
    """Raises BadInput where the cluster runs a Serve already: its address could not be chosen, nor may it be ended."""
    try:
        ray.get_actor(*_CONTROLLER)
    except ValueError:
        return
    raise BadInput(
        "Ray Serve runs on this cluster already, with an address of its own; `serve status` says what it serves, "
        "`serve shutdown` ends it; or use a Ray without it"
    )


@contextmanager
def _open(settings: Serving, door: serve.Application) -> Iterator[None]:
    """Serve with this application; ended whatever happens, and no signal comes between."""
    try:
        try:
            serve.start(
                proxy_location=ProxyLocation.HeadOnly,
                http_options=HTTPOptions(host=settings.host, port=settings.port),
            )
            serve.run(door, name=_NAME, route_prefix="/")
        except (RuntimeError, TimeoutError, RayError) as error:
            raise RolloutFailed(f"Ray Serve did not start on {settings.host}:{settings.port}: {error}") from error
        signal.signal(signal.SIGTERM, _stop)  # Ray has put its own in its place
        yield
    finally:
        for sign in (signal.SIGINT, signal.SIGTERM):
            signal.signal(sign, signal.SIG_IGN)
        serve.shutdown()


def _announce(settings: Serving, served: Served, word: str, made: bool) -> None:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    address = f"http://{host}:{settings.port}"
    print(f"{served.model} is served at {address} (a page to try it) and {address}/v1 (for OpenAI clients)", flush=True)
    print(f"the token: {word}" if made else f"the token is that of {TOKEN_VARIABLE}", flush=True)
    if not only_here(settings.host):
        logger.warning(
            "host=%s is not loopback: tokens, questions and answers travel for everybody on the way to read; put a "
            "proxy that speaks TLS before it (docs/serving.md)",
            settings.host,
        )


def _look_after(system: System, patience_s: float, longest_s: float) -> None:
    """Restarts whatever hangs. Raises RolloutFailed when no engine has been there for `longest_s`."""
    alive_at = time.monotonic()
    while True:
        time.sleep(_LOOK_EVERY_S)
        system.retrieval.restore()
        if system.rollout.revive(patience_s):
            alive_at = time.monotonic()
        elif time.monotonic() - alive_at > longest_s:
            raise RolloutFailed(f"no engine has answered for {longest_s:.0f} s; Ray's log of worker deaths says why")
