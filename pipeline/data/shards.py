"""Annotated shards: labelled rows as Arrow tables, and the Parquet files that hold them."""

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.atomic import commit, unfinished_name
from pipeline.data.documents import Column, FileInfo
from pipeline.data.files import File, is_url, local_file
from pipeline.data.parquet import open_parquet, read_footer
from pipeline.data.streams import DamagedError, open_stored, reading
from schemas.annotations import (
    ENTROPY,
    ENTROPY_COLUMNS,
    INPUT_IDS,
    LOGPROB_COLUMNS,
    LOGPROB_ROUNDING_NATS,
    MEAN_ENTROPY,
    NUM_TOKENS,
    PER_TOKEN,
    PREDICTION_COLUMNS,
    ROUNDING_NATS,
    TOP_LOGPROBS,
)
from schemas.layout import DATA_FOLDER
from schemas.rows import NO_BOUND

ROW_GROUP_BYTES = 100_000_000
SHARD = re.compile(rf"(.*)/{DATA_FOLDER}/([^/]+)/((?:\d+/)?train-\d+-of-\d+\.parquet)")
LABELS = Column(ENTROPY, tokenized=True, longest=NO_BOUND)
"""Column of entropies, which every shard has. Its lists may have any length."""


def annotated_rows(
    source: pa.RecordBatch,
    tokens: Sequence[np.ndarray],
    entropies: Mapping[str, Sequence[np.ndarray]],
    schema: pa.Schema,
) -> pa.Table:
    """Return a table of the source rows and their annotations, in order, with the columns of `schema`.

    Labels of a row are [N], or [K, N] for a column with K numbers per token. NaN in a label becomes null.
    """
    labels = {name: _label_lists(name, arrays, schema.field(name).type) for name, arrays in entropies.items()}
    columns = {
        **{name: source.column(name) for name in source.schema.names},
        **labels,
        INPUT_IDS: token_lists(tokens),
        NUM_TOKENS: pa.array([len(ids) for ids in tokens], pa.int32()),
        MEAN_ENTROPY: mean_entropies(labels[ENTROPY]),
    }
    return pa.table([columns[name] for name in schema.names], schema=schema)


def token_lists(tokens: Sequence[np.ndarray]) -> pa.ListArray:
    """Return a column of token ids, int32, given an array for each row."""
    lengths = np.array([len(ids) for ids in tokens], dtype=np.int32)
    return _lists(pa.array(np.concatenate([np.empty(0, np.int32), *tokens])), lengths)


def write_shard(path: Path, tables: Iterable[pa.Table], schema: pa.Schema) -> str:
    """Write the tables as one shard and return its sha256."""
    with ShardWriter(path, schema) as writer:
        for table in tables:
            writer.write(table)
        return writer.finish()[0]


class ShardWriter:
    """Writer of one shard, a Parquet file of annotated rows. The file gets its name only when it is finished.

    Entropies and ids are dictionary-encoded. Entropies are rounded to 1/128 nat and so have only a few thousand
    distinct values. The bytes of `top_logprobs` are split into streams: the 50 log-probabilities of a token of SmolLM2
    then take 77 bytes instead of 98.
    """

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.unfinished = path, unfinished_name(path)
        lists = {name: _items(schema.field(name)) for name in schema.names if name in PER_TOKEN}
        scalars = [name for name in schema.names if name not in (*PER_TOKEN, INPUT_IDS)]
        self.parquet = pq.ParquetWriter(
            self.unfinished,
            schema,
            compression="zstd",
            compression_level=3,
            use_dictionary=[*scalars, *(path for name, path in lists.items() if name != TOP_LOGPROBS)],
            column_encoding={path: "BYTE_STREAM_SPLIT" for name, path in lists.items() if name == TOP_LOGPROBS},
            use_content_defined_chunking=True,
            write_page_index=True,
            write_page_checksum=True,
        )
        self.row_group: list[pa.Table] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """Delete the file if it is not finished."""
        try:
            self.parquet.close()
        finally:
            self.unfinished.unlink(missing_ok=True)

    def write(self, table: pa.Table) -> None:
        """Add a table of rows to the shard."""
        for part in _parts(table):
            if self.row_group and sum(held.nbytes for held in self.row_group) + part.nbytes > ROW_GROUP_BYTES:
                self._write_row_group()
            self.row_group.append(part)

    def finish(self) -> tuple[str, int]:
        """Finish the file and give it its name. Return its sha256 and its size in bytes."""
        if self.row_group:
            self._write_row_group()
        self.parquet.close()
        return commit(self.unfinished, self.path), self.path.stat().st_size

    def _write_row_group(self) -> None:
        self.parquet.write_table(pa.concat_tables(self.row_group))
        self.row_group = []


