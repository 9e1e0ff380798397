"""Tokenized documents, joined end to end: a corpus in memory, with or without labels, or a stream of smaller corpora.

Suffixes of array names: N tokens, M documents.
"""

import hashlib
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter
from threading import Event

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tokenizers import Tokenizer

from pipeline.data.documents import Column, document_tokens, iterate_rows
from pipeline.data.files import File
from pipeline.data.iterators import prefetched

MOST_HELD_OUT = 500


@dataclass(frozen=True)
class Corpus:
    """Documents joined end to end: document m is `tokens_N[offsets[m] : offsets[m + 1]]`.

    `labels_N` has a label in nats for each token, or NaN for a token without a label. It is None for a corpus without
    labels. `expected_N` has the expected entropies in the same way, and is None if they were not read. `text_bytes_M`
    has the size of each document's text in UTF-8 bytes. It is None if the documents were read as token ids.
    """

    tokens_N: np.ndarray
    offsets: np.ndarray
    labels_N: np.ndarray | None = None
    text_bytes_M: np.ndarray | None = None
    expected_N: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @classmethod
    def of(
        cls,
        documents: Sequence[np.ndarray],
        labels: Sequence[np.ndarray] | None = None,
        text_bytes: Sequence[int] | None = None,
        expected: Sequence[np.ndarray] | None = None,
    ) -> "Corpus":
        """Join documents, given as one token array each, into a corpus.

        A document's arrays of labels and of expected entropies have the same length as its array of tokens.
        """
        offsets = np.cumsum([0, *(len(document) for document in documents)], dtype=np.int64)
        return cls(
            tokens_N=np.concatenate([np.empty(0, np.int32), *documents]),
            offsets=offsets,
            labels_N=None if labels is None else np.concatenate([np.empty(0, np.float32), *labels]),
            text_bytes_M=None if text_bytes is None else np.array(text_bytes, dtype=np.int64),
            expected_N=None if expected is None else np.concatenate([np.empty(0, np.float32), *expected]),
        )

    def documents(self, start: int, stop: int) -> "Corpus":
        """Select documents `start` to `stop`, excluding `stop`."""
        tokens = slice(int(self.offsets[start]), int(self.offsets[stop]))
        return replace(
            self,
            tokens_N=self.tokens_N[tokens],
            offsets=self.offsets[start : stop + 1] - self.offsets[start],
            labels_N=None if self.labels_N is None else self.labels_N[tokens],
            text_bytes_M=None if self.text_bytes_M is None else self.text_bytes_M[start:stop],
            expected_N=None if self.expected_N is None else self.expected_N[tokens],
        )

    def held_out(self, documents: int | None) -> tuple["Corpus", "Corpus"]:
        """Split the corpus into the training documents and the last documents, which are held out for evaluation.

        `documents` is the number of documents to hold out, or None for the default of `held_out_documents`.

        Raises:
            ValueError: if no document is left to train on, or the held-out documents have no tokens.
        """
        seen = len(self) - held_out_documents(len(self), documents)
        return self.documents(0, seen), require_tokens(self.documents(seen, len(self)))

    def leave_one_fold_out(self, folds: int) -> list["Corpus"]:
        """For each cross-validation fold, return a corpus of all documents except those of the fold.

        If there is only one fold, return a list of only this corpus.

        Raises:
            ValueError: if a fold has no document.
        """
        if folds == 1:
            return [self]
        if len(np.unique(self._folds(folds))) < folds:
            raise ValueError(f"{len(self)} documents are too few for `folds` {folds}; choose fewer folds")
        return [self.without_fold(fold, folds) for fold in range(folds)]

    def without_fold(self, fold: int, folds: int) -> "Corpus":
        """Return all documents except those of cross-validation fold `fold`, or all documents if `folds` is 1."""
        return self if folds == 1 else self._selected(np.flatnonzero(self._folds(folds) != fold))

    def _folds(self, folds: int) -> np.ndarray:
        return np.array([fold_of(document, folds) for document in self.by_document(self.tokens_N)], dtype=np.int64)

    def _selected(self, documents: np.ndarray) -> "Corpus":
        def chosen(values_N: np.ndarray) -> list[np.ndarray]:
            parts = self.by_document(values_N)
            return [parts[m] for m in documents]

        return Corpus.of(
            chosen(self.tokens_N),
            None if self.labels_N is None else chosen(self.labels_N),
            None if self.text_bytes_M is None else self.text_bytes_M[documents].tolist(),
            None if self.expected_N is None else chosen(self.expected_N),
        )

    def with_shuffled_labels(self, random: np.random.Generator) -> "Corpus":
        """Return a corpus whose labels are permuted at random among the labelled tokens.

        The distribution of the labels is preserved, but the relation between labels and tokens is lost.
        """
        assert self.labels_N is not None
        labels_N, labelled_N = self.labels_N.copy(), ~np.isnan(self.labels_N)
        labels_N[labelled_N] = random.permutation(labels_N[labelled_N])
        return replace(self, labels_N=labels_N)

    def by_document(self, values_N: np.ndarray) -> list[np.ndarray]:
        """Split an array with one value per token into one array per document."""
        return np.split(values_N, self.offsets[1:-1])[: len(self)]  # np.split returns one array for no documents

    @property
    def given_labels(self) -> np.ndarray:
        """Labels of all labelled tokens, in nats; empty for a corpus without labels."""
        labels_N: np.ndarray = np.empty(0, np.float32) if self.labels_N is None else self.labels_N
        given: np.ndarray = labels_N[~np.isnan(labels_N)]
        return given

    @property
    def mean_label(self) -> float:
        """Mean label of the labelled tokens, in nats; 0 if no token is labelled."""
        return float(self.given_labels.mean()) if len(self.given_labels) else 0.0

    @property
    def total_bytes(self) -> int | None:
        """Total size of the documents' texts in UTF-8 bytes; None if the documents were read as token ids."""
        return None if self.text_bytes_M is None else int(self.text_bytes_M.sum())


