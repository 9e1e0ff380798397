"""Parquet: any range of rows, read in bounded memory even if the footer is damaged or misleading.

Rows are read a few at a time, and fewer where single values may be large. The footer does not show how large values
are: its sizes are averages, and a dictionary stores a value only once, although every row may repeat the value. The
size of each dictionary is therefore read from the header of the dictionary's page.

Offsets and headers of pages are parsed here, from Thrift's compact protocol, because pyarrow 26 aborts the process when
it reads a column's metadata from a damaged footer.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.columns import plain_schema
from pipeline.data.files import File, is_url
from pipeline.data.iterators import BATCH_BYTES, batched_by_size
from pipeline.data.streams import MalformedError, open_stored
from schemas.rows import is_text

# At most 8 rows are read at a time from a row group of 10 MB, and 64 from one of up to 1 MB. Rows of 1 kB are read at
# 240 MB/s if 8 are read at a time, and at 900 MB/s if 64 are.
FEWEST_ROWS_READ, MOST_ROWS_READ = 8, 64
BYTES_READ = 2**26

# Column chunks are read piece by piece, in turns. Over HTTP, the bytes of four columns were fetched 1.1 times with
# these sizes. With a buffer of 1 MB and fsspec's default read-ahead of 5 MB, they were fetched 5 times, since the
# read-ahead is dropped at each turn.
BUFFER_BYTES, READ_AHEAD = 2**23, 2**20

MOST_PAGE_BYTES = 2**29  # size of a page in memory; writers make pages of 1 MiB, or of a thousand longer values
HEADER_BYTES = 32  # enough for the first three fields of a page's header
TAIL_BYTES = 8  # the footer's length and Parquet's magic number
DICTIONARY = 2
TRUE, FALSE, BYTE, SHORT, INTEGER, LONG, DOUBLE, BINARY, LIST, SET, MAP, STRUCT = range(1, 13)


@dataclass(frozen=True)
class Footer:
    """Contents of a footer: rows per row group, schema, and a digest of the file's name, size and footer."""

    groups: tuple[int, ...]
    schema: pa.Schema
    sha256: str


class FirstPage(NamedTuple):
    """First page of a column chunk: the name of the chunk's top-level column, and the page's offset in the file."""

    column: str
    offset: int


def open_parquet(stored: pa.NativeFile, **options: Any) -> pq.ParquetFile:
    """Open a Parquet file. Each page that has a checksum is verified when it is read.

    Verification takes a twentieth of the reading time. In a test with 400 changed bytes in pages, verification found
    all changes. Without verification, 313 of the 400 changes gave wrong values without any error.
    """
    return pq.ParquetFile(stored, page_checksum_verification=True, **options)


def read_footer(file: File) -> Footer:
    """Read only the footer of a file.

    The digest in the result also covers the statistics and offsets of every column chunk, which the footer holds.
    """
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
    """Yield batches of rows `start` to `stop`, with the columns and types of `schema`.

    A batch has at most ROWS_PER_BATCH rows and BATCH_BYTES bytes, unless a single row is larger. Text in the required
    column is valid UTF-8.
    """
    with open_stored(file, READ_AHEAD) as stored:
        parquet = open_parquet(stored, buffer_size=BUFFER_BYTES, pre_buffer=False)
        slices = (part for rows in _slices(file, stored, parquet, range(start, stop), schema) for part in halved(rows))
        for group in batched_by_size(slices, rows=len, size=lambda rows: int(rows.nbytes)):
            batch = pa.concat_batches(group)
            columns = [batch.column(name) for name in schema.names]
            columns[schema.get_field_index(required)] = valid_text(batch.column(required))
            yield pa.RecordBatch.from_arrays(columns, schema=schema)


def valid_text(column: pa.Array) -> pa.Array:
    """Replace bytes of text that are not UTF-8 by U+FFFD, since readers of Parquet do not check text."""
    if not is_text(column.type):
        return column
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        stored = column.cast(pa.large_binary()).to_pylist()
        return pa.array([None if text is None else text.decode(errors="replace") for text in stored], column.type)
    return column


