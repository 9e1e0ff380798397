"""What is shown of every token: the labels of one or several columns, and how much the first exceeds each other.

S series of labels, M measures: the series, then the differences; N tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Document:
    """A row of the dataset."""

    row: int
    tokens_N: np.ndarray
    labels_SN: np.ndarray
    """float32, nats; NaN where a token has no label."""
    source: dict[str, Any] = field(default_factory=dict)
    """Its values in columns of the source."""
    left: int = 0
    """Tokens of the row after these."""

    def first(self, tokens: int) -> "Document":
        """So many of its tokens, without the source's values; the others are not kept in memory."""
        kept, left = self.tokens_N[:tokens].copy(), max(0, len(self.tokens_N) - tokens)
        return Document(self.row, kept, self.labels_SN[:, :tokens].copy(), left=self.left + left)

    @property
    def size(self) -> int:
        """Tokens of the row."""
        return len(self.tokens_N) + self.left

    def measures_of(self, start: int, stop: int) -> np.ndarray:
        """float64 [M, N] of the tokens `start` to `stop`; NaN where a token lacks one of two labels."""
        labels_SN = self.labels_SN[:, start:stop]
        return np.concatenate([labels_SN, labels_SN[:1] - labels_SN[1:]]).astype(np.float64)


@dataclass(frozen=True)
class Measure:
    """The labels of one series, or those of the first less those of another."""

    name: str
    series: tuple[int, ...]


def measures_of(series: Sequence[str]) -> Iterator[Measure]:
    """The measures of series of these names, in the order of `Document.measures_of`."""
    yield from (Measure(name, (place,)) for place, name in enumerate(series))
    yield from (Measure(f"{series[0]} − {name}", (0, place)) for place, name in enumerate(series[1:], 1))
