"""Answers of the server, and refusals with the headers from which the Hub's clients make their errors."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Answer:
    """An answer to a request. `status` 0 means that the server drops the connection and sends nothing."""

    status: int = 200
    content: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


DROPPED = Answer(status=0)


class RefusedError(Exception):
    """The refusal of a request. `answer` tells the client the status and the reason."""

    def __init__(
        self,
        status: int,
        message: str,
        code: str = "",
        headers: Mapping[str, str] | None = None,
        told: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        errors = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self.answer = as_json({"error": message, **(told or {})}, status, {**errors, **(headers or {})})


def as_json(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Answer:
    return Answer(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})


def rate_limited(seconds: int) -> Answer:
    """Return an answer that asks the client to wait. The Hub's clients wait a second longer than `seconds`."""
    headers = {
        "Retry-After": str(seconds),
        "RateLimit": f'"api";r=0;t={seconds}',
        "RateLimit-Policy": '"fixed window";"api";q=1000;w=300',
    }
    return RefusedError(429, "We had to rate limit you", headers=headers).answer
