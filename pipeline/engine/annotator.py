"""The annotator: it labels a unit's rows with a run's checkpoints, and commits the shard with a receipt.

A unit is a range of rows. Its rows pass through three stages, and each stage runs in its own thread: rows are read and
tokenized, then labelled on the device, then written. A few chunks of rows are queued between two stages, so that no
stage waits for long and memory stays bounded.
"""

import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from math import prod
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa
from huggingface_hub import CommitOperationAdd
from tokenizers import Tokenizer

from pipeline.data.corpus import fold_of
from pipeline.data.counts import count
from pipeline.data.documents import document_tokens, read_rows
from pipeline.data.hub import shard_addition
from pipeline.data.iterators import BATCH_BYTES, ByteBudget, prefetched
from pipeline.data.ledger import Ledger
from pipeline.data.shards import ShardWriter, annotated_rows
from pipeline.data.sidecar_keys import with_keys
from pipeline.data.tokenizer import load_tokenizer
from pipeline.data.windows import WindowBatch, gather, sample_positions, window_batches
from pipeline.engine.plan import Run, Unit
from pipeline.engine.throughput import HELD, Stages, UnitResult
from pipeline.engine.unit_progress import Amount, UnitProgress, stopping
from pipeline.labels.calibration import calibrated, rows_without_fit
from pipeline.labels.ensemble import Labels, combined
from pipeline.labels.moved_predictions import first_tokens, moved_predictions
from pipeline.labels.retokenize import encode_with_ends, move_nats
from pipeline.messages import redacted
from schemas.annotations import PREDICTED, Device, Shape
from schemas.layout import shard_name
from schemas.receipts import Counts, Receipt

Ends = list[tuple[np.ndarray, np.ndarray]]
AHEAD = 2  # chunks queued between two stages: enough that no stage waits
# Maximum bytes of text in all of a unit's chunks, those in the stages and those queued between them: seven chunks of
# 2 MiB. The tokens and labels of a document of 2 MiB take up to 60 bytes per byte of its text.
CHUNKS_BYTES = 7 * BATCH_BYTES
NUMBERS_PER_TOKEN = 16  # numbers in all labels of a token; if there are more, chunks are smaller


class SourceError(Exception):
    """Raised if rows cannot be read at the moment. A retry may succeed."""


class OutputError(Exception):
    """Raised if the output cannot be written. All other units would then fail too."""


class WindowLabeller(Protocol):
    """A label method, with its model on a device.

    `label` returns a list with one dictionary per batch, and the number of batches that did not fit in the device's
    memory and were labelled in parts. A batch's dictionary maps each label column to the labels, float32 [B, T], or
    [K, B, T] if `columns` has the shape (K,) for a token's value.
    """

    @property
    def columns(self) -> Mapping[str, Shape]: ...

    @property
    def batch_tokens(self) -> int: ...

    @property
    def border(self) -> int | None: ...

    def label(
        self, batches: Iterable[WindowBatch], labelled: Callable[[WindowBatch], None] = ...
    ) -> tuple[list[dict[str, np.ndarray]], int]: ...


class ChunkReading(NamedTuple):
    """A reading of a chunk: the chunk's documents, tokenized for one or more checkpoints that read the same tokens."""

    documents: list[np.ndarray]
    """Token ids that the checkpoint reads, one array per row."""
    ends: Ends | None
    """Byte positions in each row's text at which tokens end. A row has a pair of arrays: one for the tokens that the
    checkpoint reads, and one for the tokens of the dataset. None if the checkpoint reads the dataset's tokens."""
    batches: list[list[WindowBatch]]
    """Batches to label, one list per cross-validation fold; a single list without folds."""


class Chunk(NamedTuple):
    """A few rows that pass through the stages together."""

    rows: pa.RecordBatch
    tokens: list[np.ndarray]
    """Token ids that are written to the dataset, one array per row."""
    readings: list[ChunkReading]
    """Tokenizations of the rows for the checkpoints. There is one reading per member of an ensemble if the members have
    different tokenizers, and a single reading otherwise."""


LabelledBatch = tuple[WindowBatch, Mapping[str, np.ndarray]]
LabelledReading = tuple[ChunkReading, list[LabelledBatch]]


