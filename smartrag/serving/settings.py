"""The command line of launch/serve.py, and the token that clients must know."""

import ipaddress
import os
import re
import secrets
from collections.abc import Sequence
from dataclasses import fields

from smartrag import arguments as words
from smartrag import compose
from smartrag.arguments import ConfigError, refuse
from smartrag.commands import Serving

TOKEN_VARIABLE = "SMARTRAG_SERVE_TOKEN"
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]{16,}=*")  # what a header may hold (RFC 6750, section 2.1), and no shorter


def settings(arguments: Sequence[str]) -> tuple[Serving, list[str]]:
    """(settings, overrides of the run) of a command line. Raises ConfigError, for a useless token too."""
    names, problems, chosen = [field.name for field in fields(Serving)], [], None
    alone = next((i for i, word in enumerate(arguments) if "=" not in word and not word.startswith("-")), None)
    given = [f"run={word}" if i == alone else word for i, word in enumerate(arguments)]
    try:
        chosen, _ = compose.beside(Serving, "serve.yaml", given)
    except ConfigError as error:
        problems.append(str(error))
    else:
        problems += _out_of_bounds(chosen)
    overrides = [word for word in given if word.partition("=")[0] not in names]
    problems += words.problems(overrides, names).values()
    if (token := os.environ.get(TOKEN_VARIABLE)) is not None and not _TOKEN.fullmatch(token):
        problems.append(
            f"{TOKEN_VARIABLE} must hold 16 or more letters, digits and -._~+/; unset it, and a token is made"
        )
    refuse(problems)
    assert chosen is not None
    return chosen, overrides


def _out_of_bounds(chosen: Serving) -> list[str]:
    problems = [] if chosen.run else ["RUN must be given: the folder of a run, or a model"]
    if not chosen.host.strip():
        problems.append("host must not be empty; 127.0.0.1 is this machine alone")
    for name, low, high in (("port", 1, 65535), ("timeout_s", 1, 3600), ("waiting", 0, 65536)):
        if not low <= (value := getattr(chosen, name)) <= high:
            problems.append(f"{name} must be between {low} and {high}, got {value:g}")
    return problems


def token() -> tuple[str, bool]:
    """(the token, whether it was made here) rather than found in the environment."""
    found = os.environ.get(TOKEN_VARIABLE)
    return (found, False) if found else (secrets.token_urlsafe(32), True)


def only_here(host: str) -> bool:
    """Whether nobody but this machine reaches an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
