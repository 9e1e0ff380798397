"""What a unit, a device or an output can fail by, as its driver tells them apart."""

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
from pipeline.data.shards import annotated_rows, write_shard
from pipeline.data.tokenizer import load_tokenizer
from pipeline.data.windows import Batch, gather, sample_positions, window_batches
from pipeline.engine.plan import Run, Unit
from pipeline.engine.throughput import HELD, Stages, UnitResult
from pipeline.labels.retokenize import encode_with_ends, move_nats
from pipeline.messages import redacted
from schemas.annotations import Device
from schemas.layout import shard_name
from schemas.receipts import Counts, Receipt


class SourceError(Exception):
    """Rows cannot be read now; another try may succeed."""


class OutputError(Exception):
    """Nothing can be written: trying other units is of no use."""


class Part(NamedTuple):
    """Documents and tokens that are labelled; fractions of a document count too."""

    rows: float = 0.0
    tokens: float = 0.0


class StoppedError(Exception):
    """Nobody wants the unit's labels any more."""


class Underway:
    """One unit's, written by the thread that labels and read by any."""

    def __init__(self) -> None:
        self.labelled = Part()
        self.stopped = False

    def is_stopped(self) -> bool:
        """True when nobody wants the unit any more."""
        return self.stopped

    def chunk(self, rows: int, tokens: int, batches: Sequence[Batch]) -> Callable[[Batch], None]:
        """What is to be called after each of these batches, which label so many rows of so many tokens.

        Batches count by the labels that are asked of them, as overlapping windows share tokens.
        """
        before, asked = self.labelled, sum(map(_asked, batches))
        had = 0

        def labelled(batch: Batch) -> None:
            nonlocal had
            had += _asked(batch)
            self.labelled = Part(before.rows + rows * had / asked, before.tokens + tokens * had / asked)
            if self.stopped:
                raise StoppedError

        return labelled


def _asked(batch: Batch) -> int:
    return int(batch.wanted_BT.sum())


LOOK_SECONDS = 0.1  # how often somebody who waits looks whether it is wanted still


class Room:
    """So many bytes; what is larger than all of it has it alone."""

    def __init__(self, size: int) -> None:
        self._size = self._free = size
        self._change = threading.Condition()

    def take(self, size: int, stopped: Callable[[], bool]) -> None:
        """Waits until there is as much, or nobody wants it any more."""
        with self._change:
            while self._free < min(size, self._size) and not stopped():
                self._change.wait(LOOK_SECONDS)
            self._free -= min(size, self._size)

    def give_back(self, size: int) -> None:
        """Makes room for others."""
        with self._change:
            self._free += min(size, self._size)
            self._change.notify_all()


AHEAD = 2  # between two stages: enough to never wait, and memory stays at a few chunks of 2 MiB of text
# What those in the stages and between them hold, 2 MiB each. Tokens and labels of a document that is as long take up to
# 60 bytes for each of its own.
CHUNKS_BYTES = 7 * BATCH_BYTES


