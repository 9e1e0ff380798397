"""The longest document that is read: rows with a longer one stay, without a document, and are counted.

What reading and labelling hold in memory follows from the longest document. A stranger's file says nothing of it before
it is read: 9 kB of Zstandard may hold 300 MB of text.
"""

import logging
from collections.abc import Iterable, Iterator
from functools import cache

import pyarrow as pa
import pyarrow.compute as pc

from schemas.rows import NO_BOUND

LONGEST_DOCUMENT = 2**22  # bytes: a million tokens of English, more than War and Peace
BYTES_PER_ID = 4
TOO_LONG_KEY = b"rows_too_long"


def without_long(rows: pa.RecordBatch, name: str, longest: int) -> pa.RecordBatch:
    """The rows with null for each document of more than `longest` bytes, four to a token id; the batch counts them."""
    if longest >= NO_BOUND:
        return rows
    column = rows.column(name)
    long = pc.greater(sizes(column), longest).fill_null(False)
    found = int(pc.sum(long).as_py() or 0)
    if found:
        kept = pc.if_else(long, pa.scalar(None, column.type), column)
        rows = rows.set_column(rows.schema.get_field_index(name), rows.schema.field(name), kept)
    return counting(rows, found)


def counting(rows: pa.RecordBatch, too_long: int) -> pa.RecordBatch:
    """The rows, of which so many more are counted."""
    if not too_long:
        return rows
    count = b"%d" % (too_long_rows(rows) + too_long)
    return rows.replace_schema_metadata({**(rows.schema.metadata or {}), TOO_LONG_KEY: count})


def too_long_rows(rows: pa.RecordBatch) -> int:
    """Number of rows, of a batch as it was read, whose document was too long."""
    return int((rows.schema.metadata or {}).get(TOO_LONG_KEY, 0))


def sizes(column: pa.Array) -> pa.Array:
    """Bytes of each text or list of token ids; null of a null."""
    if pa.types.is_nested(column.type):
        return pc.multiply(pc.list_value_length(column).cast(pa.int64()), BYTES_PER_ID)
    return pc.binary_length(column).cast(pa.int64())


REPLACEMENT = "\ufffd"
LOG = logging.getLogger(__name__)


def empty_rows(column: pa.Array) -> int:
    """Number of texts, or lists of token ids, that are null or empty."""
    listed = pa.types.is_nested(column.type)
    lengths = pc.list_value_length(column) if listed else pc.binary_length(column)
    return int(pc.sum(pc.equal(lengths.fill_null(0), 0)).as_py() or 0)


def replaced_rows(column: pa.Array) -> int:
    """Number of texts with U+FFFD, which stands for what was not valid Unicode here or before; 0 of token ids."""
    if pa.types.is_nested(column.type):
        return 0
    return int(pc.sum(pc.match_substring(column, REPLACEMENT)).as_py() or 0)


def counted(batches: Iterable[pa.RecordBatch], place: str) -> Iterator[pa.RecordBatch]:
    """The batches, of whose first column a warning tells at the end what was missing in it."""
    rows = empty = replaced = long = 0
    for batch in batches:
        rows += len(batch)
        empty += empty_rows(batch.column(0))
        replaced += replaced_rows(batch.column(0))
        long += too_long_rows(batch)
        yield batch
    if empty > long:
        _warn_once(f"{empty - long:,} of {rows:,} documents are empty: {place}")
    if long:
        _warn_once(f"{long:,} of {rows:,} documents are longer than --longest-document and left out: {place}")
    if replaced:
        _warn_once(f"{replaced:,} of {rows:,} documents hold U+FFFD, where text was not valid Unicode: {place}")


@cache
def _warn_once(message: str) -> None:
    """Warns, but not again where the same documents are read several times."""
    LOG.warning(message)
