"""A retriever that is somebody else's service, asked over HTTP.

    POST {"queries": ["...", ...], "k": 4}
    200  {"results": [[{"id": "p1", "contents": "title\\ntext", "score": 7.1}, ...], ...]}

One list a query, in the order of the queries, best first; an empty list is what nothing found comes to. More than k
are cut, fewer are taken as they are. Whatever else happens is a failure: asked again, never shown to the policy.
"""

import hashlib
import json
import math
import os
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any

import urllib3
from urllib3.exceptions import HTTPError
from urllib3.util import Retry, Timeout

from smartrag.check import LONGEST_PAUSE_S
from smartrag.config import Service
from smartrag.types import Empty, Failed, Hits, Passage, Retrieved

PROBE = "Oslo"
MAX_ANSWER_BYTES = 64 << 20
MAX_CHARACTERS = 1_000_000  # of one passage, as of the data's own
_FIRST_PAUSE_S = 0.5  # doubles with each attempt
_AGAIN = (408, 429, 500, 502, 503, 504)
_CHUNK = 1 << 16


class ServiceProblem(RuntimeError):
    """The service is not to be had, or does not keep to the form."""


class Remote:
    """Implements `Searcher`. A search takes at most (attempts + 1) · timeout_s + (attempts − 1) · LONGEST_PAUSE_S."""

    def __init__(self, service: Service) -> None:
        """Raises ServiceProblem when its key is not set in this process."""
        self._service = service
        retry = Retry(
            total=service.attempts - 1,
            redirect=0,
            status_forcelist=_AGAIN,
            allowed_methods=None,  # a search may be asked twice
            backoff_factor=_FIRST_PAUSE_S,
            backoff_max=LONGEST_PAUSE_S,
            retry_after_max=int(LONGEST_PAUSE_S),
            raise_on_status=False,
            raise_on_redirect=False,
        )
        self._http = urllib3.PoolManager(retries=retry, timeout=Timeout(service.timeout_s))
        self._headers = {"accept": "application/json"}
        if service.key_variable is not None:
            if not (key := os.environ.get(service.key_variable)):
                raise ServiceProblem(
                    f"the environment variable {service.key_variable} (retriever.http.key_variable) is not set "
                    "where the service is asked from; set it on the nodes of the retrieval replicas too, or leave "
                    "key_variable null"
                )
            self._headers["authorization"] = f"Bearer {key}"

    @property
    def fingerprint(self) -> str:
        """Of where it is: what it holds is not ours to know."""
        return hashlib.sha256(self._service.url.encode()).hexdigest()[:16]

    def search(self, queries: Sequence[str], ks: Sequence[int]) -> list[Retrieved]:
        """All in one request; all of them Failed where it fails."""
        try:
            results = _results(self._post({"queries": list(queries), "k": max(ks)}), len(queries))
            return [_outcome(found, k) for found, k in zip(results, ks, strict=True)]
        except (ServiceProblem, HTTPError) as error:
            return [Failed(f"{self._service.url}: {_told(error)}")] * len(queries)

    def _post(self, body: Mapping[str, Any]) -> Any:
        """The parsed answer. Raises ServiceProblem, HTTPError."""
        response = self._http.request(
            "POST", self._service.url, json=body, headers=self._headers, preload_content=False, redirect=False
        )
        try:
            if response.status != 200:
                said = response.read(200).decode("utf-8", "replace").strip()
                raise ServiceProblem(f"HTTP {response.status} {' '.join(said.split())!r}")
            raw, end = bytearray(), time.monotonic() + self._service.timeout_s
            while chunk := response.read1(_CHUNK):
                raw += chunk
                if len(raw) > MAX_ANSWER_BYTES:
                    raise ServiceProblem(f"answered with more than {MAX_ANSWER_BYTES >> 20} MiB")
                if time.monotonic() > end:
                    raise ServiceProblem(f"was still answering after {self._service.timeout_s:g} s")
        finally:
            response.close()
        try:
            return json.loads(raw)
        except (ValueError, RecursionError) as error:
            raise ServiceProblem(f"answered what is no JSON ({error}): {bytes(raw[:80])!r}") from error


def check_service(service: Service) -> None:
    """Asks it once, for PROBE. Raises ServiceProblem."""
    [answer] = Remote(service).search([PROBE], [1])
    if isinstance(answer, Failed):
        raise ServiceProblem(
            f"retriever.http.url does not serve: {answer.reason}. See that it is up and answers "
            f'POST {{"queries": ["{PROBE}"], "k": 1}} as docs/bring-your-own.md says'
        )


def _results(answer: Any, count: int) -> list[Any]:
    results = answer.get("results") if isinstance(answer, dict) else None
    if not isinstance(results, list):
        raise ServiceProblem(f'answered without a list of "results": {_short(answer)}')
    if len(results) != count:
        raise ServiceProblem(f"gave {len(results)} results for {count} queries")
    return results


def _outcome(found: Any, k: int) -> Retrieved:
    if not isinstance(found, list):
        raise ServiceProblem(f"a result is no list: {_short(found)}")
    passages = tuple(_passage(hit) for hit in found[:k])
    return Hits(passages) if passages else Empty()


def _passage(hit: Any) -> Passage:
    if not isinstance(hit, dict):
        raise ServiceProblem(f"a passage is no object: {_short(hit)}")
    for name in ("id", "contents"):
        text = hit.get(name)
        if not isinstance(text, str) or not text.strip() or len(text) > MAX_CHARACTERS:
            limit = f"a text of 1 to {MAX_CHARACTERS:,} characters"
            raise ServiceProblem(f'field "{name}" of a passage must be {limit}, got {_short(text)}')
    score = hit.get("score")
    if isinstance(score, bool) or not isinstance(score, int | float) or not math.isfinite(score):
        raise ServiceProblem(f'field "score" of a passage must be a finite number, got {_short(score)}')
    return Passage(hit["id"], hit["contents"], float(score))


def _short(value: Any) -> str:
    return json.dumps(value, default=str)[:80]


def _told(error: Exception) -> str:
    """In one line, without the objects and numbers that urllib3 and the system put into it."""
    cause = getattr(error, "reason", None)
    said = str(cause if isinstance(cause, Exception) else error)
    return re.sub(r"\w+Connection(Pool)?\([^()]*\): |<[^<>]*>: |\[Errno -?\d+\] ", "", " ".join(said.split()))
