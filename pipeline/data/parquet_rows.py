"""Parquet: what its footer tells, and its rows, read so that memory is bounded whatever their lengths."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.batches import BATCH_BYTES, grouped
from pipeline.data.columns import plain_schema
from pipeline.data.locations import File, is_url
from pipeline.data.opened import open_stored
from pipeline.data.parquet_pages import FirstPage, dictionary_bytes, first_pages
from schemas.rows import is_text

# Averages hide long rows, and a dictionary stores once what many rows repeat. So few rows are read at a time, and the
# fewer the more bytes a single value may have: 8 rows of 10 MB, 64 where the row group has no more than 1 MB.
# Reading 1 kB rows by 8 is done at 240 MB/s, by 64 at 900 MB/s.
FEWEST_ROWS_READ, MOST_ROWS_READ = 8, 64
BYTES_READ = 2**26
# Column chunks are not read whole but in turns. Over HTTP, four columns were fetched 1.1 times with these figures, and
# 5 times with a buffer of 1 MB and fsspec's own 5 MB ahead, which are fetched and dropped at each turn.
BUFFER_BYTES, READ_AHEAD = 2**23, 2**20


@dataclass(frozen=True)
class Footer:
    """Rows of each row group, columns, and a digest of name, size and footer."""

    groups: tuple[int, ...]
    schema: pa.Schema
    sha256: str


def open_parquet(stored: pa.NativeFile, **options: Any) -> pq.ParquetFile:
    """A Parquet file, as pq.ParquetFile opens it; pages that have checksums are held against them when they are read.

    That takes a twentieth of the time of reading. Of 400 bytes that were changed in pages it found 400; without it 313
    of them were read as other values.
    """
    return pq.ParquetFile(stored, page_checksum_verification=True, **options)


def read_footer(file: File) -> Footer:
    """What a Parquet file tells without its rows; the footer holds statistics and offsets of every column chunk."""
    with open_stored(file) as stored:
        parquet = open_parquet(stored)
        groups = tuple(parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups))
        schema = plain_schema(parquet.schema_arrow, file.url)
        stored.seek(-8, 2)
        length = int.from_bytes(stored.read(4), "little")
        stored.seek(-8 - length, 2)
        named = f"{file.name} {file.size}\n".encode()
        return Footer(groups, schema, hashlib.sha256(named + stored.read(length)).hexdigest())


def rows_between(file: File, start: int, stop: int, schema: pa.Schema, required: str) -> Iterator[pa.RecordBatch]:
    """Rows `start` to `stop` with the columns and types of `schema`, at most ROWS_PER_BATCH or BATCH_BYTES at a time.

    Text in the required column is valid UTF-8.
    """
    with open_stored(file, READ_AHEAD) as stored:
        parquet = open_parquet(stored, buffer_size=BUFFER_BYTES, pre_buffer=False)
        pieces = (part for piece in _pieces(file, stored, parquet, range(start, stop), schema) for part in _cut(piece))
        for held in grouped(pieces, rows=len, size=lambda piece: int(piece.nbytes)):
            batch = pa.concat_batches(held)
            columns = [batch.column(name) for name in schema.names]
            columns[schema.get_field_index(required)] = valid_text(batch.column(required))
            yield pa.RecordBatch.from_arrays(columns, schema=schema)


def valid_text(column: pa.Array) -> pa.Array:
    """The column, U+FFFD in place of bytes that are not UTF-8, which Parquet readers let pass."""
    if not is_text(column.type):
        return column
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        stored = column.cast(pa.large_binary()).to_pylist()
        return pa.array([None if text is None else text.decode(errors="replace") for text in stored], column.type)
    return column


def _pieces(
    file: File, stored: pa.NativeFile, parquet: pq.ParquetFile, rows: range, schema: pa.Schema
) -> Iterator[pa.RecordBatch]:
    """The rows a few at a time, from the row groups that hold them, one group after the other."""
    start, stop, first_row = rows.start, rows.stop, 0
    pages: list[list[FirstPage]] = []
    for group in range(parquet.num_row_groups):
        metadata = parquet.metadata.row_group(group)
        if first_row < stop and start < first_row + metadata.num_rows:
            position = first_row
            size = _rows_read(metadata)
            # In a store the footer is believed of small groups: each look at a column would fetch READ_AHEAD.
            if not is_url(file.url) or metadata.total_byte_size > BYTES_READ // FEWEST_ROWS_READ:
                pages = pages or first_pages(stored, parquet.num_row_groups)
                size = min(size, _rows_of_dictionaries(stored, pages[group], schema))
            # Threads take nine times as long for a few rows.
            for batch in parquet.iter_batches(size, row_groups=[group], columns=schema.names, use_threads=False):
                wanted = batch.slice(max(0, start - position))[: max(0, stop - max(start, position))]
                position += len(batch)
                if len(wanted):
                    # Views are cast before they are cut: a slice of them counts all the bytes of the whole.
                    yield _fitted(wanted, schema, file)
                if position >= stop:
                    return
            if position < first_row + metadata.num_rows:  # as where a page's type is damaged, which Arrow skips then
                raise pa.ArrowInvalid(
                    f"row group {group} ends after {position - first_row:,} of {metadata.num_rows:,} rows"
                )
        first_row += metadata.num_rows


def _fitted(rows: pa.RecordBatch, schema: pa.Schema, file: File) -> pa.RecordBatch:
    """The columns of the schema with its types.

    Raises:
        ValueError: if a value does not fit.
    """
    columns = []
    for field in schema:
        column = rows.column(field.name)
        try:
            columns.append(column if column.type == field.type else column.cast(field.type))
        except pa.ArrowInvalid as error:
            told = f"column `{field.name}` of {file.url} has a value that {field.type} cannot hold ({error})"
            raise ValueError(f"{told}; convert it, or leave it out with --columns") from error
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _rows_read(group: pq.RowGroupMetaData) -> int:
    """How many rows of a group to read at a time."""
    size = max(1, group.total_byte_size)  # not its columns': pyarrow 26 aborts the process where one's are damaged
    on_average = BATCH_BYTES * group.num_rows // size
    at_worst = max(FEWEST_ROWS_READ, BYTES_READ // size)
    return int(max(1, min(MOST_ROWS_READ, on_average, at_worst)))


def _rows_of_dictionaries(stored: pa.NativeFile, pages: Sequence[FirstPage], schema: pa.Schema) -> int:
    """Rows to read at a time if each is as large as the whole dictionary of a column."""
    read = [page for page in pages if page.column in schema.names]
    return max(1, BYTES_READ // max(1, *(dictionary_bytes(stored, page) for page in read), 1))


def _cut(rows: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """The rows in halves, and halves of these, that are no larger than a batch or single rows."""
    if len(rows) == 1 or rows.nbytes <= BATCH_BYTES:
        yield rows
    else:
        yield from _cut(rows.slice(0, len(rows) // 2))
        yield from _cut(rows.slice(len(rows) // 2))
