"""What goes wrong on purpose. Which requests a share hits depends on the seed and on how often each was asked, not on
the order in which threads and processes come."""

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
    """Nothing at first; any of it may change at any time, or another be put in its place."""

    seed: int = 0
    share: float = 0.0
    """Of all requests, of the Hub and of its storage, that fail and have no effect."""
    kinds: tuple[Kind, ...] = ("rate limit", "unavailable", "dropped")
    """How they fail: 429, 503, or a connection that ends before an answer."""
    retry_after: int = 0
    """Seconds that a 429 asks for."""
    lost_commits: int = 0
    """So many commits from now on succeed while their connections end before the answer."""
    seconds_per_upload: float = 0.0
    """Before each upload to the storage is answered."""
    _refusals: list[Refusal] = field(default_factory=list)
    _asked: Counter[tuple[str, str]] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def refuse(self, status: int, *, method: str = ".*", path: str = ".*", times: int = 1) -> None:
        """The next requests with this method whose path has the pattern fail with this status; 0 drops them."""
        self._refusals.append(Refusal(status, method, path, times))

    def instead(self, method: str, path: str) -> Answer | None:
        """What a request gets instead of its answer, None where nothing goes wrong."""
        with self._lock:
            for refusal in self._refusals:
                if refusal.left and re.fullmatch(refusal.method, method) and re.search(refusal.path, path):
                    refusal.left -= 1
                    return self._failure(refusal.status)
            self._asked[method, path] += 1
            drawn = hashlib.sha256(f"{self.seed} {method} {path} {self._asked[method, path]}".encode()).digest()
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
