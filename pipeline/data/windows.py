"""How a document longer than the model's context is covered, and which of its tokens are labelled."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

RUN = 8


@dataclass(frozen=True)
class Window:
    """Tokens `start` to `stop` of a document, of which those from `label_from` on get their labels here."""

    document: int
    start: int
    stop: int
    label_from: int

    def __len__(self) -> int:
        return self.stop - self.start


def cover(document: int, tokens: int, *, window: int, overlap: int) -> Iterator[Window]:
    """Windows over a document, each beginning `window - overlap` tokens after the one before.

    Every token is labelled once, in the first window that holds it: there it has most context.
    """
    start = label_from = 0
    while label_from < tokens:
        stop = min(start + window, tokens)
        yield Window(document, start, stop, label_from)
        start, label_from = start + window - overlap, stop


def budget_groups(lengths: Sequence[int], budget: int) -> Iterator[slice]:
    """Consecutive groups of lengths, longest first, that stay within the budget when padded to their longest.

    A length beyond the budget is a group by itself.
    """
    start = 0
    while start < len(lengths):
        stop = start + max(1, budget // lengths[start])
        yield slice(start, min(stop, len(lengths)))
        start = stop


def sample_positions(tokens: int, share: float, random: np.random.Generator) -> np.ndarray:
    """True at a random share of the positions, chosen in runs of eight neighbours.

    Exact labels of r neighbours need r + 1 code lengths, of r scattered positions 2 r: runs of eight cost
    1.1 code lengths a label in place of 2.
    """
    if share >= 1:
        return np.ones(tokens, dtype=bool)
    runs = random.random(tokens // RUN + 2) < share
    phase = int(random.integers(RUN))
    return np.repeat(runs, RUN)[phase : phase + tokens]
