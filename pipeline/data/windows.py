"""Windows over documents for labelling: cut from the documents, padded in batches, with labels gathered by document.

B windows of a batch, T tokens of the longest window, N tokens of all documents, W labels of a batch.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from operator import attrgetter

import numpy as np

RUN = 8


@dataclass(frozen=True)
class Window:
    """Tokens `start` to `stop` of a document; tokens from `label_from` on get their labels from this window."""

    document: int
    start: int
    stop: int
    label_from: int

    def __len__(self) -> int:
        return self.stop - self.start


def cover(document: int, tokens: int, *, window: int, overlap: int) -> Iterator[Window]:
    """Yield windows over a document, each beginning `window - overlap` tokens after the previous one.

    Every token is labelled once, in the first window that contains it, where it has the most context.
    """
    start = label_from = 0
    while label_from < tokens:
        stop = min(start + window, tokens)
        yield Window(document, start, stop, label_from)
        start, label_from = start + window - overlap, stop


def budget_groups(lengths: Sequence[int], budget: int) -> Iterator[slice]:
    """Yield consecutive groups of lengths that stay within the budget when padded to the longest of the group.

    `lengths` must be sorted, longest first. A length beyond the budget is a group by itself.
    """
    start = 0
    while start < len(lengths):
        stop = start + max(1, budget // lengths[start])
        yield slice(start, min(stop, len(lengths)))
        start = stop


def sample_positions(tokens: int, share: float, random: np.random.Generator) -> np.ndarray:
    """Select a random share of the positions, in runs of eight neighbours; return True for selected ones.

    Exact labels of r neighbours need r + 1 code lengths, and those of r scattered positions 2 r. Runs of eight cost
    1.1 code lengths per label instead of 2.
    """
    if share >= 1:
        return np.ones(tokens, dtype=bool)
    runs = random.random(tokens // RUN + 2) < share
    phase = int(random.integers(RUN))
    return np.repeat(runs, RUN)[phase : phase + tokens]


@dataclass(frozen=True)
class WindowBatch:
    """A batch of windows of documents, right-padded with zeros."""

    windows: tuple[Window, ...]
    ids_BT: np.ndarray
    """int64"""
    lengths_B: np.ndarray
    """int64"""
    wanted_BT: np.ndarray
    """True where a label is requested."""


def window_batches(
    documents: Sequence[np.ndarray],
    wanted: Sequence[np.ndarray],
    *,
    window: int,
    overlap: int,
    budget: int,
    border: int | None = None,
) -> list[WindowBatch]:
    """Batch windows over all documents, longest first, with at most `budget` tokens or one window per batch.

    No batch mixes windows of up to `border` tokens with longer ones. `wanted` has a bool for every token of every
    document; windows without a wanted token are left out.
    """
    pieces = [
        piece for index, ids in enumerate(documents) for piece in cover(index, len(ids), window=window, overlap=overlap)
    ]
    firsts = _borders(documents)
    wanted_N = np.concatenate([np.empty(0, bool), *wanted])
    before = np.append(0, np.cumsum(wanted_N))
    label_from, stop = (firsts[_of(pieces, "document")] + _of(pieces, name) for name in ("label_from", "stop"))
    windows = list(compress(pieces, before[stop] > before[label_from]))
    windows.sort(key=len, reverse=True)
    longer = sum(len(piece) > border for piece in windows) if border is not None else 0
    ids_N = np.concatenate([np.empty(0, np.int64), *documents])
    return [
        _padded(ids_N, wanted_N, firsts, tuple(side[group]))
        for side in (windows[:longer], windows[longer:])
        for group in budget_groups([len(piece) for piece in side], budget)
    ]


def gather(
    documents: Sequence[np.ndarray],
    labelled: Iterable[tuple[WindowBatch, Mapping[str, np.ndarray]]],
    columns: Sequence[str],
) -> dict[str, list[np.ndarray]]:
    """Gather the values [B, T] of batches into one float32 array per document for every column; NaN if not wanted.

    Raises:
        ValueError: if a wanted value is not finite.
    """
    firsts = _borders(documents)
    labels = {name: np.full(firsts[-1], np.nan, np.float32) for name in columns}
    for batch, values in labelled:
        place_W = _places(firsts, batch.windows, batch.ids_BT.shape[1])[batch.wanted_BT]
        for name in columns:
            value_W = values[name][batch.wanted_BT]
            if not np.isfinite(value_W).all():
                raise ValueError(f"the checkpoint gives {name} that is not finite; it is broken or was not trained")
            labels[name][place_W] = value_W
    return {name: np.split(label_N, firsts[1:-1])[: len(documents)] for name, label_N in labels.items()}


def _padded(ids_N: np.ndarray, wanted_N: np.ndarray, firsts: np.ndarray, windows: tuple[Window, ...]) -> WindowBatch:
    lengths_B = _of(windows, "stop") - _of(windows, "start")
    column_T = np.arange(lengths_B.max())
    place_BT = np.minimum(_places(firsts, windows, len(column_T)), len(ids_N) - 1)
    inside_BT = column_T < lengths_B[:, None]
    labelled_BT = inside_BT & (column_T >= (_of(windows, "label_from") - _of(windows, "start"))[:, None])
    return WindowBatch(windows, np.where(inside_BT, ids_N[place_BT], 0), lengths_B, labelled_BT & wanted_N[place_BT])


def _places(firsts: np.ndarray, windows: Sequence[Window], columns: int) -> np.ndarray:
    """Return indices [B, columns] of the windows' tokens, and of following ones, among the tokens of all documents."""
    start_B: np.ndarray = firsts[_of(windows, "document")] + _of(windows, "start")
    return start_B[:, None] + np.arange(columns)


def _of(windows: Sequence[Window], name: str) -> np.ndarray:
    return np.fromiter(map(attrgetter(name), windows), np.int64, len(windows))


def _borders(documents: Sequence[np.ndarray]) -> np.ndarray:
    """Return the index at which each document begins among the tokens of all documents, and the end of the last."""
    return np.cumsum([0, *map(len, documents)])