def _slices(
    file: File, stored: pa.NativeFile, parquet: pq.ParquetFile, rows: range, schema: pa.Schema
) -> Iterator[pa.RecordBatch]:
    """Yield the rows in small batches, one row group after the other."""
    start, stop, first_row = rows.start, rows.stop, 0
    pages: list[list[FirstPage]] = []
    for group in range(parquet.num_row_groups):
        metadata = parquet.metadata.row_group(group)
        if first_row < stop and start < first_row + metadata.num_rows:
            position = first_row
            size = _rows_read(metadata)
            # In a remote file, the footer is trusted for small groups: each header read would fetch READ_AHEAD bytes.
            if not is_url(file.url) or metadata.total_byte_size > BYTES_READ // FEWEST_ROWS_READ:
                pages = pages or first_pages(stored, parquet.num_row_groups)
                size = min(size, _rows_of_dictionaries(stored, pages[group], schema))
            # Threads take nine times as long for a few rows.
            for batch in parquet.iter_batches(size, row_groups=[group], columns=schema.names, use_threads=False):
                requested = batch.slice(max(0, start - position))[: max(0, stop - max(start, position))]
                position += len(batch)
                if len(requested):
                    # Views are cast before they are halved: `nbytes` of a slice of views counts the bytes of the whole.
                    yield _cast(requested, schema, file)
                if position >= stop:
                    return
            if position < first_row + metadata.num_rows:  # Arrow skips a page whose type is damaged
                raise pa.ArrowInvalid(
                    f"row group {group} ends after {position - first_row:,} of {metadata.num_rows:,} rows"
                )
        first_row += metadata.num_rows


