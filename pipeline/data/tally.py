"""Rows without text, or with too long a one, or whose text has lost characters: counted, and told once."""

import logging
from collections.abc import Iterable, Iterator
from functools import cache

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data.longest import too_long_rows

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
