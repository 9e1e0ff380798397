"""The part of a unit that is labelled and not committed yet: whoever watches a run sees it grow, or has it stopped."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from pipeline.data.windows import Batch


class Part(NamedTuple):
    """Documents and tokens that are labelled; fractions of a document count too."""

    rows: float = 0.0
    tokens: float = 0.0


class StoppedError(Exception):
    """Nobody wants the unit's labels any more."""


class Underway:
    """One unit's, written by the thread that labels and read by any."""

    def __init__(self) -> None:
        self.labelled = Part()
        self.stopped = False

    def is_stopped(self) -> bool:
        """True when nobody wants the unit any more."""
        return self.stopped

    def slab(self, rows: int, tokens: int, batches: Sequence[Batch]) -> Callable[[Batch], None]:
        """What is to be called after each of these batches, which label so many rows of so many tokens.

        Batches count by the labels that are asked of them, as overlapping windows share tokens.
        """
        before, asked = self.labelled, sum(map(_asked, batches))
        had = 0

        def labelled(batch: Batch) -> None:
            nonlocal had
            had += _asked(batch)
            self.labelled = Part(before.rows + rows * had / asked, before.tokens + tokens * had / asked)
            if self.stopped:
                raise StoppedError

        return labelled


def _asked(batch: Batch) -> int:
    return int(batch.wanted_BT.sum())
