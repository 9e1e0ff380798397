"""Row groups dealt to ranks: equal parts, whatever the number of either.

The groups stand end to end in the order they are to be read, and each rank has an equal stretch of that. A group is
read by several ranks only where the end of a stretch falls into it, which happens `ranks` - 1 times at the most. A rank
that begins inside a group decodes the rows before, too, since Parquet has no other way there: eight ranks read two
groups in 2.7 times the processor time of one.
"""

import hashlib
import os
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain, count
from typing import Any, NamedTuple, TypeVar
from weakref import finalize

import numpy as np
import pyarrow as pa

from pipeline.data.annotated import LOOKS_AT_A_TIME, AnnotatedDataset, Row, as_rows, blocks, read_labelled
from pipeline.data.documents import unified
from pipeline.data.files import File
from pipeline.data.iterators import prefetched
from pipeline.data.packing import Document, Packing, Window
from pipeline.data.shards import ENTROPY_COLUMNS, TOKENS, inspect_shard
from schemas.annotations import ENTROPY, INPUT_IDS


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
    first, last = rows * rank // ranks, rows * (rank + 1) // ranks
    for group in groups:
        start, stop = max(first, 0), min(last, len(group))
        if start < stop:
            yield replace(group, start=group.start + start, stop=group.start + stop)
        first, last = first - len(group), last - len(group)


Item = TypeVar("Item")


class Position(NamedTuple):
    """Where an iterator is among the rows that it reads."""

    rows: int = 0
    """That are done with, of all epochs."""
    within: int = 0
    """What is done already of the rows that follow; what is counted is the iterator's own affair."""


