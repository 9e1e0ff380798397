"""Packed windows held in memory: 8 bytes per token instead of 12, without loss.

Shapes: W windows, T tokens of a window, B selected windows.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np

from pipeline.data.label_units import held, nats_of
from pipeline.data.packing import PackedWindow


@dataclass(frozen=True)
class HeldWindows:
    """Packed windows [W, T] in memory.

    Labels take two bytes each, unless a label needs more. The same holds for document indices.
    """

    input_ids_T: np.ndarray
    labels_T: np.ndarray
    """Labels in the form that `label_units.held` returns. To get them in nats, read `entropy_T` or select windows."""
    document_T: np.ndarray

    @classmethod
    def of(cls, windows: PackedWindow) -> Self:
        return cls(windows.input_ids_T, held(windows.entropy_T), smallest(windows.document_T))

    def __len__(self) -> int:
        return len(self.input_ids_T)

    def __getitem__(self, rows_B: np.ndarray) -> PackedWindow:
        """Return the selected windows, with labels in nats."""
        return PackedWindow(self.input_ids_T[rows_B], nats_of(self.labels_T[rows_B]), self.document_T[rows_B])

    @property
    def entropy_T(self) -> np.ndarray:
        """Labels of all windows in nats, float32."""
        return nats_of(self.labels_T)


def smallest(numbers: np.ndarray) -> np.ndarray:
    """Convert whole numbers to int16, or return them unchanged if one of them does not fit."""
    least, most = np.iinfo(np.int16).min, np.iinfo(np.int16).max
    fits = numbers.min(initial=0) >= least and numbers.max(initial=0) <= most
    return numbers.astype(np.int16) if fits else numbers