@dataclass(frozen=True)
class Annotator:
    """Annotator of a run's units. It reads, tokenizes and labels the rows of a unit, and writes them as a shard.

    `tokenizer` makes the token ids of the dataset, and is None if the documents are already tokenized. Checkpoints may
    read other tokens. A reading is a tokenization of the documents, made for the checkpoints that read its tokens. If
    the members of an ensemble have different tokenizers, there is one reading per member. Otherwise there is a single
    reading.

    For each reading, the annotator has one labeller per cross-validation fold, or a single labeller without folds.
    `estimator_tokenizers` has one tokenizer per reading. The tokenizer is None if the reading consists of the dataset's
    tokens. Two units may be annotated at a time: while the first unit is labelled, the rows of the second unit are
    read.
    """

    run: Run
    labellers: tuple[WindowLabeller, ...]
    tokenizer: Tokenizer | None
    estimator_tokenizers: tuple[Tokenizer | None, ...] = (None,)
    first_V: np.ndarray | None = None
    """Result of `first_tokens`, if predictions are transferred from the tokens of a checkpoint to those of the dataset;
    otherwise None."""
    device_lock: threading.Lock = field(default_factory=threading.Lock)
    long_document_lock: threading.Lock = field(default_factory=threading.Lock)
    """Lock that is held while a document of more than BATCH_BYTES is tokenized. Tokenizing may take 250 bytes of memory
    per byte of text."""

    def annotate(self, unit: Unit, progress: UnitProgress | None = None) -> UnitResult:
        """Label a unit's rows, commit the shard and its receipt, and return the result.

        If the run has a repository, the shard's content is also uploaded. The unit's progress is written to `progress`,
        from which any thread may read. An interrupt takes effect after the current batch.

        Raises:
            SourceError: if rows cannot be read for a reason that may be temporary.
            DeviceError: if the device has too little memory.
            OutputError: if the shard or its receipt cannot be written.
            ValueError: if a row or a label is invalid, for example a token id that is outside the vocabulary.
        """
        try:
            receipt, stages = self._commit(unit, progress or UnitProgress())
            return UnitResult(receipt, stages, self._upload(receipt, stages))
        except OSError as error:  # only from writing: errors of reading are SourceErrors by now
            raise OutputError(f"cannot write to {self.run.subset.root}: {error}") from error

    def _commit(self, unit: Unit, progress: UnitProgress) -> tuple[Receipt, Stages]:
        """Write a unit's shard and receipt, and return the receipt and the seconds per stage.

        This is the last stage. The two earlier stages run ahead in threads of their own.
        """
        stages, counts, memory = Stages(), Counts(), ByteBudget(CHUNKS_BYTES)
        chunks = self.chunks(unit, stages, lambda size: memory.acquire(size, progress.stopped))
        subset, shard = self.run.subset, shard_name(unit.index, self.run.units)
        with (
            prefetched(chunks, AHEAD) as waiting,
            prefetched(self._labelled(waiting, stages, progress), AHEAD) as labelled,
            stopping(progress),
            ShardWriter(subset.data / shard, self.run.schema) as writer,
        ):
            for chunk, readings in labelled:
                with stages.timed("write"):
                    table = self._table(chunk, readings)
                    counts += count(chunk.rows, table, self.run.column, self.tokenizer)
                    counts += Counts(rows_without_fit=rows_without_fit(chunk.rows, self.run.provenance.calibration))
                    writer.write(table.select(self.run.schema.names))
                memory.release(chunk.rows.nbytes)
            with stages.timed("write"):
                digest, size = writer.finish()
        receipt = Receipt(unit=unit.index, shard=shard, sha256=digest, size=size, counts=counts)
        Ledger(subset).record(receipt)
        return receipt, stages

    def _upload(self, receipt: Receipt, stages: Stages) -> CommitOperationAdd | None:
        """Upload a shard's content, and return the operation that adds the shard to the repository.

        Return None if the run has no repository.
        """
        if self.run.repository is None:
            return None
        addition = shard_addition(self.run.subset, receipt.shard)
        try:
            with stages.timed("upload"):
                self.run.repository.upload([addition])
                uploaded = addition.upload_info.sha256.hex()
        except (ValueError, LookupError) as error:  # the Hub refused, which is not the fault of the rows
            raise OutputError(str(error)) from error
        if uploaded != receipt.sha256:
            raise OutputError(
                f"{receipt.shard} in {self.run.subset.root} is not what was written there; check the disk"
            )
        return addition

    def chunks(
        self, unit: Unit, stages: Stages, acquire: Callable[[int], None] = lambda size: None
    ) -> Generator[Chunk, None, None]:
        """Yield a unit's rows in chunks, tokenized and batched. This is the first stage.

        Before a chunk is tokenized, `acquire` is called with the chunk's size in bytes. `acquire` may wait until this
        much memory is free.
        """
        random = np.random.default_rng(unit.index)
        for rows in self._rows(unit, stages):
            acquire(rows.nbytes)
            with self.long_document_lock if rows.nbytes > BATCH_BYTES else nullcontext(), stages.timed("tokenize"):
                chunk = self._tokenized(rows, random)
            yield chunk

    def annotated(self, rows: pa.RecordBatch) -> pa.Table:
        """Annotate rows that are in memory, with the random numbers of a run's first unit, and return the table."""
        random, tables = np.random.default_rng(0), list[pa.Table]()
        for piece in _pieces(rows, sum(map(prod, self.run.provenance.label_shapes.values()))):
            chunk = self._tokenized(piece, random)
            tables.append(self._table(chunk, self.label(chunk, Stages(), UnitProgress())))
        return pa.concat_tables(tables) if tables else self.run.schema.empty_table()

    def _rows(self, unit: Unit, stages: Stages) -> Iterator[pa.RecordBatch]:
        try:
            batches = read_rows(unit.file, unit.start, unit.stop, self.run.source_schema, self.run.column)
            batches = (
                with_keys(batches, unit.file, unit.start, self.run.column) if self.run.provenance.sidecar else batches
            )
            while True:
                with stages.timed("read"):
                    rows = next(batches, None)
                if rows is None:
                    return
                yield from _pieces(rows, sum(map(prod, self.run.provenance.label_shapes.values())))
        except ValueError:
            raise
        except Exception as error:  # raised without its cause, which would show what `redacted` hides
            message = redacted(str(error))
            named = message if unit.file.url in message else f"cannot read {unit.file.url}: {message}"
            raise SourceError(named) from None

    def _tokenized(self, rows: pa.RecordBatch, random: np.random.Generator) -> Chunk:
        if self.tokenizer is None or not any(self.estimator_tokenizers):
            tokens = document_tokens(rows, self.run.column, self.tokenizer, self.run.provenance.vocabulary)
            return Chunk(rows, tokens, [ChunkReading(tokens, None, self.batches(0, tokens, random))])
        texts = [text or "" for text in rows.column(self.run.column.name).to_pylist()]
        tokens, read = self.read(texts)
        return Chunk(
            rows,
            tokens,
            [
                ChunkReading(documents, ends, self.batches(index, documents, random))
                for index, (documents, ends) in enumerate(read)
            ],
        )

    def read(self, texts: Sequence[str]) -> tuple[list[np.ndarray], list[tuple[list[np.ndarray], Ends | None]]]:
        """Return the dataset's token ids, and a pair of token ids and ends for each reading (see the class).

        Ends are the byte positions at which tokens end. Each text has two arrays of ends: for the tokens of the
        reading, and for the tokens of the dataset. If the reading consists of the dataset's tokens, None replaces the
        ends.
        """
        assert self.tokenizer is not None
        written = encode_with_ends(self.tokenizer, texts)
        tokens = [one.ids_T for one in written]
        readings: list[tuple[list[np.ndarray], Ends | None]] = []
        for tokenizer in self.estimator_tokenizers:
            if tokenizer is None:
                readings.append((tokens, None))
            else:
                read = encode_with_ends(tokenizer, texts)
                ends = [(one.ends_T, other.ends_T) for one, other in zip(read, written, strict=True)]
                readings.append(([one.ids_T for one in read], ends))
        return tokens, readings

    def labellers_of(self, reading: int) -> tuple[WindowLabeller, ...]:
        """Return the labellers of the reading with the index `reading`, one per cross-validation fold."""
        folds = self.run.provenance.folds
        return self.labellers[reading * folds : (reading + 1) * folds]

    def batches(
        self, reading: int, documents: list[np.ndarray], random: np.random.Generator
    ) -> list[list[WindowBatch]]:
        """Return the batches to label in the reading with the index `reading`, one list per cross-validation fold.

        `documents` has the token ids of the reading's documents. Without folds, a single list has the batches of all
        documents. With folds, the list of a fold has only the documents that were held out when the fold's checkpoint
        was trained.
        """
        settings = self.run.provenance
        sampled = [sample_positions(len(ids), settings.share, random) for ids in documents]
        fold_M = [fold_of(ids, settings.folds) for ids in documents]
        return [
            window_batches(
                documents,
                [sampled_T & (own == fold) for sampled_T, own in zip(sampled, fold_M, strict=True)],
                window=settings.window,
                overlap=settings.overlap,
                budget=1 if settings.batch_invariant else labeller.batch_tokens,
                border=labeller.border,
            )
            for fold, labeller in enumerate(self.labellers_of(reading))
        ]

    def _labelled(
        self, chunks: Iterator[Chunk], stages: Stages, progress: UnitProgress
    ) -> Generator[tuple[Chunk, list[LabelledReading]], None, None]:
        """Yield every chunk with its labelled batches. This is the second stage.

        The stage locks the device until the unit's last row is labelled.
        """
        with self.device_lock, stages.timed(HELD):
            for chunk in chunks:
                yield chunk, self.label(chunk, stages, progress)

    def label(self, chunk: Chunk, stages: Stages, progress: UnitProgress) -> list[LabelledReading]:
        """Label all batches of a chunk. Return each tokenization of the chunk's documents with its labelled batches.

        There is one tokenization for all checkpoints, or one per member of an ensemble with several tokenizers.
        """
        labelled: list[LabelledReading] = []
        whole = Amount(len(chunk.rows), sum(map(len, chunk.tokens)))
        every = [batch for reading in chunk.readings for batches in reading.batches for batch in batches]
        with progress.chunk(whole, every) as count_batch:
            for index, reading in enumerate(chunk.readings):
                done: list[LabelledBatch] = []
                for labeller, batches in zip(self.labellers_of(index), reading.batches, strict=True):
                    with stages.timed("label"):
                        values, parts = labeller.label(batches, count_batch)
                    done += zip(batches, values, strict=True)
                    stages.add_batches(batches, parts)
                labelled.append((reading, done))
        return labelled

    def labels(self, labelled: Sequence[LabelledReading], rows: pa.RecordBatch) -> Labels:
        """Return the labels of the dataset's tokens, by column: one array per row."""
        labels = combined([self._moved(*each) for each in labelled])
        return calibrated(labels, self.run.provenance.calibration, rows)

    def _moved(self, reading: ChunkReading, batches: Sequence[LabelledBatch]) -> Labels:
        labels = gather(reading.documents, batches, self.labellers[0].columns)
        if reading.ends is None:
            return labels
        nats = {name: moved(arrays, reading.ends) for name, arrays in labels.items() if name not in PREDICTED}
        return nats if self.first_V is None else nats | moved_predictions(labels, reading.ends, self.first_V)

    def _table(self, chunk: Chunk, labelled: Sequence[LabelledReading]) -> pa.Table:
        return annotated_rows(chunk.rows, chunk.tokens, self.labels(labelled, chunk.rows), self.run.labelled_schema)


