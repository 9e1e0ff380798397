"""Labelled rows and windows of an annotated dataset: shuffled, shared among ranks, resumed from a few numbers.

`labelled_rows` gives documents and `labelled_windows` packs them. Both are iterators with a `state_dict` that is small
and fit for JSON; the same items follow wherever it is loaded, and only the rows of a packing's buffer are read again.

Each epoch puts the row groups end to end in an order of its own, and each rank reads an equal stretch of that. A group
is read by several ranks only where the end of a stretch falls into it, at most `ranks` - 1 times. A rank that begins
inside a group decodes the rows before, too, since Parquet has no other way there: eight ranks read two groups in 2.7
times the processor time of one.
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

BATCHES_AHEAD = 4  # of 2 MB: a quarter of a million tokens and their labels


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Which rows are read, and in what order."""

    rank: int = 0
    ranks: int = 1
    """Number of readers that share the dataset: each has its part of every epoch, equal to a row, and no row has two.

    In the workers of a data loader these are `rank * workers + worker` and `ranks * workers`, as
    `pipeline.training.torch_dataset` has them."""
    seed: int | None = None
    """Shuffles row groups anew every epoch, and what each rank has of them; the dataset's order where None."""
    shuffled_rows: int = 1
    """Rows of a row group that are shuffled among themselves; they are in memory together."""
    epochs: int | None = None
    """Without end where None."""
    first_epoch: int = 0
    """Number of the epoch to begin with, whose order follows from it; a state that is loaded has its own."""
    start: int = 0
    """First row to read."""
    stop: int | None = None
    """The row to stop before; the dataset's end where None."""

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.ranks:
            raise ValueError(f"there is no rank {self.rank} of {self.ranks}; ranks count from 0")
        if self.seed is not None and self.seed < 0:
            raise ValueError(f"the seed must be at least 0, not {self.seed}")
        if self.shuffled_rows < 1 or (self.shuffled_rows > 1 and self.seed is None):
            raise ValueError(f"shuffled_rows must be at least 1, and needs a seed above; it is {self.shuffled_rows}")
        if self.epochs is not None and self.epochs < 1:
            raise ValueError(f"epochs must be at least 1, or None for no end, not {self.epochs}")
        if self.first_epoch < 0:
            raise ValueError(f"the first epoch must be at least 0, not {self.first_epoch}")
        if self.start < 0 or (self.stop is not None and self.stop <= self.start):
            raise ValueError(f"rows from {self.start} to {self.stop} are none; stop after start, which counts from 0")

    @property
    def order(self) -> dict[str, Any]:
        """All but the epochs; `start` and `stop` where they leave rows out, since older states lack them."""
        left_out = {"epochs", "first_epoch", *(() if self.start or self.stop is not None else ("start", "stop"))}
        return {name: value for name, value in asdict(self).items() if name not in left_out}


class Position(NamedTuple):
    """How far an iterator is among the rows that it reads."""

    rows: int = 0
    """Rows that are done, of all epochs."""
    within: int = 0
    """Part of the following rows that is done already, counted as the iterator likes."""