def interleaved(parts: Sequence[Corpus]) -> Corpus:
    """Join the shares of processes that took documents in turn, and restore the documents' original order.

    A single share is returned unchanged. If several shares are joined, labels and sizes of texts are dropped.
    """
    if len(parts) == 1:
        return parts[0]
    documents: list[np.ndarray] = [np.empty(0, np.int32)] * sum(map(len, parts))
    for process, part in enumerate(parts):
        documents[process :: len(parts)] = part.by_document(part.tokens_N)
    return Corpus.of(documents)


def held_out_documents(documents: int, requested: int | None) -> int:
    """Return the number of documents to hold out from training.

    This is `requested` or, if that is None, a twentieth of the documents, at least 1 and at most MOST_HELD_OUT.

    Raises:
        ValueError: if no document is left to train on, or none is held out.
    """
    held_out = min(MOST_HELD_OUT, max(1, documents // 20)) if requested is None else requested
    if not 0 < held_out < documents:
        raise ValueError(
            f"cannot hold out {held_out} of {documents} documents and train on the others; add documents or change "
            "`held_out`"
        )
    return held_out


def require_tokens(held_out: Corpus) -> Corpus:
    """Return the held-out corpus after checking that it has tokens.

    Raises:
        ValueError: if it has no tokens.
    """
    if not len(held_out.tokens_N):
        raise ValueError(f"the {len(held_out)} documents held out are empty; hold out more with `held_out`")
    return held_out


def fold_of(tokens_N: np.ndarray, folds: int) -> int:
    """Return the index of a document's cross-validation fold, from 0 to `folds` - 1.

    The fold depends only on the document's tokens, so all copies of a document are in the same fold.
    """
    if folds == 1:
        return 0
    digest = hashlib.blake2b(np.ascontiguousarray(tokens_N, dtype="<i4").tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % folds


def read_corpus(
    files: Iterable[File], *, column: Column, tokenizer: Tokenizer | None, vocabulary: int, limit: int | None = None
) -> Corpus:
    """Read and tokenize all documents of the files, or only the first `limit` documents.

    If `tokenizer` is None, the files hold token ids instead of text.
    """
    documents: list[np.ndarray] = []
    text_bytes: list[int] = []
    for rows in iterate_rows(list(files), column, limit):
        documents += document_tokens(rows, column, tokenizer, vocabulary)
        if tokenizer is not None:
            text_bytes += [len((text or "").encode()) for text in rows.column(column.name).to_pylist()]
    return Corpus.of(documents, text_bytes=None if tokenizer is None else text_bytes)


def no_exchange(mine: Corpus) -> Sequence[Corpus]:
    """Return a list that holds only `mine`. A process that reads a stream by itself has nothing to exchange."""
    return [mine]


@dataclass(frozen=True)
class ProcessShare:
    """Share of one process in a stream that several processes read together."""

    process: int = 0
    processes: int = 1
    exchange: Callable[[Corpus], Sequence[Corpus]] = no_exchange
    """Collective call that takes this process's share of a block and returns the shares of all processes, in the order
    of the processes."""


@dataclass(frozen=True, kw_only=True)
class DocumentStream:
    """Stream of documents `skip` to `limit` (exclusive) of the files, in blocks. Each iteration reads the files again.

    If `limit` is None, the stream ends with the last document.
    """

    files: Sequence[File]
    column: Column
    tokenizer: Tokenizer | None
    vocabulary: int
    block: int
    """Approximate size of a block, in bytes of text, or in token ids if documents are already tokenized. Blocks consist
    of whole documents."""
    skip: int = 0
    limit: int | None = None
    sharing: ProcessShare = ProcessShare()
    without: tuple[int, int] = (0, 1)
    """Index of the cross-validation fold to leave out, and the total number of folds. If there is only one fold, no
    document is left out."""

    def leave_one_fold_out(self, folds: int) -> list["DocumentStream"]:
        """For each cross-validation fold, return a stream of all documents except those of the fold.

        If there is only one fold, its stream has all documents.
        """
        return [replace(self, without=(fold, folds)) for fold in range(folds)]

    def __iter__(self) -> Iterator[Corpus]:
        """Yield each block as a corpus.

        While a block is used, another thread reads this process's share of the next block. The shares of all processes
        are exchanged in the thread that iterates.

        Raises:
            ValueError, OSError: as iterate_rows and document_tokens do, when the block with the error is requested.
        """
        stop = Event()
        with prefetched(self._shares(stop), 1) as shares:
            try:
                for share in shares:
                    yield interleaved(self.sharing.exchange(share)).without_fold(*self.without)
            finally:
                stop.set()

    def _shares(self, stop: Event) -> Generator[Corpus, None, None]:
        """Yield this process's share of each block, tokenized."""
        for _, runs in groupby(numbered(self._rows(), self.block), itemgetter(0)):
            documents: list[np.ndarray] = []
            before = 0
            for _, rows in runs:
                if stop.is_set():
                    return
                first = (self.sharing.process - before) % self.sharing.processes
                mine = rows.take(pa.array(range(first, len(rows), self.sharing.processes), pa.int64()))
                documents += document_tokens(mine, self.column, self.tokenizer, self.vocabulary)
                before += len(rows)
            yield Corpus.of(documents)

    def _rows(self) -> Iterator[pa.RecordBatch]:
        skip = self.skip
        for rows in iterate_rows(self.files, self.column, self.limit):
            yield rows.slice(min(skip, len(rows)))
            skip -= min(skip, len(rows))


def numbered(batches: Iterable[pa.RecordBatch], block: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Divide the rows into blocks of about `block` bytes or token ids.

    Yield pairs of a block's index and a batch of consecutive rows of this block. The index of a row's block is the
    total size of all rows before this row, divided by `block` and rounded down.
    """
    before = 0
    for rows in batches:
        sizes = lengths(rows.column(0))
        blocks = (before + np.cumsum(sizes) - sizes) // block
        before += int(sizes.sum())
        for number in np.unique(blocks).tolist():
            start, stop = np.searchsorted(blocks, [number, number + 1]).tolist()
            yield number, rows.slice(start, stop - start)


def lengths(column: pa.Array) -> np.ndarray:
    """Return the size of each document: the bytes of a text, the number of ids in a list, or 0 for null."""
    listed = pa.types.is_nested(column.type)
    counts = pc.list_value_length(column) if listed else pc.binary_length(column)
    sizes: np.ndarray = counts.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    return sizes
