"""Windows of an epoch, counted before training: their lengths, tokens and batches, for the dry run of a training.

If the documents are in memory, the windows are those of all documents. If the documents are a stream, the windows are
those of the held-out documents, as a sample of the epoch.

P pieces, B rows, W windows.
"""

from dataclasses import dataclass
from typing import Self

import numpy as np

from pipeline.data.corpus import Corpus, DocumentStream
from pipeline.data.documents import inspect_file
from pipeline.data.packing import PADDING, PackedWindow
from pipeline.progress import stage
from pipeline.training.batches import Batch, Windowing, collate, corpus_windows
from pipeline.training.data import Documents, LabelledDocuments


@dataclass(frozen=True)
class Epoch:
    """Windows of an epoch, or of a sample of its documents."""

    lengths_W: np.ndarray
    """Number of tokens that a model reads in each window, and learns to predict."""
    positions_W: np.ndarray
    """Number of positions of each window in a batch."""
    longest: Batch
    """Batch of the longest windows."""
    sampled: int
    """Number of documents that the windows were cut from."""
    documents: int
    """Number of documents in the epoch."""

    @classmethod
    def of_corpus(cls, corpus: Corpus, cut: Windowing, documents: int | None = None) -> Self:
        """Cut a corpus into windows, as training does.

        `documents` is the number of documents in the epoch, if the corpus is a sample of them.

        Raises:
            ValueError: if every document is empty or without a label.
        """
        pieces_P3 = corpus_windows(corpus, cut, np.random.default_rng(0))
        if not len(pieces_P3):
            raise ValueError("there is nothing to train on: every document is empty or without a label")
        lengths_P = pieces_P3[:, 1] - pieces_P3[:, 0]
        rows = max(1, cut.tokens_per_batch // int(lengths_P.max()))
        longest = collate(corpus, pieces_P3[np.argsort(-lengths_P, kind="stable")[:rows]])
        return cls(lengths_P, lengths_P, longest, len(corpus), len(corpus) if documents is None else documents)

    @classmethod
    def of_documents(cls, documents: Documents, cut: Windowing) -> Self:
        """Cut the documents to train on into windows. For a stream, cut the held-out documents instead."""
        if isinstance(documents.seen, Corpus):
            return cls.of_corpus(documents.seen, cut)
        return cls.of_corpus(documents.held_out, cut, documents=streamed_documents(documents.seen))

    @classmethod
    def of_labelled(cls, seen: LabelledDocuments, held_out: PackedWindow, sampled: int, tokens_per_batch: int) -> Self:
        """Return the packed windows of labelled documents. For a stream, use the `sampled` held-out documents instead.

        The first token of a window is not predicted.
        """
        windows, sampled = (seen.whole.windows, len(seen)) if seen.at_a_time is None else (held_out, sampled)
        count, size = windows.input_ids_T.shape
        lengths_W = (windows.document_T != PADDING).sum(axis=1) - 1
        longest = Batch.of(windows, np.argsort(-lengths_W, kind="stable")[: max(1, tokens_per_batch // size)])
        return cls(lengths_W, np.full(count, size), longest, sampled, len(seen))

    @property
    def tokens(self) -> float:
        """Number of tokens in the windows of the epoch."""
        return float(self.lengths_W.sum()) * self.documents / self.sampled

    def tokens_of_batch(self, tokens_per_batch: int) -> float:
        """Return the mean number of tokens in a batch, assuming that its windows have equal lengths."""
        batches_W = 1 / np.maximum(1, tokens_per_batch // self.positions_W)
        return float(self.lengths_W.sum() / batches_W.sum())


def streamed_documents(stream: DocumentStream) -> int:
    """Return the number of documents in an epoch of a stream. Only the footers of Parquet files are read.

    Raises:
        ValueError, OSError: as `inspect_file` does.
    """
    with stage("counting the documents"):
        rows = sum(sum(inspect_file(file, stream.column, ()).groups) for file in stream.files)
    return max(0, (rows if stream.limit is None else min(rows, stream.limit)) - stream.skip)
