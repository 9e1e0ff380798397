"""The annotator: labels the rows of a unit with a run's checkpoints, and commits their shard and its receipt.

A unit passes three stages, each in a thread of its own: rows are read and tokenized, labelled on the device, written.
A few chunks of rows wait between two stages, so that none of them waits for long and memory stays bounded.
"""

import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import chain
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa
from huggingface_hub import CommitOperationAdd
from tokenizers import Tokenizer

from pipeline.data.corpus import fold_of
from pipeline.data.counts import count
from pipeline.data.documents import document_tokens, read_rows
from pipeline.data.hub import shard_addition
from pipeline.data.iterators import BATCH_BYTES, prefetched
from pipeline.data.ledger import Ledger
from pipeline.data.shards import ShardWriter, annotated_rows
from pipeline.data.tokenizer import load_tokenizer
from pipeline.data.windows import WindowBatch, gather, sample_positions, window_batches
from pipeline.engine.plan import Run, Unit
from pipeline.engine.throughput import HELD, Stages, UnitResult
from pipeline.labels.retokenize import encode_with_ends, move_nats
from pipeline.messages import redacted
from schemas.annotations import Device
from schemas.layout import shard_name
from schemas.receipts import Counts, Receipt

AHEAD = 2  # chunks between two stages: enough to never wait, and memory stays at a few of 2 MiB of text
# What those in the stages and between them hold, 2 MiB each. Tokens and labels of a document that is as long take up to
# 60 bytes for each of its own.
CHUNKS_BYTES = 7 * BATCH_BYTES


class SourceError(Exception):
    """Rows cannot be read now; another try may succeed."""


class OutputError(Exception):
    """Nothing can be written: trying other units is of no use."""


class Labeller(Protocol):
    """A label method on its device: float32 [B, T] for every column of every batch, and batches labelled in parts."""

    @property
    def columns(self) -> tuple[str, ...]: ...

    @property
    def batch_tokens(self) -> int: ...

    @property
    def border(self) -> int | None: ...

    def label(
        self, batches: Iterable[WindowBatch], labelled: Callable[[WindowBatch], None] = ...
    ) -> tuple[list[dict[str, np.ndarray]], int]: ...


class Chunk(NamedTuple):
    """Some rows on their way through the stages."""

    rows: pa.RecordBatch
    tokens: list[np.ndarray]
    """Of each row, as they are written."""
    documents: list[np.ndarray]
    """Of each row, as the checkpoint reads them."""
    ends: list[tuple[np.ndarray, np.ndarray]] | None
    """Where both end in the text's bytes, the checkpoint's first, where they differ."""
    batches: list[list[WindowBatch]]
    """Of each fold's checkpoint."""


