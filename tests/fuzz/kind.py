"""Kinds of fuzz input, and a function that tries many random inputs of one kind."""

import signal
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zlib import crc32

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st

MOST_SECONDS = 20
REFUSALS = (ValueError, OSError)
"""Exceptions that `pipeline.cli` turns into one line."""


@dataclass(frozen=True)
class Kind:
    """A kind of input: a strategy that draws inputs, and a function that uses one."""

    name: str
    inputs: st.SearchStrategy[Any]
    use: Callable[[Path, Any], str]
    """Function that treats an input in an empty folder as a command would. Returns the outcome, or raises REFUSALS."""


def run(kind: Kind, count: int, seed: int) -> Counter[str]:
    """Use `count` random inputs of a kind. Return how often each outcome occurred.

    Raises:
        Exception: if an input raises an exception that is not one of REFUSALS.
        AssertionError: if a refusal is empty or has a stack trace, or an input takes longer than MOST_SECONDS.
    """
    outcomes: Counter[str] = Counter()

    @seeded(seed + crc32(kind.name.encode()))  # kinds with the same strategy get different inputs
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(kind.inputs)
    def each(given_input: Any) -> None:
        with TemporaryDirectory() as folder, _within_seconds():
            outcomes[_outcome(kind, Path(folder), given_input)] += 1

    each()
    return outcomes


def _outcome(kind: Kind, folder: Path, given_input: Any) -> str:
    try:
        return kind.use(folder, given_input)
    except REFUSALS as error:
        told = str(error)
        assert told.strip() and "Traceback" not in told, repr(error)
        return "refused"


@contextmanager
def _within_seconds() -> Iterator[None]:
    def late(*_: object) -> None:
        raise AssertionError(f"an input takes longer than {MOST_SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(MOST_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