def _cast(rows: pa.RecordBatch, schema: pa.Schema, file: File) -> pa.RecordBatch:
    """Cast the columns to the schema's types.

    Raises:
        ValueError: if a value cannot be converted to its column's type.
        pa.ArrowInvalid: if a column is missing.
    """
    columns = []
    for field in schema:
        if field.name not in rows.schema.names:  # as after a changed byte in the footer's copy of the schema
            raise pa.ArrowInvalid(f"there is no column `{field.name}`, which the dataset has")
        column = rows.column(field.name)
        try:
            columns.append(column if column.type == field.type else column.cast(field.type))
        except pa.ArrowInvalid as error:
            raise ValueError(
                f"column `{field.name}` of {file.url} has a value that {field.type} cannot hold ({error}); convert it, "
                "or leave the column out with `columns`"
            ) from error
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _rows_read(group: pq.RowGroupMetaData) -> int:
    """Return the number of rows to read at a time from a row group."""
    size = max(1, group.total_byte_size)  # not the columns' sizes: if damaged, pyarrow 26 aborts the process
    on_average = BATCH_BYTES * group.num_rows // size
    at_worst = max(FEWEST_ROWS_READ, BYTES_READ // size)
    return int(max(1, min(MOST_ROWS_READ, on_average, at_worst)))


def _rows_of_dictionaries(stored: pa.NativeFile, pages: Sequence[FirstPage], schema: pa.Schema) -> int:
    """Return the number of rows to read at a time, judging by the largest dictionary of the columns in `schema`.

    One value may fill a whole dictionary, so a row may be as large as the dictionary.
    """
    sizes = (dictionary_bytes(stored, page) for page in pages if page.column in schema.names)
    return max(1, BYTES_READ // max(1, *sizes, 1))


def halved(rows: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """Halve the rows until each part fits into a batch or is a single row."""
    if len(rows) == 1 or rows.nbytes <= BATCH_BYTES:
        yield rows
    else:
        yield from halved(rows.slice(0, len(rows) // 2))
        yield from halved(rows.slice(len(rows) // 2))


def first_pages(stored: pa.NativeFile, groups: int) -> list[list[FirstPage]]:
    """Return the first page of every column chunk, as one list per row group.

    Raises:
        MalformedError: if the footer lacks the pages' offsets, or does not have `groups` row groups.
    """
    stored.seek(stored.size() - TAIL_BYTES)
    length = int.from_bytes(stored.read(4), "little")
    stored.seek(stored.size() - TAIL_BYTES - length)
    footer = _Compact(stored.read(length))
    try:
        pages = [
            [_first_page(footer) for chunks in footer.fields_of(1) for _ in footer.items(chunks)]
            for listed in footer.fields_of(4)
            for _ in footer.items(listed)
        ]
    except (IndexError, KeyError, RecursionError):
        pages = []
    if len(pages) != groups:
        raise MalformedError("has a footer without the offsets of its columns; write the file again")
    return pages


def dictionary_bytes(stored: pa.NativeFile, page: FirstPage) -> int:
    """Return the size in memory of a column chunk's dictionary, in bytes, or 0 if the chunk has no dictionary.

    Raises:
        MalformedError: if the first page is larger than MOST_PAGE_BYTES.
    """
    stored.seek(page.offset)
    kind, size = _kind_and_size(stored.read(HEADER_BYTES))
    if size > MOST_PAGE_BYTES:
        raise MalformedError(
            f"has a page of {size:,} bytes in column `{page.column}`, more than {MOST_PAGE_BYTES:,}; write the file "
            "again with smaller pages"
        )
    return size if kind == DICTIONARY else 0


def _first_page(footer: "_Compact") -> FirstPage:
    """Parse the footer's next column chunk, and return the first page of the chunk."""
    offsets: dict[int, int] = {}
    column = ""
    for _ in footer.fields_of(3):
        for field, kind in footer.fields():
            if field == 3:
                column, *_ = [footer.text() for _ in footer.items(kind)]
            elif field in (9, 11):  # offsets of the first data page and of any dictionary page
                offsets[field] = footer.integer()
            else:
                footer.skip(kind)
    return FirstPage(column, min(offsets[9], offsets.get(11) or offsets[9]))


def _kind_and_size(header: bytes) -> tuple[int, int]:
    """Return a page's type and size from its header, or zeros for an invalid header, which Arrow refuses later."""
    read, values = _Compact(header), {1: 0, 2: 0}
    try:
        for field, kind in read.fields():
            if field not in values or kind != INTEGER:
                break
            values[field] = read.integer()
    except IndexError:
        return 0, 0
    return values[1], values[2]


class _Compact:
    """Reader of Thrift's compact protocol. The value of each field must be read or skipped before the next field."""

    def __init__(self, content: bytes) -> None:
        self.content, self.at = content, 0

    def fields(self) -> Iterator[tuple[int, int]]:
        """Yield the number and the type of each field of a structure."""
        field = 0
        while byte := self._byte():
            field = field + (byte >> 4) if byte >> 4 else self.integer()
            yield field, byte & 0x0F

    def fields_of(self, number: int) -> Iterator[int]:
        """Yield the type of a structure's field with this number, if the field exists. Skip all other fields."""
        for field, kind in self.fields():
            if field == number:
                yield kind
            else:
                self.skip(kind)

    def items(self, kind: int) -> Iterator[int]:
        """Yield the type of each item of a list."""
        if kind != LIST:
            raise KeyError(kind)
        byte = self._byte()
        count = byte >> 4 if byte >> 4 < 15 else self._unsigned()
        for _ in range(count):
            yield byte & 0x0F

    def integer(self) -> int:
        value = self._unsigned()
        return (value >> 1) ^ -(value & 1)

    def text(self) -> str:
        length = self._unsigned()
        self.at += length
        return self.content[self.at - length : self.at].decode(errors="replace")

    def skip(self, kind: int) -> None:
        """Skip a value of the type `kind`."""
        if kind in (BYTE, DOUBLE):
            self.at += 1 if kind == BYTE else 8
        elif kind in (SHORT, INTEGER, LONG):
            self._unsigned()
        elif kind == BINARY:
            self.text()
        elif kind in (LIST, SET):
            for item in self.items(LIST):
                self.skip(BYTE if item in (TRUE, FALSE) else item)
        elif kind == STRUCT:
            for _, inner in self.fields():
                self.skip(inner)
        elif kind not in (TRUE, FALSE):  # these two types have no further value; Parquet has no maps
            raise KeyError(kind)

    def _unsigned(self) -> int:
        value = shift = 0
        while (byte := self._byte()) >= 0x80:
            value |= (byte & 0x7F) << shift
            shift += 7
        return value | byte << shift

    def _byte(self) -> int:
        self.at += 1
        return self.content[self.at - 1]