class Labeller(Protocol):
    """A label method on its device: float32 [B, T] for every column of every batch, and batches labelled in parts."""

    @property
    def columns(self) -> tuple[str, ...]: ...

    @property
    def batch_tokens(self) -> int: ...

    @property
    def border(self) -> int | None: ...

    def label(
        self, batches: Iterable[Batch], labelled: Callable[[Batch], None] = ...
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
    batches: list[list[Batch]]
    """Of each fold's checkpoint."""


LabelledBatch = tuple[Batch, Mapping[str, np.ndarray]]
Labelled = tuple[Chunk, list[LabelledBatch]]


@dataclass(frozen=True)
class Annotator:
    """A run with its label method, one a fold, and tokenizer loaded; no tokenizer for documents tokenized already.

    Two units may be annotated at a time: while one is labelled, the next is read.
    """

    run: Run
    labellers: tuple[Labeller, ...]
    tokenizer: Tokenizer | None
    estimator_tokenizer: Tokenizer | None = None
    device: threading.Lock = field(default_factory=threading.Lock)
    large: threading.Lock = field(default_factory=threading.Lock)
    """Held while a document of more than BATCH_BYTES is tokenized, which may take 250 bytes for each of its own."""

    def annotate(self, unit: Unit, underway: Underway | None = None) -> UnitResult:
        """Labels the unit's rows, commits their shard and then its receipt, and sends it to the repository, if any.

        Another thread may see in `underway` how far it is. An interrupt ends it when its batch is labelled.

        Raises:
            SourceError: if rows cannot be read, for a reason that may pass.
            DeviceError: if the device has too little memory.
            OutputError: if the shard or its receipt cannot be written.
            ValueError: if the rows or their labels are wrong.
        """
        try:
            return self._commit(unit, underway or Underway())
        except OSError as error:  # what reading raises is none by now
            raise OutputError(f"cannot write to {self.run.subset.root}: {error}") from error

    def _commit(self, unit: Unit, underway: Underway) -> UnitResult:
        stages, counts, room = Stages(), [Counts()], Room(CHUNKS_BYTES)
        shard = shard_name(unit.index, self.run.units)
        with (
            prefetched(self.chunks(unit, stages, lambda size: room.take(size, underway.is_stopped)), AHEAD) as chunks,
            prefetched(self._labelled(chunks, stages, underway), AHEAD) as labelled,
            _stopping(underway),
            stages.timed("write"),
        ):
            tables = self._tables(stages.untimed_items("write", labelled), counts, room)
            file = self.run.subset.data / shard
            digest = write_shard(file, tables, self.run.schema)
        size, all_counts = file.stat().st_size, sum(counts, start=Counts())
        receipt = Receipt(unit=unit.index, shard=shard, sha256=digest, size=size, counts=all_counts)
        Ledger(self.run.subset).record(receipt)
        return UnitResult(receipt, stages, self._sent(receipt, stages))

    def _sent(self, receipt: Receipt, stages: Stages) -> CommitOperationAdd | None:
        """What adds the shard to the repository, its content being there; nothing without a repository."""
        if self.run.repository is None:
            return None
        addition = shard_addition(self.run.subset, receipt.shard)
        try:
            with stages.timed("upload"):
                self.run.repository.upload([addition])
                sent = addition.upload_info.sha256.hex()
        except (ValueError, LookupError) as error:  # the Hub's no, not the rows' fault
            raise OutputError(str(error)) from error
        if sent != receipt.sha256:
            raise OutputError(
                f"{receipt.shard} is not on the disk of {self.run.subset.root} as it was written; check the disk"
            )
        return addition

    def chunks(
        self, unit: Unit, stages: Stages, enter: Callable[[int], None] = lambda size: None
    ) -> Generator[Chunk, None, None]:
        """The first stage: a unit's rows, ready to be labelled, when there is room for so many bytes of them."""
        random = np.random.default_rng(unit.index)
        for rows in stages.timed_items("read", self._rows(unit)):
            enter(rows.nbytes)
            with self.large if rows.nbytes > BATCH_BYTES else nullcontext(), stages.timed("tokenize"):
                chunk = self._tokenized(rows, random)
            yield chunk

    def _rows(self, unit: Unit) -> Iterator[pa.RecordBatch]:
        try:
            yield from read_rows(unit.file, unit.start, unit.stop, self.run.source_schema, self.run.column)
        except ValueError:
            raise
        except Exception as error:  # the chain would show what `redacted` hides
            told = redacted(str(error))
            raise SourceError(told if unit.file.url in told else f"cannot read {unit.file.url}: {told}") from None

    def _labelled(self, chunks: Iterator[Chunk], stages: Stages, underway: Underway) -> Generator[Labelled, None, None]:
        """The second stage, which has the device until the unit's last row is labelled."""
        with self.device, stages.timed(HELD):
            for chunk in chunks:
                yield chunk, self.label(chunk, stages, underway)

    def label(self, chunk: Chunk, stages: Stages, underway: Underway) -> list[LabelledBatch]:
        """Every batch of a chunk with its values."""
        labelled: list[LabelledBatch] = []
        rows, tokens = len(chunk.rows), sum(map(len, chunk.tokens))
        before, told = underway.labelled, underway.chunk(rows, tokens, [*chain.from_iterable(chunk.batches)])
        for labeller, batches in zip(self.labellers, chunk.batches, strict=True):
            with stages.timed("label"):
                values, parts = labeller.label(batches, told)
            labelled += zip(batches, values, strict=True)
            stages.add_batches(batches, parts)
        underway.labelled = Part(before.rows + rows, before.tokens + tokens)  # of no batch where none is asked
        return labelled

    def _tables(self, labelled: Iterable[Labelled], counts: list[Counts], room: Room) -> Iterator[pa.Table]:
        """The third stage."""
        for chunk, batches in labelled:
            labels = gather(chunk.documents, batches, self.labellers[0].columns)
            if chunk.ends is not None:
                labels = {name: moved(nats, chunk.ends) for name, nats in labels.items()}
            table = annotated_rows(chunk.rows, chunk.tokens, labels, self.run.schema)
            counts.append(count(chunk.rows, table, self.run.column, self.tokenizer))
            yield table
            room.give_back(chunk.rows.nbytes)

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

    def batches(self, documents: list[np.ndarray], random: np.random.Generator) -> list[list[Batch]]:
        """What each checkpoint labels: every document, or where there are folds those it was not trained on."""
        settings = self.run.provenance
        wanted = [sample_positions(len(ids), settings.share, random) for ids in documents]
        fold_M = [fold_of(ids, settings.folds) for ids in documents]
        return [
            window_batches(
                documents,
                [asked_T & (own == fold) for asked_T, own in zip(wanted, fold_M, strict=True)],
                window=settings.window,
                overlap=settings.overlap,
                budget=1 if settings.batch_invariant else labeller.batch_tokens,
                border=labeller.border,
            )
            for fold, labeller in enumerate(self.labellers)
        ]


@contextmanager
def _stopping(underway: Underway) -> Iterator[None]:
    """Whatever ends the writing of a unit ends its labelling too, which runs ahead in a thread of its own."""
    try:
        yield
    finally:
        underway.stopped = True


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