class Resumable(Iterator[Item]):
    """Items with a position after each. It is used up at its end, as iterators are.

    After an error the next item is tried again, from where the last one ended: a store may be back.
    """

    def __init__(
        self,
        begin: Callable[[Position], Generator[tuple[Item, Position], None, None]],
        stream: Mapping[str, Any],
        position: Position = Position(),  # noqa: B008 (it cannot change)
    ) -> None:
        """`begin` makes the items from a position on; `stream` is all that they follow from, in JSON's types."""
        self._begin, self._stream = begin, dict(stream)
        self._position = position
        self._process = os.getpid()
        self._coming: Generator[tuple[Item, Position], None, None] | None = None
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

    def close(self) -> None:
        """Stops reading ahead; the next item is still the one that would have come."""
        if self._end is not None:
            self._end()
        self._coming = self._end = None

    def state_dict(self) -> dict[str, Any]:
        """Where it is, small and fit for JSON."""
        return {**self._stream, **self._position._asdict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where the iterator was whose state this is, with the same items to the bit.

        Raises:
            ValueError: if that iterator had other items.
        """
        expected = {**self._stream, **self._position._asdict()}
        missing = [name for name in expected if name not in state]
        if missing:
            raise ValueError(f"this is no state of a reader: it lacks {', '.join(missing)}")
        differing = [
            f"{name} {state[name]} there, {here} now" for name, here in self._stream.items() if state[name] != here
        ]
        if differing:
            raise ValueError(f"the state is of another stream ({'; '.join(differing)}); give what it was saved with")
        self.close()
        self._position = Position(*(int(state[name]) for name in Position._fields))


BATCHES_AHEAD = 4  # of 2 MB: a quarter of a million tokens and their labels


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Which rows are read, and in what order."""

    rank: int = 0
    ranks: int = 1
    """How many read the dataset together: each its part of every epoch, equal to a row, none twice.

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


def labelled_rows(
    dataset: AnnotatedDataset, columns: Sequence[str] = (INPUT_IDS, ENTROPY), reading: Reading | None = None
) -> Resumable[Row]:
    """The rows of a rank, with these columns of the files.

    Iterating raises what `read_rows` raises, and ValueError where labels are not finite or not one a token.

    Raises:
        ValueError: if there is no such column, or not a row for every rank; as inspect_file does.
    """
    rows = _Rows.of(dataset, tuple(columns)).read_by(reading or Reading())
    return Resumable(rows.begin, rows.stream | {"packing": None}, rows.first)


def labelled_windows(
    dataset: AnnotatedDataset, packing: Packing, reading: Reading | None = None, label: str = ENTROPY
) -> Resumable[Window]:
    """The documents of a rank in windows, with the labels of that column.

    Iterating raises as `labelled_rows` does, and ValueError where there is no token to read without end.

    Raises:
        ValueError: as labelled_rows does, or if the column holds no labels.
    """
    return windows_for(dataset, packing, label)(reading or Reading())


def windows_for(
    dataset: AnnotatedDataset, packing: Packing, label: str = ENTROPY
) -> Callable[[Reading], Resumable[Window]]:
    """The same for one reading after another: every shard's footer is read once.

    Raises:
        ValueError: as labelled_windows does; on the call, if there is not a row for every rank.
    """
    if label not in ENTROPY_COLUMNS:
        raise ValueError(f"`{label}` is no column of labels; there are {', '.join(ENTROPY_COLUMNS)}")
    return partial(_windows, _Rows.of(dataset, (INPUT_IDS, label)), packing, label)


def _windows(there: "_Rows", packing: Packing, label: str, reading: Reading) -> Resumable[Window]:
    rows = there.read_by(reading)
    described = {"packing": {"kind": type(packing).__name__, **asdict(packing)}}
    return Resumable(partial(_packed, rows, packing, label), rows.stream | described, rows.first)


def _packed(
    rows: "_Rows", packing: Packing, label: str, position: Position
) -> Generator[tuple[Window, Position], None, None]:
    def documents() -> Iterator[Document]:
        empty, an_epoch = 0, rows.an_epoch
        for row, _ in rows.begin(Position(position.rows)):
            empty = 0 if len(row[INPUT_IDS]) else empty + 1
            if empty > an_epoch:
                raise ValueError("there is nothing to read: every document is empty")
            yield row[INPUT_IDS], row[label]

    for window, done, within in packing.windows(documents(), position.within):
        yield window, Position(position.rows + done, within)


@dataclass(frozen=True)
class _Rows:
    """The rows that a rank reads, from any one of them on. The number of a row counts on through the epochs."""

    shards: tuple[File, ...]
    groups: tuple[RowRange, ...]
    schema: pa.Schema
    """Of what is read."""
    sha256: str
    """Of the shards' names, sizes and footers, in which the provenance stands."""
    source: str
    """The dataset's, for messages."""
    vocabulary: int
    reading: Reading = Reading()

    @classmethod
    def of(cls, dataset: AnnotatedDataset, columns: tuple[str, ...]) -> "_Rows":
        with ThreadPoolExecutor(LOOKS_AT_A_TIME) as pool:
            layouts = list(pool.map(inspect_shard, dataset.shards))
        there = unified(layouts, dataset.shards, TOKENS)
        if unknown := set(columns) - set(there.names):
            raise ValueError(
                f"{dataset.source} has no column {', '.join(sorted(unknown))}; it has {', '.join(there.names)}"
            )
        if not columns or len(set(columns)) < len(columns):
            raise ValueError(f"columns must be at least one, and each once, not {columns}")
        return cls(
            shards=dataset.shards,
            groups=tuple(row_groups([layout.groups for layout in layouts])),
            schema=pa.schema([there.field(name) for name in columns]),
            sha256=hashlib.sha256("\n".join(layout.sha256 for layout in layouts).encode()).hexdigest(),
            source=dataset.source,
            vocabulary=dataset.vocabulary,
        )

    def read_by(self, reading: Reading) -> "_Rows":
        """The rows of another rank, or in another order.

        Raises:
            ValueError: if there is not a row for every rank.
        """
        rows = sum(map(len, self.groups))
        if rows < reading.ranks:
            raise ValueError(f"{self.source} has {rows} rows for {reading.ranks} ranks; use fewer ranks or workers")
        return replace(self, reading=reading)

    @property
    def stream(self) -> dict[str, Any]:
        """What the rows and their order follow from, but for which epochs are read."""
        which = ("epochs", "first_epoch")
        order = {name: value for name, value in asdict(self.reading).items() if name not in which}
        return {"dataset_sha256": self.sha256, **order}

    @property
    def first(self) -> Position:
        """Where the first epoch begins."""
        return Position(self.reading.first_epoch * self.an_epoch)

    @property
    def an_epoch(self) -> int:
        """Rows of an epoch, the same in each."""
        return sum(map(len, self._runs(0)))

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
        """What is read in an epoch."""
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
        for rows in blocks(self._stored(run, before), block):
            random = np.random.default_rng([seed, epoch, run.shard, run.start + before])
            shuffled = rows.take(pa.array(random.permutation(len(rows))))
            yield shuffled.slice(max(0, skip - before))
            before += len(rows)

    def _stored(self, run: RowRange, skip: int) -> Iterator[pa.RecordBatch]:
        """The rows of a run after the first `skip`, as they lie in the file."""
        return read_labelled(self.shards[run.shard], run.start + skip, run.stop, self.schema, self.vocabulary)
