"""Rows without a usable document: documents that are too long become null and, like empty documents, are counted.

Reading and labelling need memory in proportion to the longest document. The length of a document is unknown until it is
read, since 9 kB of Zstandard may hold 300 MB of text. Rows without a usable document are kept, so that row numbers do
not change.
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
REPLACEMENT = "\ufffd"

LOG = logging.getLogger(__name__)


def without_long(rows: pa.RecordBatch, name: str, longest: int) -> pa.RecordBatch:
    """Replace documents of more than `longest` bytes by null, and count these documents in the batch's metadata.

    The size of a tokenized document is four bytes per token id.
    """
    if longest >= NO_BOUND:
        return rows
    column = rows.column(name)
    bound = longest // BYTES_PER_ID if pa.types.is_nested(column.type) else longest
    long = pc.greater(_lengths(column), bound).fill_null(False)
    too_long = int(pc.sum(long).as_py() or 0)
    if too_long:
        kept = pc.if_else(long, pa.scalar(None, column.type), column)
        rows = rows.set_column(rows.schema.get_field_index(name), rows.schema.field(name), kept)
    return counting(rows, too_long)


def counting(rows: pa.RecordBatch, too_long: int) -> pa.RecordBatch:
    """Return the batch, after adding `too_long` to the number of too long documents in the batch's metadata."""
    if not too_long:
        return rows
    count = b"%d" % (too_long_rows(rows) + too_long)
    return rows.replace_schema_metadata({**(rows.schema.metadata or {}), TOO_LONG_KEY: count})


def too_long_rows(rows: pa.RecordBatch) -> int:
    """Return the number of too long documents, as recorded in a batch's metadata.

    The number is right only for an unmodified batch, not for a slice of a batch.
    """
    return int((rows.schema.metadata or {}).get(TOO_LONG_KEY, 0))


def empty_rows(column: pa.Array) -> int:
    """Return the number of documents, given as texts or lists of token ids, that are null or empty."""
    return int(pc.sum(pc.equal(_lengths(column).fill_null(0), 0)).as_py() or 0)


def replaced_rows(column: pa.Array) -> int:
    """Return the number of texts with U+FFFD, which replaces invalid Unicode; 0 for lists of token ids."""
    if pa.types.is_nested(column.type):
        return 0
    return int(pc.sum(pc.match_substring(column, REPLACEMENT)).as_py() or 0)


def counted(batches: Iterable[pa.RecordBatch], place: str) -> Iterator[pa.RecordBatch]:
    """Yield the batches unchanged. At the end, log warnings about defective documents in the first column.

    There are warnings about documents that are empty, too long or not valid Unicode. The warnings give `place` as the
    location of the documents.
    """
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
        _warn_once(f"{long:,} of {rows:,} documents are longer than `longest_document` and left out: {place}")
    if replaced:
        _warn_once(f"{replaced:,} of {rows:,} documents hold U+FFFD, where text was not valid Unicode: {place}")


@cache
def _warn_once(message: str) -> None:
    """Log a warning once, even if the same documents are read several times."""
    LOG.warning(message)


def _lengths(column: pa.Array) -> pa.Array:
    """Return each document's length, in bytes for a text and in token ids for a list. The length of a null is null."""
    return pc.list_value_length(column) if pa.types.is_nested(column.type) else pc.binary_length(column)
