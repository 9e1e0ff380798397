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

    @property
    def measures_MN(self) -> np.ndarray:
        """NaN where a token lacks one of two labels."""
        return np.concatenate([self.labels_SN, self.labels_SN[:1] - self.labels_SN[1:]])


@dataclass(frozen=True)
class Measure:
    """The labels of one series, or those of the first less those of another."""

    name: str
    series: tuple[int, ...]


def measures_of(series: Sequence[str]) -> Iterator[Measure]:
    """The measures of series of these names, in the order of `Document.measures_MN`."""
    yield from (Measure(name, (place,)) for place, name in enumerate(series))
    yield from (Measure(f"{series[0]} − {name}", (0, place)) for place, name in enumerate(series[1:], 1))