LabelledBatch = tuple[WindowBatch, Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class Annotator:
    """A run with its label method, one per fold, and tokenizer loaded; no tokenizer for documents tokenized already.

    Two units may be annotated at a time: while one is labelled, the next is read.
    """

    run: Run
    labellers: tuple[Labeller, ...]
    tokenizer: Tokenizer | None
    estimator_tokenizer: Tokenizer | None = None
    device_lock: threading.Lock = field(default_factory=threading.Lock)
    long_document_lock: threading.Lock = field(default_factory=threading.Lock)
    """Held while a document of more than BATCH_BYTES is tokenized, which may take 250 bytes for each of its own."""

    def annotate(self, unit: Unit, progress: "UnitProgress | None" = None) -> UnitResult:
        """Label the unit's rows, commit their shard and then its receipt, and send it to the repository, if any.

        Another thread may see in `progress` how far it is. An interrupt ends it when its batch is labelled.

        Raises:
            SourceError: if rows cannot be read, for a reason that may pass.
            DeviceError: if the device has too little memory.
            OutputError: if the shard or its receipt cannot be written.
            ValueError: if the rows or their labels are wrong.
        """
        try:
            receipt, stages = self._commit(unit, progress or UnitProgress())
            return UnitResult(receipt, stages, self._upload(receipt, stages))
        except OSError as error:  # what reading raises is none by now
            raise OutputError(f"cannot write to {self.run.subset.root}: {error}") from error

    def _commit(self, unit: Unit, progress: "UnitProgress") -> tuple[Receipt, Stages]:
        """The last stage, which writes, and the other two ahead of it."""
        stages, counts, memory = Stages(), Counts(), ByteBudget(CHUNKS_BYTES)
        chunks = self.chunks(unit, stages, lambda size: memory.acquire(size, progress.stopped))
        subset, shard = self.run.subset, shard_name(unit.index, self.run.units)
        with (
            prefetched(chunks, AHEAD) as waiting,
            prefetched(self._labelled(waiting, stages, progress), AHEAD) as labelled,
            _stopping(progress),
            ShardWriter(subset.data / shard, self.run.schema) as writer,
        ):
            for chunk, batches in labelled:
                with stages.timed("write"):
                    table = self._table(chunk, batches)
                    counts += count(chunk.rows, table, self.run.column, self.tokenizer)
                    writer.write(table)
                memory.release(chunk.rows.nbytes)
            with stages.timed("write"):
                digest, size = writer.finish()
        receipt = Receipt(unit=unit.index, shard=shard, sha256=digest, size=size, counts=counts)
        Ledger(subset).record(receipt)
        return receipt, stages

    def _upload(self, receipt: Receipt, stages: Stages) -> CommitOperationAdd | None:
        """Uploads the shard's content; returns what adds it to the repository, None without one."""
        if self.run.repository is None:
            return None
        addition = shard_addition(self.run.subset, receipt.shard)
        try:
            with stages.timed("upload"):
                self.run.repository.upload([addition])
                uploaded = addition.upload_info.sha256.hex()
        except (ValueError, LookupError) as error:  # the Hub refuses, which is not the rows' fault
            raise OutputError(str(error)) from error
        if uploaded != receipt.sha256:
            raise OutputError(
                f"{receipt.shard} is not on the disk of {self.run.subset.root} as it was written; check the disk"
            )
        return addition

    def chunks(
        self, unit: Unit, stages: Stages, acquire: Callable[[int], None] = lambda size: None
    ) -> Generator[Chunk, None, None]:
        """The first stage: a unit's rows, ready to be labelled, once `acquire` has memory for that many bytes."""
        random = np.random.default_rng(unit.index)
        for rows in self._rows(unit, stages):
            acquire(rows.nbytes)
            with self.long_document_lock if rows.nbytes > BATCH_BYTES else nullcontext(), stages.timed("tokenize"):
                chunk = self._tokenized(rows, random)
            yield chunk

    def _rows(self, unit: Unit, stages: Stages) -> Iterator[pa.RecordBatch]:
        try:
            batches = read_rows(unit.file, unit.start, unit.stop, self.run.source_schema, self.run.column)
            while True:
                with stages.timed("read"):
                    rows = next(batches, None)
                if rows is None:
                    return
                yield rows
        except ValueError:
            raise
        except Exception as error:  # the chain would show what `redacted` hides
            message = redacted(str(error))
            named = message if unit.file.url in message else f"cannot read {unit.file.url}: {message}"
            raise SourceError(named) from None

    def _tokenized(self, rows: pa.RecordBatch, random: np.random.Generator) -> Chunk:
        settings = self.run.provenance
        if self.tokenizer is None or self.estimator_tokenizer is None:
            tokens = documents = document_tokens(rows, self.run.column, self.tokenizer, settings.vocabulary)
            ends = None
        else:
            texts = [text or "" for text in rows.column(self.run.column.name).to_pylist()]
            read, written = (encode_with_ends(way, texts) for way in (self.estimator_tokenizer, self.tokenizer))
            documents, tokens = [one.ids_T for one in read], [one.ids_T for one in written]
            ends = [(one.ends_T, other.ends_T) for one, other in zip(read, written, strict=True)]
        return Chunk(rows, tokens, documents, ends, self.batches(documents, random))

    def batches(self, documents: list[np.ndarray], random: np.random.Generator) -> list[list[WindowBatch]]:
        """Batches for each checkpoint: of every document or, with folds, of those that it was not trained on."""
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
            for fold, labeller in enumerate(self.labellers)
        ]

    def _labelled(
        self, chunks: Iterator[Chunk], stages: Stages, progress: "UnitProgress"
    ) -> Generator[tuple[Chunk, list[LabelledBatch]], None, None]:
        """The second stage, which has the device until the unit's last row is labelled."""
        with self.device_lock, stages.timed(HELD):
            for chunk in chunks:
                yield chunk, self.label(chunk, stages, progress)

    def label(self, chunk: Chunk, stages: Stages, progress: "UnitProgress") -> list[LabelledBatch]:
        """Every batch of a chunk with its values."""
        labelled: list[LabelledBatch] = []
        whole = Amount(len(chunk.rows), sum(map(len, chunk.tokens)))
        with progress.chunk(whole, [*chain.from_iterable(chunk.batches)]) as count_batch:
            for labeller, batches in zip(self.labellers, chunk.batches, strict=True):
                with stages.timed("label"):
                    values, parts = labeller.label(batches, count_batch)
                labelled += zip(batches, values, strict=True)
                stages.add_batches(batches, parts)
        return labelled

    def _table(self, chunk: Chunk, batches: Sequence[LabelledBatch]) -> pa.Table:
        labels = gather(chunk.documents, batches, self.labellers[0].columns)
        if chunk.ends is not None:
            labels = {name: moved(nats, chunk.ends) for name, nats in labels.items()}
        return annotated_rows(chunk.rows, chunk.tokens, labels, self.run.schema)


