"""Progress of a unit: how much of it is labelled, and the event that stops its labelling.

The thread that labels a unit updates the progress, and any thread may read it.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from pipeline.data.windows import WindowBatch


class Amount(NamedTuple):
    """Numbers of labelled documents (`rows`) and tokens. Both may be fractional while a chunk is in progress."""

    rows: float = 0.0
    tokens: float = 0.0


class StoppedError(Exception):
    """Raised to stop labelling a unit whose labels are no longer needed."""


class UnitProgress:
    """Progress of a unit: the amount labelled so far."""

    def __init__(self) -> None:
        self.labelled = Amount()
        self.stopped = threading.Event()
        """Event that is set when the unit's labels are no longer needed."""

    @contextmanager
    def chunk(self, whole: Amount, batches: Sequence[WindowBatch]) -> Iterator[Callable[[WindowBatch], None]]:
        """Yield a function to call after each labelled batch of a chunk. On exit, add the whole chunk to `labelled`.

        Until then, `labelled` includes a share of the chunk: the number of finished labels divided by the number of
        requested labels. A share of the batches' tokens would be wrong, because overlapping windows have tokens in
        common.
        """
        before, requested = self.labelled, sum(map(_requested, batches))
        finished = 0

        def count_batch(batch: WindowBatch) -> None:
            nonlocal finished
            finished += _requested(batch)
            share = finished / requested
            self.labelled = Amount(before.rows + whole.rows * share, before.tokens + whole.tokens * share)
            if self.stopped.is_set():
                raise StoppedError

        yield count_batch
        self.labelled = Amount(before.rows + whole.rows, before.tokens + whole.tokens)  # even if no label was requested


def _requested(batch: WindowBatch) -> int:
    return int(batch.wanted_BT.sum())


@contextmanager
def stopping(progress: UnitProgress) -> Iterator[None]:
    """On exit, stop the thread that labels a unit. The thread runs ahead of the `with` block, which writes the unit."""
    try:
        yield
    finally:
        progress.stopped.set()
