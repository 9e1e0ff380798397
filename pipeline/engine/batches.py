"""Documents to batches of padded windows of neighbouring lengths, and labels of windows back to documents.

B rows, T tokens of the longest row.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.data.windows import Window, budget_groups, cover


@dataclass(frozen=True)
class Batch:
    """Windows of documents side by side, right-padded with zeros."""

    windows: tuple[Window, ...]
    ids_BT: np.ndarray
    """int64"""
    lengths_B: np.ndarray
    """int64"""
    wanted_BT: np.ndarray
    """True where a label is asked for."""


def window_batches(
    documents: Sequence[np.ndarray],
    wanted: Sequence[np.ndarray],
    *,
    window: int,
    overlap: int,
    budget: int,
) -> list[Batch]:
    """Batches of at most `budget` tokens, or of one window, over all documents, longest windows first.

    `wanted` has a bool for every token of every document; windows without a wanted token are left out.
    """
    windows = [
        piece
        for index, ids in enumerate(documents)
        for piece in cover(index, len(ids), window=window, overlap=overlap)
        if wanted[index][piece.label_from : piece.stop].any()
    ]
    windows.sort(key=len, reverse=True)
    groups = budget_groups([len(piece) for piece in windows], budget)
    return [_padded(documents, wanted, tuple(windows[group])) for group in groups]


def gather(
    documents: Sequence[np.ndarray], labelled: Iterable[tuple[Batch, Mapping[str, np.ndarray]]], columns: Sequence[str]
) -> dict[str, list[np.ndarray]]:
    """For every column a float32 array a document: the batches' values [B, T] where wanted, NaN elsewhere.

    Raises:
        ValueError: if a wanted value is not finite.
    """
    results = {name: [np.full(len(ids), np.nan, np.float32) for ids in documents] for name in columns}
    for batch, values in labelled:
        for name in columns:
            if not np.isfinite(values[name][batch.wanted_BT]).all():
                raise ValueError(f"the checkpoint gives {name} that is not finite; it is broken or was not trained")
            labels_BT = np.where(batch.wanted_BT, values[name], np.float32("nan"))
            for row, piece in enumerate(batch.windows):
                results[name][piece.document][piece.label_from : piece.stop] = labels_BT[
                    row, piece.label_from - piece.start : len(piece)
                ]
    return results


def _padded(documents: Sequence[np.ndarray], wanted: Sequence[np.ndarray], windows: tuple[Window, ...]) -> Batch:
    lengths_B = np.array([len(piece) for piece in windows])
    ids_BT = np.zeros((len(windows), int(lengths_B.max())), dtype=np.int64)
    wanted_BT = np.zeros(ids_BT.shape, dtype=bool)
    for row, piece in enumerate(windows):
        ids_BT[row, : len(piece)] = documents[piece.document][piece.start : piece.stop]
        labelled = wanted[piece.document][piece.label_from : piece.stop]
        wanted_BT[row, piece.label_from - piece.start : len(piece)] = labelled
    return Batch(windows, ids_BT, lengths_B, wanted_BT)
