"""Windows of an epoch, counted before training: their lengths, tokens and batches, for the dry run of a training.

If the documents are in memory, the windows are those of all documents. If the documents are a stream, the windows are
those of the held-out documents, as a sample of the epoch.

P pieces, B rows, W windows.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Self

import numpy as np

from pipeline.data.corpus import Corpus, DocumentStream
from pipeline.data.documents import inspect_file
from pipeline.data.packing import PADDING
from pipeline.data.windows import budget_groups
from pipeline.progress import stage
from pipeline.training.batches import Batch, Windowing, collate, corpus_windows
from pipeline.training.data import Documents, LabelledDocuments
from pipeline.training.held_windows import HeldWindows


@dataclass(frozen=True)
class Epoch:
    """Windows of an epoch, or of a sample of its documents."""

    lengths_W: np.ndarray
    """Number of tokens that a model reads in each window. The model learns to predict the same number of tokens."""
    positions_W: np.ndarray
    """Number of positions that each window takes in a batch. For packed windows, padding is included."""
    longest: Batch
    """Batch of the longest windows."""
    sampled: int
    """Number of documents that the windows were cut from."""
    count: Callable[[], int] | None = None
    """Function that returns the number of documents in the epoch, if the windows were cut from a sample of them.
    None if the windows were cut from all documents."""
    share: float = 1.0
    """Share of the documents on which one model is trained. The share is below 1 with cross-validation folds."""

    @classmethod
    def of_corpus(cls, corpus: Corpus, cut: Windowing, count: Callable[[], int] | None = None) -> Self:
        """Cut a corpus into windows, as training does.

        `count` returns the number of documents in the epoch, if the corpus is a sample of them.

        Raises:
            ValueError: if every document is empty or without a label.
        """
        pieces_P3 = corpus_windows(corpus, cut, np.random.default_rng(0))
        if not len(pieces_P3):
            raise ValueError("there is nothing to train on: every document is empty or without a label")
        lengths_P = pieces_P3[:, 1] - pieces_P3[:, 0]
        rows = max(1, cut.tokens_per_batch // int(lengths_P.max()))
        longest = collate(corpus, pieces_P3[np.argsort(-lengths_P, kind="stable")[:rows]])
        return cls(lengths_P, lengths_P, longest, len(corpus), count)

    @classmethod
    def of_documents(cls, documents: Documents, cut: Windowing) -> Self:
        """Cut the training documents into windows. For a stream, cut its held-out documents, as a sample."""
        if isinstance(documents.seen, Corpus):
            return cls.of_corpus(documents.seen, cut)
        return cls.of_corpus(documents.held_out, cut, partial(streamed_documents, documents.seen))

    @classmethod
    def of_labelled(cls, seen: LabelledDocuments, held_out: HeldWindows, sampled: int, tokens_per_batch: int) -> Self:
        """Return the epoch of labelled documents, which are packed into windows.

        If `seen` is in memory, the epoch has all windows of `seen`. If `seen` is a stream, the windows are `held_out`,
        which were packed from the held-out documents. `sampled` is the number of these documents. The first token of a
        window is not predicted, so `lengths_W` does not count it.
        """
        windows, sampled = (seen.whole.windows, len(seen)) if seen.at_a_time is None else (held_out, sampled)
        count, size = windows.input_ids_T.shape
        lengths_W = (windows.document_T != PADDING).sum(axis=1) - 1
        longest = Batch.of(windows, np.argsort(-lengths_W, kind="stable")[: max(1, tokens_per_batch // size)])
        of_sample = None if seen.at_a_time is None else partial(len, seen)
        return cls(lengths_W, np.full(count, size), longest, sampled, of_sample)

    def of_fold(self, folds: int) -> Self:
        """Return the epoch of a model that is trained without the documents of one of the cross-validation folds."""
        return replace(self, share=self.share * (1 - 1 / folds)) if folds > 1 else self

    @cached_property
    def documents(self) -> int:
        """Number of documents in the epoch. The documents of a stream must be counted first, which may take long."""
        return round(self.share * (self.sampled if self.count is None else self.count()))

    @property
    def tokens(self) -> float:
        """Number of tokens in the windows of the epoch."""
        return float(self.lengths_W.sum()) * self._times

    def batches(self, tokens_per_batch: int) -> float:
        """Return the number of batches in the epoch."""
        return self._batches(tokens_per_batch) * self._times

    def tokens_of_batch(self, tokens_per_batch: int) -> float:
        """Return the mean number of tokens in a batch, computed from `lengths_W` and `positions_W` alone.

        Unlike `batches`, this does not need the number of documents in a stream.
        """
        return float(self.lengths_W.sum()) / self._batches(tokens_per_batch)

    @property
    def _times(self) -> float:
        """Ratio of the tokens in the epoch to the tokens in `lengths_W`, estimated from the numbers of documents."""
        return self.share if self.count is None else self.documents / self.sampled

    def _batches(self, tokens_per_batch: int) -> float:
        """Return the number of batches that the windows fill.

        For all windows of an epoch, an incomplete last batch counts as a whole batch. For the windows of a sample, it
        counts as a fraction of a batch.
        """
        if self.count is None:
            return len([*budget_groups(np.sort(self.positions_W)[::-1].tolist(), tokens_per_batch)])
        return float((1 / np.maximum(1, tokens_per_batch // self.positions_W)).sum())


def streamed_documents(stream: DocumentStream) -> int:
    """Return the number of documents in an epoch of a stream. Only the footers of Parquet files are read.

    Raises:
        ValueError, OSError: as `inspect_file` does.
    """
    with stage("counting the documents"):
        rows = sum(sum(inspect_file(file, stream.column, ()).groups) for file in stream.files)
    return max(0, (rows if stream.limit is None else min(rows, stream.limit)) - stream.skip)
