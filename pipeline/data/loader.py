"""Labelled rows and windows of an annotated dataset: shuffled, divided among ranks, and resumed from a small state.

`labelled_rows` yields documents, and `labelled_windows` packs documents into windows. Both functions return iterators
with a small `state_dict` that JSON can hold. An iterator that loads this state continues with the item that would have
come next. To do so, it rereads only the earlier rows that the packing had buffered.

In each epoch, the row groups are put end to end in the order of this epoch. This sequence of rows is divided into one
stretch per rank, and all stretches have about the same length. Several ranks read the same row group only if a stretch
ends inside this row group. This happens at most `ranks` - 1 times per epoch. Parquet cannot skip rows: a rank whose
stretch begins inside a row group must also decode the earlier rows of this row group. For example, two row groups that
are divided among eight ranks take 2.7 times the CPU time of one rank that reads both row groups.
"""

import os
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain, count
from typing import Any, NamedTuple, TypeVar
from weakref import finalize

import numpy as np
import pyarrow as pa

from pipeline.data.annotated import AnnotatedDataset, Row, as_rows
from pipeline.data.iterators import prefetched
from pipeline.data.packing import Document, PackedWindow, Packing
from schemas.annotations import ENTROPY, EXPECTED_ENTROPY, INPUT_IDS

Item = TypeVar("Item")

BATCHES_AHEAD = 4  # batches of 2 MB: together a quarter of a million tokens and their labels


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Selection and order of the rows to read."""

    rank: int = 0
    ranks: int = 1
    """Number of readers that divide every epoch among themselves. Their parts are disjoint, and the sizes of the parts
    differ by at most one row.

    Each worker of a data loader counts as a reader. `pipeline.training.torch_dataset` numbers the workers of all
    training processes."""
    seed: int | None = None
    """Seed for shuffling the row groups in every epoch. Shuffling also changes which rows each rank reads. If the seed
    is None, row groups keep the dataset's order."""
    shuffled_rows: int = 1
    """Number of neighbouring rows of a row group that are shuffled together. All of them are held in memory."""
    epochs: int | None = None
    """Number of epochs, or None to read without end."""
    first_epoch: int = 0
    """Index of the first epoch to read, counted from 0. The order of the rows depends on the epoch's index. An iterator
    that loads a state begins in the epoch of the state instead."""
    start: int = 0
    """Index of the first row to read."""
    stop: int | None = None
    """Index of the row before which to stop, or None for the end of the dataset."""

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.ranks:
            raise ValueError(f"there is no rank {self.rank} of {self.ranks}; ranks count from 0")
        if self.seed is not None and self.seed < 0:
            raise ValueError(f"the seed must be at least 0, not {self.seed}")
        if self.shuffled_rows < 1 or (self.shuffled_rows > 1 and self.seed is None):
            raise ValueError(f"shuffled_rows must be at least 1, and above 1 needs a seed, not {self.shuffled_rows}")
        if self.epochs is not None and self.epochs < 1:
            raise ValueError(f"epochs must be at least 1, or None for no end, not {self.epochs}")
        if self.first_epoch < 0:
            raise ValueError(f"the first epoch must be at least 0, not {self.first_epoch}")
        if self.start < 0 or (self.stop is not None and self.stop <= self.start):
            raise ValueError(f"no rows from {self.start} to {self.stop}; start must be at least 0, and stop above it")

    @property
    def order(self) -> dict[str, Any]:
        """Settings, by name, that determine the order of rows in an epoch.

        `start` and `stop` are present only if at least one of them was set, since older states lack both.
        """
        left_out = {"epochs", "first_epoch", *(() if self.start or self.stop is not None else ("start", "stop"))}
        return {name: value for name, value in asdict(self).items() if name not in left_out}


class Position(NamedTuple):
    """Position of an iterator in the rows that it reads."""

    rows: int = 0
    """Number of rows that are finished, counted over all epochs."""
    within: int = 0
    """Progress beyond the first `rows` rows, in a unit that the iterator defines, such as tokens or windows."""


