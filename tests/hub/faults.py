"""Faults of the test Hub's server, which tests choose.

Tests can let a share of all requests fail. The seed, and the number of times that a request has been sent, decide
whether the request fails. The order in which threads and processes send different requests makes no difference.
"""

import hashlib
import re
import threading
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal

from tests.hub.answers import DROPPED, Answer, RefusedError, rate_limited

Kind = Literal["rate limit", "unavailable", "dropped"]


@dataclass
class Refusal:
    status: int
    method: str
    path: str
    left: int


@dataclass
class Faults:
    """Faults of the server, none by default. A test may change or replace them at any time."""

    seed: int = 0
    share: float = 0.0
    """Share of all requests, to the Hub and to its storage, that fail without any effect."""
    kinds: tuple[Kind, ...] = ("rate limit", "unavailable", "dropped")
    """Kinds of failures, from which one is chosen for each request that `share` lets fail. rate limit: status 429.
    unavailable: status 503. dropped: the connection ends before the answer."""
    retry_after: int = 0
    """Seconds for which an answer of status 429 asks the client to wait."""
    lost_commits: int = 0
    """Number of the next commits that succeed, but whose connections end before the answer."""
    seconds_per_upload: float = 0.0
    """Seconds that pass before the storage answers an upload."""
    _refusals: list[Refusal] = field(default_factory=list)
    _sent: Counter[bytes] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def refuse(self, status: int, *, method: str = ".*", path: str = ".*", times: int = 1) -> None:
        """Let the next `times` matching requests fail with this status. Status 0 drops their connections.

        A request matches if the pattern `method` is its whole method and the pattern `path` occurs in its path.
        """
        self._refusals.append(Refusal(status, method, path, times))

    def instead(self, method: str, path: str, body: bytes) -> Answer | None:
        """Return the answer with which a request fails, or None if the request does not fail.

        Requests for one path differ in their bodies: the client has every upload verified at the same path.
        """
        with self._lock:
            for refusal in self._refusals:
                if refusal.left and re.fullmatch(refusal.method, method) and re.search(refusal.path, path):
                    refusal.left -= 1
                    return self._failure(refusal.status)
            request = hashlib.sha256(f"{method} {path} ".encode() + body).digest()
            self._sent[request] += 1
            drawn = hashlib.sha256(request + f" {self.seed} {self._sent[request]}".encode()).digest()
        if int.from_bytes(drawn[:4]) >= self.share * 2**32:
            return None
        kind = self.kinds[drawn[4] % len(self.kinds)]
        return self._failure({"rate limit": 429, "unavailable": 503, "dropped": 0}[kind])

    def loses_commit(self) -> bool:
        with self._lock:
            self.lost_commits -= (lost := self.lost_commits > 0)
        return lost

    def _failure(self, status: int) -> Answer:
        if status == 0:
            return DROPPED
        return rate_limited(self.retry_after) if status == 429 else RefusedError(status, "a fault on purpose").answer
