"""Windows for labelling: documents are cut into windows, windows are padded into batches, and labels are gathered.

Suffixes of array names: B windows of a batch, T tokens of the longest window, N tokens of all documents, W labels of a
batch.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from operator import attrgetter

import numpy as np

from schemas.annotations import Shape

RUN = 8


@dataclass(frozen=True)
class Window:
    """Tokens `start` to `stop` of a document. Tokens from `label_from` on get their labels from this window."""

    document: int
    start: int
    stop: int
    label_from: int

    def __len__(self) -> int:
        return self.stop - self.start


def cover(document: int, tokens: int, *, window: int, overlap: int) -> Iterator[Window]:
    """Yield the windows of a document. Each window begins `window - overlap` tokens after the previous one begins.

    Every token is labelled once: in the first window that contains the token, where the token has the most context.
    """
    start = label_from = 0
    while label_from < tokens:
        stop = min(start + window, tokens)
        yield Window(document, start, stop, label_from)
        start, label_from = start + window - overlap, stop


def budget_groups(lengths: Sequence[int], budget: int) -> Iterator[slice]:
    """Divide the lengths of windows into consecutive groups, and yield each group as a slice.

    A group has at most `budget` tokens after all its windows are padded to the longest one. `lengths` must be sorted,
    longest first. A length beyond the budget is a group by itself.
    """
    start = 0
    while start < len(lengths):
        stop = start + max(1, budget // lengths[start])
        yield slice(start, min(stop, len(lengths)))
        start = stop


def sample_positions(tokens: int, share: float, random: np.random.Generator) -> np.ndarray:
    """Select a random share of the positions, in runs of eight neighbours, and return a bool for each position.

    An exact label is the difference of the code lengths of two prefixes. Labels of r neighbouring positions need r + 1
    code lengths, but labels of r scattered positions need 2 r. Runs of eight thus need 1.1 code lengths per label
    instead of 2.
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
    """Token ids, int64."""
    lengths_B: np.ndarray
    """Number of tokens of each window, int64."""
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
    """Cut documents into windows, and batch the windows, longest first.

    A padded batch has at most `budget` tokens, unless it has only one window. Windows of up to `border` tokens are not
    in the same batch as longer windows. `wanted` has a bool for every token of every document. Windows in which no
    token is to be labelled are left out.
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
    columns: Mapping[str, Shape],
) -> dict[str, list[np.ndarray]]:
    """Gather the values of all batches into one float32 array per document, for every column.

    The values of a batch are [B, T] and those of a document [N], or [K, B, T] and [K, N] if a token's value has the
    shape (K,). A token without a wanted value gets NaN.

    Raises:
        ValueError: if a wanted value is not finite.
    """
    firsts = _borders(documents)
    labels = {name: np.full((*shape, firsts[-1]), np.nan, np.float32) for name, shape in columns.items()}
    for batch, values in labelled:
        place_W = _places(firsts, batch.windows, batch.ids_BT.shape[1])[batch.wanted_BT]
        for name in columns:
            value_W = values[name][..., batch.wanted_BT]
            if not np.isfinite(value_W).all():
                raise ValueError(f"the checkpoint gives {name} that is not finite; it is broken or was not trained")
            labels[name][..., place_W] = value_W
    return {name: np.split(label_N, firsts[1:-1], axis=-1)[: len(documents)] for name, label_N in labels.items()}


def _padded(ids_N: np.ndarray, wanted_N: np.ndarray, firsts: np.ndarray, windows: tuple[Window, ...]) -> WindowBatch:
    lengths_B = _of(windows, "stop") - _of(windows, "start")
    column_T = np.arange(lengths_B.max())
    place_BT = np.minimum(_places(firsts, windows, len(column_T)), len(ids_N) - 1)
    inside_BT = column_T < lengths_B[:, None]
    labelled_BT = inside_BT & (column_T >= (_of(windows, "label_from") - _of(windows, "start"))[:, None])
    return WindowBatch(windows, np.where(inside_BT, ids_N[place_BT], 0), lengths_B, labelled_BT & wanted_N[place_BT])


def _places(firsts: np.ndarray, windows: Sequence[Window], columns: int) -> np.ndarray:
    """Return the index of each token of each window among the tokens of all documents, [B, columns].

    If a window has fewer than `columns` tokens, its row continues with the indices of the tokens after the window.
    """
    start_B: np.ndarray = firsts[_of(windows, "document")] + _of(windows, "start")
    return start_B[:, None] + np.arange(columns)


def _of(windows: Sequence[Window], name: str) -> np.ndarray:
    return np.fromiter(map(attrgetter(name), windows), np.int64, len(windows))


def _borders(documents: Sequence[np.ndarray]) -> np.ndarray:
    """Return the index at which each document begins if all documents are joined, and the total number of tokens."""
    return np.cumsum([0, *map(len, documents)])