class Resumable(Iterator[Item]):
    """Iterator that knows its position after each item, and can continue from a saved position.

    Like any iterator, it stays exhausted at its end. After an error, the next call tries to read the same item again,
    since a store may be reachable by then.
    """

    def __init__(
        self,
        begin: Callable[[Any], Generator[tuple[Item, Any], None, None]],
        stream: Mapping[str, Any],
        position: Any = Position(),  # noqa: B008 (it cannot change)
    ) -> None:
        """Create an iterator that starts at a position.

        Args:
            begin: function that takes a position and yields the items from this position on. Each item comes in a pair
                with the position after the item.
            stream: all settings that determine the items, as values that JSON can hold.
            position: position to start at, a NamedTuple of integers.
        """
        self._begin, self._stream = begin, dict(stream)
        self._position = position
        self._process = os.getpid()
        self._coming: Generator[tuple[Item, Any], None, None] | None = None
        self._end: Callable[[], object] | None = None

    def __next__(self) -> Item:
        if self._coming is None or os.getpid() != self._process:
            self._require_own_worker()
            self._process = os.getpid()
            self._coming = self._begin(self._position)
            self._end = finalize(self, self._coming.close)  # also at exit, while threads can still be ended
        try:
            item, self._position = next(self._coming)
        except BaseException:
            self.close()
            raise
        return item

    @property
    def position(self) -> Any:
        """Position after the last item, a NamedTuple of integers."""
        return self._position

    def seek(self, position: Any) -> None:
        """Continue from another position."""
        self.close()
        self._position = position

    def close(self) -> None:
        """Stop reading ahead. This does not change the next item."""
        if self._end is not None:
            self._end()
        self._coming = self._end = None

    def state_dict(self) -> dict[str, Any]:
        """Return the settings that determine the items, and the position, as a small dictionary that JSON can hold."""
        return {**self._stream, **self._position._asdict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the saved state of an iterator, with bit-identical items.

        Raises:
            ValueError: if the state is incomplete, or the saved iterator had other settings or another dataset.
        """
        missing = [name for name in self.state_dict() if name not in state]
        if missing:
            raise ValueError(f"this is not the state of a reader: it lacks {', '.join(missing)}")
        differing = [
            f"{name} {state[name]} there, {here} now" for name, here in self._stream.items() if state[name] != here
        ]
        if differing:
            raise ValueError(f"the state is of another stream ({'; '.join(differing)}); use that stream's settings")
        self.seek(type(self._position)(*(int(state[name]) for name in self._position._fields)))

    def _require_own_worker(self) -> None:
        """Check that this iterator is not a copy in a worker of a torch DataLoader.

        Every worker has a copy, and each copy would yield all items.

        Raises:
            ValueError: if this iterator is a copy in a worker.
        """
        torch_data = sys.modules.get("torch.utils.data")  # always imported in a worker
        if os.getpid() != self._process and torch_data is not None and torch_data.get_worker_info() is not None:
            raise ValueError(
                "every worker of the DataLoader has a copy of this iterator and would yield all of its items; read with"
                " pipeline.training.torch_dataset.LabelledWindows, or make an iterator in each worker"
            )


def labelled_rows(
    dataset: AnnotatedDataset, columns: Sequence[str] = (INPUT_IDS, ENTROPY), reading: Reading | None = None
) -> Resumable[Row]:
    """Return an iterator over the rows that the rank in `reading` reads, with the named columns.

    The iterator raises the errors of `read_labelled`.

    Raises:
        ValueError: if a column does not exist, or there are fewer rows than ranks.
        ValueError, OSError: as inspect_file does.
    """
    rows = _Rows.of(dataset, columns, reading or Reading())
    return Resumable(rows.begin, rows.stream | {"packing": None}, rows.first)


def labelled_windows(
    dataset: AnnotatedDataset, packing: Packing, reading: Reading | None = None, label: str = ENTROPY
) -> Resumable[PackedWindow]:
    """Return an iterator over windows, into which the documents of the rank in `reading` are packed.

    Labels are read from the column `label`.

    The iterator raises the errors of `read_labelled`, and ValueError if a whole epoch has no token.

    Raises:
        ValueError: if `label` is not a column of labels.
        ValueError, OSError: as labelled_rows does.
    """
    if label not in (ENTROPY, EXPECTED_ENTROPY):
        raise ValueError(f"`{label}` is not a column of labels; name one of {ENTROPY}, {EXPECTED_ENTROPY}")
    rows = _Rows.of(dataset, (INPUT_IDS, label), reading or Reading())
    described = {"packing": {"kind": type(packing).__name__, **asdict(packing)}}
    return Resumable(partial(_packed, rows, packing, label), rows.stream | described, rows.first)


def _packed(
    rows: "_Rows", packing: Packing, label: str, position: Position
) -> Generator[tuple[PackedWindow, Position], None, None]:
    def documents() -> Iterator[Document]:
        empty = 0
        for row, _ in rows.begin(Position(position.rows)):
            empty = 0 if len(row[INPUT_IDS]) else empty + 1
            if empty > rows.an_epoch:
                raise ValueError("there is nothing to read: every document is empty")
            yield row[INPUT_IDS], row[label]

    for window, done, within in packing.windows(documents(), position.within):
        yield window, Position(position.rows + done, within)


@dataclass(frozen=True)
class RowRange:
    """Rows `start` to `stop` of the shard with index `shard`, all in one row group."""

    shard: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


def row_groups(rows_of_shards: Sequence[Sequence[int]]) -> Iterator[RowRange]:
    """Yield the row range of each row group that is not empty.

    `rows_of_shards` has a sequence for each shard: the number of rows in each of the shard's row groups.
    """
    for shard, groups in enumerate(rows_of_shards):
        start = 0
        for rows in groups:
            if rows:
                yield RowRange(shard, start, start + rows)
            start += rows


def rows_of_rank(groups: Sequence[RowRange], rank: int, ranks: int) -> Iterator[RowRange]:
    """Put the row groups end to end, and yield the row ranges in the stretch that a rank reads.

    The lengths of the ranks' stretches differ by at most one row.
    """
    rows = sum(map(len, groups))
    return _stretch(groups, rows * rank // ranks, rows * (rank + 1) // ranks)


def _stretch(groups: Sequence[RowRange], first: int, last: int) -> Iterator[RowRange]:
    """Yield the row ranges that hold rows `first` to `last`, counted over all row groups end to end."""
    for group in groups:
        start, stop = max(first, 0), min(last, len(group))
        if start < stop:
            yield replace(group, start=group.start + start, stop=group.start + stop)
        first, last = first - len(group), last - len(group)


@dataclass(frozen=True)
class _Rows:
    """Rows that a rank reads, starting at any row. Row numbers continue from one epoch to the next."""

    dataset: AnnotatedDataset
    schema: pa.Schema
    """Schema of the columns that are read."""
    groups: tuple[RowRange, ...]
    reading: Reading
    an_epoch: int
    """Number of rows that the rank reads in every epoch."""

    @classmethod
    def of(cls, dataset: AnnotatedDataset, columns: Sequence[str], reading: Reading) -> "_Rows":
        schema = dataset.columns(columns)
        groups = list(row_groups([info.groups for info in dataset.infos]))
        last = len(dataset) if reading.stop is None else reading.stop
        groups = list(_stretch(groups, reading.start, last))
        rows = sum(map(len, groups))
        if rows < reading.ranks:
            raise ValueError(f"{dataset.source} has {rows} rows for {reading.ranks} ranks; use fewer ranks or workers")
        an_epoch = sum(map(len, rows_of_rank(groups, reading.rank, reading.ranks)))
        return cls(dataset, schema, tuple(groups), reading, an_epoch)

    @property
    def stream(self) -> dict[str, Any]:
        """Digest of the dataset, and all settings of the reading that determine the order of rows in an epoch, by name.

        The settings for the first epoch and the number of epochs are left out. The digest covers the names, sizes and
        footers of the shards. The footers include the provenance.
        """
        return {"dataset_sha256": self.dataset.sha256, **self.reading.order}

    @property
    def first(self) -> Position:
        """Position at the beginning of the first epoch."""
        return Position(self.reading.first_epoch * self.an_epoch)

    def begin(self, position: Position) -> Generator[tuple[Row, Position], None, None]:
        """Yield the rows after `position`, each with the position after the row."""
        with prefetched(self._from(position.rows), BATCHES_AHEAD) as batches:
            for number, row in enumerate(chain.from_iterable(batches), position.rows + 1):
                yield row, Position(number)

    def _from(self, row: int) -> Generator[list[Row], None, None]:
        first, skip = divmod(row, self.an_epoch)
        reading = self.reading
        for epoch in count(first) if reading.epochs is None else range(first, reading.first_epoch + reading.epochs):
            for run in self._runs(epoch):
                if skip < len(run):
                    yield from map(as_rows, self._batches(run, skip, epoch))
                skip = max(0, skip - len(run))

    def _runs(self, epoch: int) -> list[RowRange]:
        """Return the row ranges that the rank reads in an epoch, in reading order."""
        order: Sequence[int] = range(len(self.groups))
        if self.reading.seed is not None:
            order = np.random.default_rng([self.reading.seed, epoch]).permutation(len(self.groups)).tolist()
        return list(rows_of_rank([self.groups[group] for group in order], self.reading.rank, self.reading.ranks))

    def _batches(self, run: RowRange, skip: int, epoch: int) -> Iterator[pa.RecordBatch]:
        """Yield batches of the rows in a range, in reading order, without the first `skip` rows."""
        block, seed = self.reading.shuffled_rows, self.reading.seed
        if seed is None or block == 1:
            yield from self._stored(run, skip)
            return
        before = skip // block * block
        for rows in _blocks(self._stored(run, before), block):
            random = np.random.default_rng([seed, epoch, run.shard, run.start + before])
            shuffled = rows.take(pa.array(random.permutation(len(rows))))
            yield shuffled.slice(max(0, skip - before))
            before += len(rows)

    def _stored(self, run: RowRange, skip: int) -> Iterator[pa.RecordBatch]:
        """Yield batches of the rows in a range, in the order of the file, without the first `skip` rows."""
        shard = self.dataset.shards[run.shard]
        return self.dataset.read(shard, run.start + skip, run.stop, self.schema)


def _blocks(batches: Iterator[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
    """Regroup the rows of all batches into batches of `rows` rows. The last batch may be smaller."""
    buffer: list[pa.RecordBatch] = []
    for batch in batches:
        buffer.append(batch)
        if sum(map(len, buffer)) >= rows:
            joined = pa.concat_batches(buffer)
            complete = len(joined) // rows * rows
            yield from (joined.slice(start, rows) for start in range(0, complete, rows))
            buffer = [joined.slice(complete)]
    if sum(map(len, buffer)):
        yield pa.concat_batches(buffer)