class Resumable(Iterator[Item]):
    """Items with a position after each. It is used up at its end, as iterators are.

    After an error the next item is tried again, from where the last one ended: a store may be back.
    """

    def __init__(
        self,
        begin: Callable[[Any], Generator[tuple[Item, Any], None, None]],
        stream: Mapping[str, Any],
        position: Any = Position(),  # noqa: B008 (it cannot change)
    ) -> None:
        """`begin` makes the items from a position on, a NamedTuple of integers; `stream` is all that they follow from,
        in JSON's types."""
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
            self._end = finalize(self, self._coming.close)  # at the process's end, too, while threads can be ended
        try:
            item, self._position = next(self._coming)
        except BaseException:
            self.close()
            raise
        return item

    @property
    def position(self) -> Any:
        """How far it is, a NamedTuple of integers."""
        return self._position

    def seek(self, position: Any) -> None:
        """Continues from another position."""
        self.close()
        self._position = position

    def close(self) -> None:
        """Stops reading ahead; the next item is still the one that would have come."""
        if self._end is not None:
            self._end()
        self._coming = self._end = None

    def state_dict(self) -> dict[str, Any]:
        """The stream and the position in it, small and fit for JSON."""
        return {**self._stream, **self._position._asdict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues where the iterator was whose state this is, with the same items to the bit.

        Raises:
            ValueError: if that iterator had other items.
        """
        missing = [name for name in self.state_dict() if name not in state]
        if missing:
            raise ValueError(f"this is no state of a reader: it lacks {', '.join(missing)}")
        differing = [
            f"{name} {state[name]} there, {here} now" for name, here in self._stream.items() if state[name] != here
        ]
        if differing:
            raise ValueError(f"the state is of another stream ({'; '.join(differing)}); give what it was saved with")
        self.seek(type(self._position)(*(int(state[name]) for name in self._position._fields)))

    def _require_own_worker(self) -> None:
        """Refuses a copy in the worker of a torch DataLoader: each worker would give every item again.

        Raises:
            ValueError: if this is such a copy.
        """
        torch_data = sys.modules.get("torch.utils.data")  # which a worker has
        if os.getpid() != self._process and torch_data is not None and torch_data.get_worker_info() is not None:
            raise ValueError(
                "every worker of the DataLoader has a copy of this iterator and would give all of it again; read with"
                " pipeline.training.torch_dataset.LabelledWindows, or make an iterator in each worker"
            )


def labelled_rows(
    dataset: AnnotatedDataset, columns: Sequence[str] = (INPUT_IDS, ENTROPY), reading: Reading | None = None
) -> Resumable[Row]:
    """The rows of a rank, with these columns of the files.

    Iterating raises what `read_rows` raises, and ValueError where labels are not finite or not one a token.

    Raises:
        ValueError: if there is no such column, or not a row for every rank; as inspect_file does.
    """
    rows = _Rows.of(dataset, columns, reading or Reading())
    return Resumable(rows.begin, rows.stream | {"packing": None}, rows.first)


def labelled_windows(
    dataset: AnnotatedDataset, packing: Packing, reading: Reading | None = None, label: str = ENTROPY
) -> Resumable[PackedWindow]:
    """The documents of a rank in windows, with the labels of that column.

    Iterating raises as `labelled_rows` does, and ValueError where there is no token to read without end.

    Raises:
        ValueError: as labelled_rows does, or if the column holds no labels.
    """
    if label not in ENTROPY_COLUMNS:
        raise ValueError(f"`{label}` is no column of labels; there are {', '.join(ENTROPY_COLUMNS)}")
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
    """Rows `start` to `stop` of the shard with that index, all in one row group."""

    shard: int
    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


def row_groups(rows_of_shards: Sequence[Sequence[int]]) -> Iterator[RowRange]:
    """The row groups that have rows, from the rows of each group of each shard."""
    for shard, groups in enumerate(rows_of_shards):
        start = 0
        for rows in groups:
            if rows:
                yield RowRange(shard, start, start + rows)
            start += rows


def rows_of_rank(groups: Sequence[RowRange], rank: int, ranks: int) -> Iterator[RowRange]:
    """What one of the ranks reads of the groups, in their order; no two ranks' shares differ by more than one row."""
    rows = sum(map(len, groups))
    return _stretch(groups, rows * rank // ranks, rows * (rank + 1) // ranks)


def _stretch(groups: Sequence[RowRange], first: int, last: int) -> Iterator[RowRange]:
    """Rows `first` to `last` of the groups end to end."""
    for group in groups:
        start, stop = max(first, 0), min(last, len(group))
        if start < stop:
            yield replace(group, start=group.start + start, stop=group.start + stop)
        first, last = first - len(group), last - len(group)


@dataclass(frozen=True)
class _Rows:
    """The rows that a rank reads, from any one of them on. The number of a row counts on through the epochs."""

    dataset: AnnotatedDataset
    schema: pa.Schema
    """Of what is read."""
    groups: tuple[RowRange, ...]
    reading: Reading
    an_epoch: int
    """Rows that the rank reads in an epoch, the same number in each."""

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
        """All that the rows and their order follow from, except which epochs are read.

        The digest is of the shards' names, sizes and footers, in which the provenance stands.
        """
        digests = "\n".join(info.sha256 for info in self.dataset.infos)
        return {"dataset_sha256": hashlib.sha256(digests.encode()).hexdigest(), **self.reading.order}

    @property
    def first(self) -> Position:
        """The beginning of the first epoch."""
        return Position(self.reading.first_epoch * self.an_epoch)

    def begin(self, position: Position) -> Generator[tuple[Row, Position], None, None]:
        """The rows from a position on, and the position after each."""
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
        """The row ranges of an epoch, in order."""
        order: Sequence[int] = range(len(self.groups))
        if self.reading.seed is not None:
            order = np.random.default_rng([self.reading.seed, epoch]).permutation(len(self.groups)).tolist()
        return list(rows_of_rank([self.groups[group] for group in order], self.reading.rank, self.reading.ranks))

    def _batches(self, run: RowRange, skip: int, epoch: int) -> Iterator[pa.RecordBatch]:
        """The rows of a run after the first `skip` of those in the order in which they are read."""
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
        """The rows of a run after the first `skip`, as they lie in the file."""
        shard = self.dataset.shards[run.shard]
        return read_labelled(shard, run.start + skip, run.stop, self.schema, self.dataset.vocabulary)


def _blocks(batches: Iterator[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
    """The same rows in batches of `rows`; the last may be smaller."""
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