def _pieces(rows: pa.RecordBatch, numbers: int) -> Iterator[pa.RecordBatch]:
    """Divide rows into smaller pieces if each token has many values in the label columns.

    `numbers` is the number of values per token in all label columns together. If it is above NUMBERS_PER_TOKEN, a piece
    has proportionally fewer rows. The first piece keeps the metadata of `rows`, in which the documents that were left
    out are counted.
    """
    size = max(1, -(-len(rows) // -(-numbers // NUMBERS_PER_TOKEN)))
    for start in range(0, len(rows), size):
        piece = rows.slice(start, size)
        yield piece if start == 0 else piece.replace_schema_metadata(None)


def load_annotator(run: Run, device: Device) -> Annotator:
    """Return a run's annotator, with its checkpoints loaded onto a device of this node.

    Raises:
        ValueError: if a checkpoint cannot be fetched from the Hub.
        RuntimeError: if this node has no device of the requested kind.
    """
    from pipeline.labels.torch_labeller import (
        load_labellers,
    )  # imports torch, which the driver of a cluster does not need

    run, settings = run.on_this_node(), run.provenance
    columns = settings.label_shapes
    labellers = load_labellers(run.ensembles, device, method=settings.method, dtype=settings.dtype, columns=columns)
    return with_tokenizers(run, labellers)


def with_tokenizers(run: Run, labellers: tuple[WindowLabeller, ...]) -> Annotator:
    """Load a run's tokenizers, and return an annotator with the tokenizers and the given labellers."""
    tokenizer = load_tokenizer(run.tokenizer) if run.tokenizer else None
    others = tuple(load_tokenizer(folder) if folder else None for folder in run.estimator_tokenizers)
    first_V = None
    if run.provenance.top_k and tokenizer is not None and others[0] is not None:
        first_V = first_tokens(others[0], tokenizer)
    return Annotator(run, labellers, tokenizer, others, first_V)


def moved(nats: Sequence[np.ndarray], ends: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[np.ndarray]:
    """Transfer labels from the tokens that a checkpoint reads to the tokens of the dataset.

    The nats of each token are divided among the dataset's tokens that cover the same bytes. The returned list has one
    array of labels per document, in the order of `nats` and `ends`. A pair in `ends` has the byte positions at which
    tokens end, first for the checkpoint's tokens, then for the dataset's tokens.
    """
    return [move_nats(nats_S, ends_S, ends_T) for nats_S, (ends_S, ends_T) in zip(nats, ends, strict=True)]
