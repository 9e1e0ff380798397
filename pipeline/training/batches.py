"""Batches within a token budget: corpus windows grouped by length, or packed windows of labelled documents.

Every epoch shuffles the windows again. If windows have random lengths, every epoch also cuts the documents again. The
order of the windows depends only on the documents, the seed and the index of the epoch.

Shapes: B rows, T tokens of the longest row, N tokens of the corpus, P pieces, W packed windows.
"""

import itertools
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from pipeline.data.corpus import Corpus
from pipeline.data.loader import Resumable
from pipeline.data.packing import PADDING
from pipeline.data.windows import budget_groups, cover
from pipeline.models.stacks import real_positions
from pipeline.training.data import LabelledDocuments
from pipeline.training.held_windows import HeldWindows


@dataclass(frozen=True)
class Batch:
    """Right-padded windows of tokens. Labels are in nats, and NaN at padding and at tokens without a label."""

    input_ids_BT: Tensor
    lengths_B: Tensor
    labels_BT: Tensor | None = None
    factors_BT: Tensor | None = None
    """Factor of each token, for a `StepObjective` (an objective that compares all tokens of a step). The value is None
    for any other objective. It is also None if the loss function computes the factors from this batch."""
    whole_batch: "Batch | None" = None
    """Batch of the whole step, if this batch is only a part: one process's rows, or one of several accumulated batches.
    None if this batch is the whole step."""
    expected_BT: Tensor | None = None
    """Expected entropies, in nats like the labels; None if they were not read."""
    positions_BT: Tensor | None = None
    """Index of each token in its corpus, for example to look up a teacher's predictions. None for packed windows."""
    read_ids_BT: Tensor | None = None
    """Tokens that the model reads, if they differ from the tokens that it predicts; see `token_dropout`."""

    @classmethod
    def of(cls, windows: HeldWindows, rows_B: np.ndarray) -> "Batch":
        """Build a batch from the packed windows [W, T] whose indices are in `rows_B`."""
        input_ids_BT, labels_BT, document_BT = map(torch.from_numpy, windows[rows_B])
        return cls(input_ids_BT.long(), (document_BT != PADDING).sum(dim=1), labels_BT)

    @property
    def real_BT(self) -> Tensor:
        """Mask [B, T], True at tokens and False at padding."""
        return real_positions(self.lengths_B, self.input_ids_BT.shape[1])

    @property
    def inputs_BT(self) -> Tensor:
        """Tokens that the model reads [B, T]."""
        return self.input_ids_BT if self.read_ids_BT is None else self.read_ids_BT

    @property
    def whole(self) -> "Batch":
        """Batch of the whole training step: all accumulated batches, with the rows of all processes.

        This batch may be only a part of the whole step: one process's rows, or one of several accumulated batches. The
        loss of a part is the sum over its own tokens, divided by the number of tokens of the whole step. The losses of
        all parts therefore add up to the loss of the step.
        """
        return self.whole_batch or self

    def part(self, process: int, processes: int) -> "Batch":
        """Return the part of this batch that one process computes.

        If the batch has fewer rows than there are processes, some processes have no rows. The part of a process without
        rows is one row of length 0 without labels.
        """
        if processes == 1:
            return self
        rows = self.rows(process, processes)
        if not len(self.input_ids_BT[rows]):
            labels_BT, expected_BT = (
                None if nats_BT is None else torch.full_like(nats_BT[:1], torch.nan)
                for nats_BT in (self.labels_BT, self.expected_BT)
            )
            empty = replace(self.first(1), lengths_B=torch.zeros_like(self.lengths_B[:1]), whole_batch=self.whole)
            return replace(empty, labels_BT=labels_BT, expected_BT=expected_BT)
        return replace(self._each(lambda tensor: tensor[rows]), whole_batch=self.whole)

    @staticmethod
    def rows(process: int, processes: int) -> slice:
        """Return the slice of a process's rows of a batch: row `process` and every `processes`-th row after it."""
        return slice(process, None, processes)

    def first(self, rows: int) -> "Batch":
        """Return a batch of the first rows."""
        return self._each(lambda tensor: tensor[:rows])

    def to(self, device: torch.device) -> "Batch":
        return self._each(lambda tensor: tensor.to(device))

    def _each(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        changed: dict[str, Any] = {
            name: function(value) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **changed)


@dataclass(frozen=True)
class Windowing:
    """Rules for cutting documents into windows of at most `window` tokens.

    By default, windows are as long as possible, and neighbouring windows share `overlap` tokens. A shared token has its
    label only in the first window that contains it, as in annotation. With `varied`, windows instead have random
    lengths from 1 to `window`, all equally likely, and do not overlap. With `labelled_only`, windows without any label
    are skipped.
    """

    window: int
    tokens_per_batch: int
    overlap: int = 0
    varied: bool = False
    labelled_only: bool = False
    recut: bool = True
    """True if windows of random lengths are cut again in every epoch; False if every epoch has the same windows."""

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < self.window:
            raise ValueError(f"windows of {self.window} tokens cannot share {self.overlap}; choose a longer context")


def endless_batches(corpora: Iterable[Corpus], cut: Windowing, seed: int) -> Iterator[Batch]:
    """Yield the batches of one epoch after another, endlessly.

    An epoch contains every window of every corpus once, corpus by corpus.

    Raises:
        ValueError: if an epoch has no window, because every document is empty or without a label.
    """
    for epoch in itertools.count():
        found = False
        for place, corpus in enumerate(corpora):
            for batch in epoch_batches(corpus, cut, np.random.default_rng([seed, epoch, place])):
                found = True
                yield batch
        if not found:
            raise ValueError("there is nothing to train on: every document is empty or without a label")


def epoch_batches(corpus: Corpus, cut: Windowing, random: np.random.Generator) -> Iterator[Batch]:
    """Yield the batches of one epoch in random order. Together, they contain every window of the corpus once."""
    pieces_P3 = random.permutation(corpus_windows(corpus, cut, random))
    lengths_P = pieces_P3[:, 1] - pieces_P3[:, 0]
    longest_first_P = np.argsort(-lengths_P, kind="stable")
    groups = list(budget_groups(lengths_P[longest_first_P].tolist(), cut.tokens_per_batch))
    for index in random.permutation(len(groups)):
        yield collate(corpus, pieces_P3[longest_first_P[groups[index]]])


def corpus_windows(corpus: Corpus, cut: Windowing, random: np.random.Generator) -> np.ndarray:
    """Cut a corpus into windows, and return the windows as int64 [P, 3]. Each row describes a piece of the corpus.

    `cut_windows` explains the columns. With `labelled_only`, pieces without any label are left out.
    """
    pieces_P3 = cut_windows(corpus.offsets, cut, random if cut.recut else np.random.default_rng(len(corpus.tokens_N)))
    if cut.labelled_only and corpus.labels_N is not None:
        labels_before = np.concatenate([[0], np.cumsum(~np.isnan(corpus.labels_N))])
        pieces_P3 = pieces_P3[labels_before[pieces_P3[:, 1]] > labels_before[pieces_P3[:, 2]]]
    return pieces_P3


class BatchPosition(NamedTuple):
    """Progress of a training run through labelled documents."""

    documents: int = 0
    """Number of documents in finished blocks, counted over all epochs. A block is a group of consecutive documents."""
    batches: int = 0
    """Number of finished batches of the current block."""
    left_out: int = 0
    """Number of documents left out of training so far, because their labels cannot be transferred to the model's
    tokens. Each document is counted once, in the first epoch."""


def labelled_batches(documents: LabelledDocuments, tokens_per_batch: int, seed: int) -> Resumable[Batch]:
    """Return an endless, resumable iterator over batches of the documents' windows, epoch after epoch.

    The order of the windows within a block of documents depends only on the seed, the epoch and the block. After an
    interruption, the current block is read again. The iterator raises the errors of `LabelledDocuments.blocks`, and a
    ValueError if no document has a window.
    """
    return Resumable(partial(_labelled_batches, documents, tokens_per_batch, seed), {}, BatchPosition())


def _labelled_batches(
    documents: LabelledDocuments, tokens_per_batch: int, seed: int, position: BatchPosition
) -> Generator[tuple[Batch, BatchPosition], None, None]:
    done, first_batch, left_out = position
    without_window = 0
    for block in documents.blocks(done):
        epoch, first = divmod(done, len(documents))
        if not epoch and not first_batch:
            left_out += block.left_out
        order = np.random.default_rng([seed, epoch, first]).permutation(len(block.windows.input_ids_T))
        batches = list(rows_of_batches(order, block.windows, tokens_per_batch))
        for number in range(first_batch, len(batches)):
            following = BatchPosition(done, number + 1, left_out)
            if number + 1 == len(batches):
                following = BatchPosition(done + block.documents, 0, left_out)
            yield Batch.of(block.windows, batches[number]), following
        done, first_batch = done + block.documents, 0
        without_window = 0 if batches else without_window + block.documents
        if without_window >= len(documents):
            raise ValueError("there is nothing to train on: every document is empty or without a label")


def batches_in_order(windows: HeldWindows, tokens_per_batch: int) -> Iterator[Batch]:
    """Divide packed windows [W, T] into batches of consecutive windows, and yield the batches in order."""
    every = np.arange(len(windows.input_ids_T))
    return (Batch.of(windows, rows_B) for rows_B in rows_of_batches(every, windows, tokens_per_batch))


def rows_of_batches(order: np.ndarray, windows: HeldWindows, tokens_per_batch: int) -> Iterator[np.ndarray]:
    """Divide `order`, the indices of all windows, into batches. Yield the window indices of each batch."""
    size = max(1, tokens_per_batch // windows.input_ids_T.shape[1])
    return (order[start : start + size] for start in range(0, len(order), size))


def cut_windows(offsets: np.ndarray, cut: Windowing, random: np.random.Generator) -> np.ndarray:
    """Cut all documents into pieces, and return the pieces as int64 [P, 3]. Every piece lies within one document.

    The columns are the index of the piece's first token in the corpus, the index after its last token, and the index of
    the first token whose label belongs to this piece.
    """
    pieces: list[tuple[int, int, int]] = []
    for begin, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        if cut.varied:
            pieces += _varied_pieces(begin, end, cut.window, random)
        else:
            windows = cover(0, end - begin, window=cut.window, overlap=cut.overlap)
            pieces += [(begin + piece.start, begin + piece.stop, begin + piece.label_from) for piece in windows]
    return np.array(pieces, dtype=np.int64).reshape(-1, 3)


def collate(corpus: Corpus, pieces_B3: np.ndarray) -> Batch:
    """Return a batch of pieces [B, 3] from `cut_windows`, padded to the longest piece."""
    starts_B1, stops_B1, labelled_B1 = np.hsplit(pieces_B3, 3)
    lengths_B = (stops_B1 - starts_B1)[:, 0]
    index_BT = starts_B1 + np.arange(lengths_B.max())
    inside_BT = np.minimum(index_BT, stops_B1 - 1)
    labelled_BT = (index_BT >= labelled_B1) & (index_BT < stops_B1)
    labels_BT, expected_BT = (
        None if nats_N is None else torch.from_numpy(np.where(labelled_BT, nats_N[inside_BT], np.float32("nan")))
        for nats_N in (corpus.labels_N, corpus.expected_N)
    )
    ids_BT, inside = torch.from_numpy(corpus.tokens_N[inside_BT]).long(), torch.from_numpy(inside_BT)
    return Batch(ids_BT, torch.from_numpy(lengths_B), labels_BT, expected_BT=expected_BT, positions_BT=inside)


def _varied_pieces(start: int, end: int, window: int, random: np.random.Generator) -> Iterator[tuple[int, int, int]]:
    while start < end:
        stop = min(end, start + int(random.integers(1, window + 1)))
        yield start, stop, start
        start = stop
