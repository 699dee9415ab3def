"""What a client is refused with: a status and an error object as OpenAI's endpoints send them.

https://platform.openai.com/docs/guides/error-codes names the codes; `message` says what is wrong and what to do.
"""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Said:
    """What the client gets to see."""

    status: int  # of HTTP
    message: str
    kind: str  # "type" of the error object
    code: str
    param: str | None = None  # the one field of the request that is to blame
    retry_after_s: int | None = None  # when to come again

    @property
    def body(self) -> dict[str, Any]:
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        found = {} if self.retry_after_s is None else {"Retry-After": str(self.retry_after_s)}
        if self.status == 401:
            found["WWW-Authenticate"] = "Bearer"
        if self.status in (401, 408, 413):  # the rest of the body is not read
            found["Connection"] = "close"
        return found


class Refused(Exception):
    """A request that gets no answer, and what is said instead."""

    def __init__(self, said: Said):
        super().__init__(said.message)
        self.said = said


def invalid(message: str, param: str | None = None, code: str = "invalid_request") -> Refused:
    return Refused(Said(400, message, "invalid_request_error", code, param))


def unauthorised(given: bool) -> Refused:
    what = "is not the one of this server" if given else "is missing"
    message = f"the token {what}; send the header Authorization: Bearer TOKEN with the one that launch/serve.py printed"
    return Refused(Said(401, message, "invalid_request_error", "invalid_api_key"))


def unknown(message: str, code: str) -> Refused:
    return Refused(Said(404, message, "invalid_request_error", code))


def too_large(limit: int) -> Refused:
    message = f"the body has more than {limit:,} bytes; a question is far shorter"
    return Refused(Said(413, message, "invalid_request_error", "request_too_large"))


def unfinished() -> Refused:
    return Refused(Said(408, "the body did not arrive in time", "invalid_request_error", "request_timeout"))


def too_long() -> Refused:
    message = "the question leaves no room for an answer in this policy's context; ask a shorter one"
    return Refused(Said(400, message, "invalid_request_error", "context_length_exceeded", "messages"))


def busy(waiting: int) -> Refused:
    message = f"{waiting} questions are waiting already; come again in a moment"
    return Refused(Said(429, message, "rate_limit_error", "rate_limit_exceeded", retry_after_s=1))


def away() -> Refused:
    message = "no engine is there at the moment; one that was lost is being started again"
    return Refused(Said(503, message, "server_error", "unavailable", retry_after_s=5))


def failed(why: str) -> Refused:
    """Something behind the policy failed, for this question alone."""
    return Refused(
        Said(503, f"the question was not answered: {why}; ask again", "server_error", "unavailable", retry_after_s=1)
    )


def late(timeout_s: float) -> Refused:
    message = f"there was no answer within {timeout_s:g} s"
    return Refused(Said(504, message, "server_error", "timeout"))


def broken() -> Refused:
    message = "a bug of the server; its log says more"
    return Refused(Said(500, message, "server_error", "internal_error"))