def _parts(table: pa.Table) -> Iterable[pa.Table]:
    """Split a table into slices of about ROW_GROUP_BYTES bytes or less. A larger row is a slice by itself."""
    rows = max(1, len(table) * ROW_GROUP_BYTES // max(1, table.nbytes))
    return (table.slice(start, rows) for start in range(0, len(table), rows))


def _items(field: pa.Field) -> str:
    """Return the path of a column's numbers in a Parquet file. The column holds lists, or lists of lists."""
    return f"{field.name}{'.list.element' * (2 if field.name in PREDICTION_COLUMNS else 1)}"


def _label_lists(name: str, arrays: Sequence[np.ndarray], kind: pa.ListType) -> pa.ListArray:
    """Return a column of labels: nats and log-probabilities are rounded, ranks and ids are whole. NaN becomes null."""
    if not arrays:
        return pa.array([], kind)
    values = np.concatenate(arrays, axis=-1)
    lengths = np.array([array.shape[-1] for array in arrays], dtype=np.int32)
    if name in (*ENTROPY_COLUMNS, *LOGPROB_COLUMNS):
        step = ROUNDING_NATS if name in ENTROPY_COLUMNS else LOGPROB_ROUNDING_NATS
        values = (np.round(values / step) * np.float32(step)).astype(np.float32)
    if name not in PREDICTION_COLUMNS:
        return _lists(_numbers(values, kind.value_type), lengths)
    numbers = _numbers(values.T.ravel(), kind.value_type.value_type)
    unlabelled = pa.array(np.isnan(values[0]))
    return _lists(pa.FixedSizeListArray.from_arrays(numbers, len(values), mask=unlabelled), lengths)


def _numbers(values: np.ndarray, kind: pa.DataType) -> pa.Array:
    """Return the values as an Arrow array of the type `kind`, with null for NaN.

    Raises:
        ArrowInvalid: if the type cannot hold one of the values. ArrowInvalid is a subclass of ValueError.
    """
    return pa.array(values, mask=np.isnan(values)).cast(kind)


def numbers_per_token(name: str, column: pa.Array, null: float = np.nan) -> np.ndarray:
    """Return the numbers in a column of labels for the tokens of all rows.

    The shape is [N] if the column has one number per token, and [N, K] if it has K numbers per token. `null` is the
    number for a token without a label.
    """
    tokens = column.flatten()
    if name not in PREDICTION_COLUMNS:
        filled = tokens if np.isnan(null) else tokens.fill_null(null)
        numbers_N: np.ndarray = filled.to_numpy(zero_copy_only=False)
        return numbers_N
    numbers_NK = np.full((len(tokens), tokens.type.list_size), null, np.float32)
    labelled_N = tokens.is_valid().to_numpy(zero_copy_only=False)
    numbers_NK[labelled_N] = tokens.flatten().to_numpy(zero_copy_only=False).reshape(-1, tokens.type.list_size)
    return numbers_NK


def _lists(values: pa.Array, lengths: np.ndarray) -> pa.ListArray:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), values)


def mean_entropies(lists: pa.ListArray) -> pa.Array:
    """Return the mean of each list of entropies, float32; null for a list without values.

    The means use differences of running sums. The differences are exact: entropies are multiples of ROUNDING_NATS, and
    sums of these multiples are exact in float64 in any order.
    """
    labelled = lists.values.is_valid().to_numpy(zero_copy_only=False)
    sums = np.append(0, np.cumsum(lists.values.fill_null(0).to_numpy(), dtype=np.float64))
    counts = np.append(0, np.cumsum(labelled))
    total, count = (np.diff(running[lists.offsets.to_numpy()]) for running in (sums, counts))
    return pa.array((total / np.maximum(count, 1)).astype(np.float32), mask=count == 0)


@contextmanager
def reading_shard(file: File) -> Iterator[None]:
    """Give advice on repairing the shard in every DamagedError that is raised inside this context.

    The advice replaces that of the original error.

    Raises:
        DamagedError: if the shard is damaged.
    """
    try:
        with reading(file):
            yield
    except DamagedError as error:
        raise DamagedError(error.damage, mending(file)) from error


@contextmanager
def open_shard(file: File) -> Iterator[pq.ParquetFile]:
    """Open a shard. Its pages are verified against their checksums when they are read.

    Raises:
        DamagedError: if the shard is damaged.
        ValueError, OSError: as open_stored does.
    """
    with reading_shard(file), open_stored(file) as stored, open_parquet(stored) as parquet:
        yield parquet


def shard_schema(shard: Path) -> pa.Schema:
    """Return the schema of a local shard, including its metadata.

    Raises:
        DamagedError: if the shard is damaged.
    """
    with open_shard(local_file(shard)) as parquet:
        return parquet.schema_arrow


def inspect_shard(file: File) -> FileInfo:
    """Return the number of rows, the columns and the digest of a shard, read from its footer.

    Raises:
        ValueError, OSError: as read_footer does.
    """
    with reading_shard(file):
        footer = read_footer(file)
    return FileInfo(sum(footer.groups), footer.groups, footer.schema, footer.sha256)


def mending(file: File) -> str:
    """Return advice on repairing a damaged shard, with the command for it."""
    found = SHARD.fullmatch(file.url)
    if found is None:
        return "annotate its source again"
    command = f"`python -m pipeline.verify {shlex.quote(found[1])}"
    if is_url(file.url):
        return f"{command}` lists the damaged shards"
    return f"{command} --repair` sets damaged shards aside, and the same annotate command writes them again"
