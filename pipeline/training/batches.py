"""A corpus cut into windows, and windows of neighbouring lengths put together to batches of a token budget.

Every epoch cuts and shuffles anew from (seed, epoch), so the order is a function of the seed alone.

B rows, T tokens of the longest row, N tokens of the corpus, P pieces.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.data.corpus import Corpus


@dataclass(frozen=True)
class Batch:
    """Right-padded windows. Labels are nats, NaN where a token has none and at padding."""

    input_ids_BT: Tensor
    lengths_B: Tensor
    labels_BT: Tensor | None = None

    @property
    def real_BT(self) -> Tensor:
        """True at tokens, False at padding."""
        return torch.arange(self.input_ids_BT.shape[1], device=self.lengths_B.device) < self.lengths_B.unsqueeze(1)

    def to(self, device: torch.device) -> "Batch":
        labels_BT = None if self.labels_BT is None else self.labels_BT.to(device)
        return Batch(self.input_ids_BT.to(device), self.lengths_B.to(device), labels_BT)


@dataclass(frozen=True)
class Cut:
    """How documents become windows of at most `window` tokens.

    `varied` makes every length from 1 to that equally frequent; `labelled_only` leaves out windows without a label.
    """

    window: int
    tokens_per_batch: int
    varied: bool = False
    labelled_only: bool = False


def endless_batches(corpus: Corpus, cut: Cut, seed: int) -> Iterator[Batch]:
    """Epoch after epoch of the corpus, each of its windows once an epoch.

    Raises:
        ValueError: if it has no window to train on.
    """
    for epoch in itertools.count():
        batches = epoch_batches(corpus, cut, np.random.default_rng([seed, epoch]))
        first = next(batches, None)
        if first is None:
            raise ValueError("there is nothing to train on: every document is empty or without a label")
        yield first
        yield from batches


def epoch_batches(corpus: Corpus, cut: Cut, random: np.random.Generator) -> Iterator[Batch]:
    """Every window of the corpus once, batches in random order."""
    pieces_P2 = cut_windows(corpus.offsets, cut, random)
    if cut.labelled_only and corpus.labels_N is not None:
        labels_before = np.concatenate([[0], np.cumsum(~np.isnan(corpus.labels_N))])
        pieces_P2 = pieces_P2[labels_before[pieces_P2.sum(axis=1)] > labels_before[pieces_P2[:, 0]]]
    pieces_P2 = random.permutation(pieces_P2)
    pieces_P2 = pieces_P2[np.argsort(pieces_P2[:, 1], kind="stable")]
    groups = _budget_groups(pieces_P2[:, 1], cut.tokens_per_batch)
    for index in random.permutation(len(groups)):
        yield collate(corpus, pieces_P2[groups[index]])


def cut_windows(offsets: np.ndarray, cut: Cut, random: np.random.Generator) -> np.ndarray:
    """Pieces [P, 2] of (start, length) that cover each document once, none crossing a document's border."""
    pieces: list[tuple[int, int]] = []
    for start, stop in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        while start < stop:
            longest = int(random.integers(1, cut.window + 1)) if cut.varied else cut.window
            length = min(longest, stop - start)
            pieces.append((start, length))
            start += length
    return np.array(pieces, dtype=np.int64).reshape(-1, 2)


def collate(corpus: Corpus, pieces_P2: np.ndarray) -> Batch:
    """The pieces as one batch, padded to the longest."""
    starts_B, lengths_B = pieces_P2[:, 0], pieces_P2[:, 1]
    columns_T = np.arange(lengths_B.max())
    real_BT = columns_T < lengths_B[:, None]
    index_BT = np.where(real_BT, starts_B[:, None] + columns_T, starts_B[:, None])
    labels_BT = None
    if corpus.labels_N is not None:
        labels_BT = torch.from_numpy(np.where(real_BT, corpus.labels_N[index_BT], np.float32("nan")))
    return Batch(torch.from_numpy(corpus.tokens_N[index_BT]).long(), torch.from_numpy(lengths_B), labels_BT)


def _budget_groups(lengths_P: np.ndarray, budget: int) -> list[slice]:
    """Consecutive groups of pieces, in rising length, whose padded size stays within the budget."""
    groups: list[slice] = []
    start = 0
    for stop in range(1, len(lengths_P) + 1):
        next_longest = lengths_P[min(stop, len(lengths_P) - 1)]
        if stop == len(lengths_P) or (stop + 1 - start) * next_longest > budget:
            groups.append(slice(start, stop))
            start = stop
    return groups