def load_annotator(run: Run, device: Device) -> Annotator:
    """A run's checkpoints on a device of this node, with its tokenizers.

    Raises:
        ValueError: if a checkpoint of the Hub cannot be fetched.
        RuntimeError: if there is no such device.
    """
    from pipeline.labels.labeller import load_labellers  # imports torch, which a driver of other workers needs not

    run, settings = run.on_this_node(), run.provenance
    method, dtype, start = settings.method, settings.dtype, settings.start_token
    return with_tokenizers(run, load_labellers(run.checkpoints, device, method=method, dtype=dtype, start=start))


def with_tokenizers(run: Run, labellers: tuple[Labeller, ...]) -> Annotator:
    """An annotator with the run's tokenizers."""
    tokenizer = load_tokenizer(run.tokenizer) if run.tokenizer else None
    other = load_tokenizer(run.estimator_tokenizer) if run.estimator_tokenizer else None
    return Annotator(run, labellers, tokenizer, other)


def moved(nats: Sequence[np.ndarray], ends: Sequence[tuple[np.ndarray, np.ndarray]]) -> list[np.ndarray]:
    """Labels of each document's tokens, moved from those that the checkpoint reads to those that are written."""
    return [move_nats(nats_S, ends_S, ends_T) for nats_S, (ends_S, ends_T) in zip(nats, ends, strict=True)]


class Amount(NamedTuple):
    """Documents and tokens that are labelled; fractions of a document count too."""

    rows: float = 0.0
    tokens: float = 0.0


class StoppedError(Exception):
    """The unit's labels are not needed any more."""


class UnitProgress:
    """The labelled part of a unit, written by the thread that labels and read by any."""

    def __init__(self) -> None:
        self.labelled = Amount()
        self.stopped = threading.Event()
        """Set when the unit's labels are not needed any more."""

    @contextmanager
    def chunk(self, whole: Amount, batches: Sequence[WindowBatch]) -> Iterator[Callable[[WindowBatch], None]]:
        """A function to call after each of a chunk's batches; when all is labelled, the whole chunk counts.

        Batches count by the labels that are requested of them, as overlapping windows share tokens.
        """
        before, requested = self.labelled, sum(map(_requested, batches))
        finished = 0

        def count_batch(batch: WindowBatch) -> None:
            nonlocal finished
            finished += _requested(batch)
            share = finished / requested
            self.labelled = Amount(before.rows + whole.rows * share, before.tokens + whole.tokens * share)
            if self.stopped.is_set():
                raise StoppedError

        yield count_batch
        self.labelled = Amount(before.rows + whole.rows, before.tokens + whole.tokens)  # where none is requested too


def _requested(batch: WindowBatch) -> int:
    return int(batch.wanted_BT.sum())


@contextmanager
def _stopping(progress: UnitProgress) -> Iterator[None]:
    """Whatever ends the writing of a unit ends its labelling too, which runs ahead in a thread of its own."""
    try:
        yield
    finally:
        progress.stopped.set()


LOOK_SECONDS = 0.1  # how often a waiting thread looks whether its unit is stopped


class ByteBudget:
    """Memory that several threads share; a piece larger than all of it has it alone."""

    def __init__(self, size: int) -> None:
        self._size = self._free = size
        self._change = threading.Condition()

    def acquire(self, size: int, stopped: threading.Event) -> None:
        """Wait until so many bytes are free, or the unit is stopped."""
        with self._change:
            while self._free < min(size, self._size) and not stopped.is_set():
                self._change.wait(LOOK_SECONDS)
            self._free -= min(size, self._size)

    def release(self, size: int) -> None:
        """Give bytes back."""
        with self._change:
            self._free += min(size, self._size)
            self._change.notify_all()
