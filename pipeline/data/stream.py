"""Documents that are more than memory holds, tokenized block after block, the next one while the last is in use.

Several processes that need the same blocks each tokenize a share of every block's documents, and tell each other.
Where blocks end follows from the files alone: not from how many processes there are, nor from how fast they read.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter
from threading import Event

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from tokenizers import Tokenizer

from pipeline.data.ahead import ahead
from pipeline.data.corpus import Corpus, interleaved
from pipeline.data.documents import Column, document_tokens, iterate_rows
from pipeline.data.locations import File


def alone(mine: Corpus) -> Sequence[Corpus]:
    """How the only process is told what all have."""
    return [mine]


@dataclass(frozen=True)
class Sharing:
    """This process among those that read the same stream."""

    process: int = 0
    processes: int = 1
    exchange: Callable[[Corpus], Sequence[Corpus]] = alone
    """From what this process has to what each has, in their order; every process asks at the same point."""


@dataclass(frozen=True, kw_only=True)
class DocumentStream:
    """The documents from number `skip` to number `limit` as blocks, again each time that they are iterated over."""

    files: Sequence[File]
    column: Column
    tokenizer: Tokenizer | None
    vocabulary: int
    block: int
    """Bytes of text, or token ids of documents tokenized already, in a block; a block ends with a document."""
    skip: int = 0
    limit: int | None = None
    sharing: Sharing = Sharing()
    without: tuple[int, int] = (0, 1)
    """A fold and the number of folds: the fold is left out where there are more than one."""

    def each_without_a_fold(self, folds: int) -> list["DocumentStream"]:
        """The stream without each of its folds in turn; the whole of it where there is one fold."""
        return [replace(self, without=(fold, folds)) for fold in range(folds)]

    def __iter__(self) -> Iterator[Corpus]:
        """The blocks, exchanged in the thread that takes them: the other one knows nothing of other processes.

        Raises:
            ValueError, OSError: as iterate_rows and document_tokens do, in the turn of their block.
        """
        stop = Event()
        with ahead(self._shares(stop), 1) as shares:
            try:
                for share in shares:
                    yield interleaved(self.sharing.exchange(share)).without_fold(*self.without)
            finally:
                stop.set()

    def _shares(self, stop: Event) -> Generator[Corpus, None, None]:
        """Of each block the documents that are this process's to tokenize."""
        for _, runs in groupby(numbered(self._rows(), self.block), itemgetter(0)):
            documents: list[np.ndarray] = []
            place = 0
            for _, rows in runs:
                if stop.is_set():
                    return
                first = (self.sharing.process - place) % self.sharing.processes
                mine = rows.take(pa.array(range(first, len(rows), self.sharing.processes), pa.int64()))
                documents += document_tokens(mine, self.column, self.tokenizer, self.vocabulary)
                place += len(rows)
            yield Corpus.of(documents)

    def _rows(self) -> Iterator[pa.RecordBatch]:
        skip = self.skip
        for rows in iterate_rows(self.files, self.column, self.limit):
            yield rows.slice(min(skip, len(rows)))
            skip -= min(skip, len(rows))


def numbered(batches: Iterable[pa.RecordBatch], block: int) -> Iterator[tuple[int, pa.RecordBatch]]:
    """The rows in runs, each with the number of its block: how many times `block` the rows before it fill."""
    before = 0
    for rows in batches:
        sizes = lengths(rows.column(0))
        blocks = (before + np.cumsum(sizes) - sizes) // block
        before += int(sizes.sum())
        for number in np.unique(blocks).tolist():
            start, stop = np.searchsorted(blocks, [number, number + 1]).tolist()
            yield number, rows.slice(start, stop - start)


def lengths(column: pa.Array) -> np.ndarray:
    """Bytes of each text, or the number of ids in each list; 0 where there is neither."""
    listed = pa.types.is_nested(column.type)
    counted = pc.list_value_length(column) if listed else pc.binary_length(column)
    sizes: np.ndarray = counted.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    return sizes
