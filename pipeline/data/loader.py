"""Labelled rows and windows of an annotated dataset: shuffled, divided among ranks, and resumed from a few numbers.

`labelled_rows` yields documents and `labelled_windows` packs them. Both return iterators with a small `state_dict` that
JSON can hold. An iterator that loads it continues with the same items; only the rows of a packing's buffer are read
again.

Each epoch puts the row groups end to end in its own order, and each rank reads an equal stretch of this sequence. A
group is read by several ranks only if a stretch ends inside it, which happens at most `ranks` - 1 times. A rank that
begins inside a group must also decode the rows before, since Parquet cannot skip them: eight ranks read two groups in
2.7 times the CPU time of one.
"""

import hashlib
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

from pipeline.data.annotated import AnnotatedDataset, Row, as_rows, read_labelled
from pipeline.data.iterators import prefetched
from pipeline.data.packing import Document, PackedWindow, Packing
from pipeline.data.shards import ENTROPY_COLUMNS
from schemas.annotations import ENTROPY, INPUT_IDS

Item = TypeVar("Item")

BATCHES_AHEAD = 4  # of 2 MB each: together a quarter of a million tokens and their labels


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Selection and order of the rows to read."""

    rank: int = 0
    ranks: int = 1
    """Number of readers that divide every epoch among them; their parts are disjoint and differ by at most one row.

    In a data loader's worker, `rank` is `rank * workers + worker` and `ranks` is `ranks * workers`, as in
    `pipeline.training.torch_dataset`."""
    seed: int | None = None
    """Seed that shuffles the row groups, and thus the parts of the ranks, in every epoch; None keeps the dataset's
    order."""
    shuffled_rows: int = 1
    """Number of rows of a row group that are shuffled together; all of them are held in memory."""
    epochs: int | None = None
    """Number of epochs; None for no end."""
    first_epoch: int = 0
    """Number of the first epoch, which determines its order; a loaded state has its own epoch."""
    start: int = 0
    """First row to read."""
    stop: int | None = None
    """Row to stop before; None for the end of the dataset."""

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
        """Settings except the epochs; `start` and `stop` only if they leave rows out, since older states lack them."""
        left_out = {"epochs", "first_epoch", *(() if self.start or self.stop is not None else ("start", "stop"))}
        return {name: value for name, value in asdict(self).items() if name not in left_out}


class Position(NamedTuple):
    """Position of an iterator in the rows that it reads."""

    rows: int = 0
    """Number of finished rows, counted over all epochs."""
    within: int = 0
    """Finished part of the following rows, in a unit that the iterator defines."""


class Resumable(Iterator[Item]):
    """An iterator that knows its position after each item. Like any iterator, it stays exhausted at its end.

    After an error, the next call retries from the end of the last item: a store may be reachable again.
    """

    def __init__(
        self,
        begin: Callable[[Any], Generator[tuple[Item, Any], None, None]],
        stream: Mapping[str, Any],
        position: Any = Position(),  # noqa: B008 (it cannot change)
    ) -> None:
        """Start at a position.

        Args:
            begin: yields the items from a position on, each with the position after it.
            stream: all settings that determine the items, in JSON's types.
            position: a NamedTuple of integers.
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
        """Stop reading ahead; the next item stays the same."""
        if self._end is not None:
            self._end()
        self._coming = self._end = None

    def state_dict(self) -> dict[str, Any]:
        """Return the stream and the position in it: a small dictionary that JSON can hold."""
        return {**self._stream, **self._position._asdict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from the saved state of an iterator, with bit-identical items.

        Raises:
            ValueError: if the saved iterator had other items.
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
        """Refuse to run as a copy in the worker of a torch DataLoader: each worker would yield every item.

        Raises:
            ValueError: if this is a copy in a worker.
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
    """Iterate over the rows of a rank, with these columns.

    Iterating raises the errors of `read_labelled`.

    Raises:
        ValueError: if a column does not exist, or there are fewer rows than ranks.
        ValueError, OSError: as inspect_file does.
    """
    rows = _Rows.of(dataset, columns, reading or Reading())
    return Resumable(rows.begin, rows.stream | {"packing": None}, rows.first)


def labelled_windows(
    dataset: AnnotatedDataset, packing: Packing, reading: Reading | None = None, label: str = ENTROPY
) -> Resumable[PackedWindow]:
    """Iterate over the documents of a rank, packed into windows, with labels from the column `label`.

    Iterating raises the errors of `read_labelled`, and ValueError if a whole epoch has no token.

    Raises:
        ValueError: if `label` is not a column of labels.
        ValueError, OSError: as labelled_rows does.
    """
    if label not in ENTROPY_COLUMNS:
        raise ValueError(f"`{label}` is not a column of labels; name one of {', '.join(ENTROPY_COLUMNS)}")
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
    """Yield the row groups that are not empty, given the number of rows of each group of each shard."""
    for shard, groups in enumerate(rows_of_shards):
        start = 0
        for rows in groups:
            if rows:
                yield RowRange(shard, start, start + rows)
            start += rows


def rows_of_rank(groups: Sequence[RowRange], rank: int, ranks: int) -> Iterator[RowRange]:
    """Yield a rank's stretch of the groups end to end; the lengths of stretches differ by at most one row."""
    rows = sum(map(len, groups))
    return _stretch(groups, rows * rank // ranks, rows * (rank + 1) // ranks)


def _stretch(groups: Sequence[RowRange], first: int, last: int) -> Iterator[RowRange]:
    """Yield rows `first` to `last` of the groups end to end."""
    for group in groups:
        start, stop = max(first, 0), min(last, len(group))
        if start < stop:
            yield replace(group, start=group.start + start, stop=group.start + stop)
        first, last = first - len(group), last - len(group)


@dataclass(frozen=True)
class _Rows:
    """The rows that a rank reads, from any row on. Row numbers continue from one epoch to the next."""

    dataset: AnnotatedDataset
    schema: pa.Schema
    """Schema of the columns that are read."""
    groups: tuple[RowRange, ...]
    reading: Reading
    an_epoch: int
    """Number of rows that the rank reads in an epoch, the same in each."""

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
        """All settings that determine the rows and their order, except which epochs are read.

        The digest covers the shards' names, sizes and footers, and thereby the provenance.
        """
        digests = "\n".join(info.sha256 for info in self.dataset.infos)
        return {"dataset_sha256": hashlib.sha256(digests.encode()).hexdigest(), **self.reading.order}

    @property
    def first(self) -> Position:
        """Position at the beginning of the first epoch."""
        return Position(self.reading.first_epoch * self.an_epoch)

    def begin(self, position: Position) -> Generator[tuple[Row, Position], None, None]:
        """Yield the rows from a position on, each with the position after it."""
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
        """Return the row ranges of an epoch, in order."""
        order: Sequence[int] = range(len(self.groups))
        if self.reading.seed is not None:
            order = np.random.default_rng([self.reading.seed, epoch]).permutation(len(self.groups)).tolist()
        return list(rows_of_rank([self.groups[group] for group in order], self.reading.rank, self.reading.ranks))

    def _batches(self, run: RowRange, skip: int, epoch: int) -> Iterator[pa.RecordBatch]:
        """Yield the rows of a run in reading order, without the first `skip`."""
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
        """Yield the rows of a run in the file's order, without the first `skip`."""
        shard = self.dataset.shards[run.shard]
        return read_labelled(shard, run.start + skip, run.stop, self.schema, self.dataset.vocabulary)


def _blocks(batches: Iterator[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
    """Regroup rows into batches of `rows`; the last may be smaller."""
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
