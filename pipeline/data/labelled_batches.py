"""Batches of an annotated dataset's rows: their labels checked, so many rows at a time, and as Python's values."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.data.documents import Column, read_rows
from pipeline.data.locations import File
from pipeline.data.shard_files import reading_shard
from pipeline.data.shards import ENTROPY_COLUMNS
from schemas.annotations import INPUT_IDS, MOST_NATS
from schemas.rows import NO_BOUND

Row = dict[str, Any]
"""By column: `input_ids` int32 [N], entropies float32 [N] in nats, NaN where null; any other as Python's values."""


def read_labelled(file: File, start: int, stop: int, schema: pa.Schema, vocabulary: int) -> Iterator[pa.RecordBatch]:
    """Rows `start` to `stop` of a shard with the columns of `schema`, their tokens and labels checked.

    Raises:
        ValueError: if a token is null or outside the vocabulary, a label is not finite, or there is not one a token
            where tokens are read too.
        ValueError, OSError: as read_rows does.
    """
    with reading_shard(file):
        for batch in read_rows(file, start, stop, schema, Column(schema.names[0], longest=NO_BOUND)):
            if INPUT_IDS in batch.schema.names:
                _require_tokens(batch.column(INPUT_IDS), file, vocabulary)
            _require_labels(batch, file, start)
            start += len(batch)
            yield batch


def as_rows(batch: pa.RecordBatch) -> list[Row]:
    """One dictionary a row."""
    columns = [_values(name, batch.column(name)) for name in batch.schema.names]
    return [dict(zip(batch.schema.names, values, strict=True)) for values in zip(*columns, strict=True)]


def blocks(batches: Iterator[pa.RecordBatch], rows: int) -> Iterator[pa.RecordBatch]:
    """The same rows, so many at a time but for the last."""
    held: list[pa.RecordBatch] = []
    for batch in batches:
        held.append(batch)
        if sum(map(len, held)) >= rows:
            joined = pa.concat_batches(held)
            whole = len(joined) // rows * rows
            yield from (joined.slice(start, rows) for start in range(0, whole, rows))
            held = [joined.slice(whole)]
    if sum(map(len, held)):
        yield pa.concat_batches(held)


def _require_tokens(tokens: pa.Array, file: File, vocabulary: int) -> None:
    ids = tokens.flatten()
    if tokens.null_count or ids.null_count:
        raise ValueError(f"{file.url} has a null in `{INPUT_IDS}`; annotate its source again")
    ids_N = ids.to_numpy()
    if len(ids_N) and not 0 <= ids_N.min() <= ids_N.max() < vocabulary:
        there = f"token ids from {ids_N.min()} to {ids_N.max()}"
        raise ValueError(f"{file.url} has {there}, beyond its vocabulary of {vocabulary:,}; annotate its source again")


def _require_labels(batch: pa.RecordBatch, file: File, first_row: int) -> None:
    """Checks every entropy column that is there."""
    for name in set(ENTROPY_COLUMNS) & set(batch.schema.names):
        labels = batch.column(name)
        given = labels.flatten().drop_null().to_numpy()
        if not np.isfinite(given).all():
            raise ValueError(f"{file.url} has a label in `{name}` that is not finite; annotate its source again")
        if len(given) and np.abs(given).max() > MOST_NATS:
            largest = f"a label of {given[np.abs(given).argmax()]:.3g} nats in `{name}`"
            raise ValueError(f"{file.url} has {largest}, which no token carries; annotate its source again")
        if INPUT_IDS in batch.schema.names:
            tokens_M = batch.column(INPUT_IDS).value_lengths().to_numpy(zero_copy_only=False)
            labels_M = labels.value_lengths().to_numpy(zero_copy_only=False)
            if not np.array_equal(tokens_M, labels_M):
                row = int(np.argmax(tokens_M != labels_M))
                wrong = f"{labels_M[row]} labels in `{name}` for {tokens_M[row]} tokens"
                raise ValueError(f"row {first_row + row} of {file.url} has {wrong}; annotate its source again")


def _values(name: str, column: pa.Array) -> Sequence[Any]:
    if name not in (INPUT_IDS, *ENTROPY_COLUMNS):
        return _python_values(column)
    numbers_N = column.flatten().to_numpy(zero_copy_only=False)
    numbers_N = numbers_N.astype(np.int32 if name == INPUT_IDS else np.float32)  # a copy, which may be written to
    return np.split(numbers_N, np.cumsum(column.value_lengths().to_numpy())[:-1])


def _python_values(column: pa.Array) -> list[Any]:
    """Text that is not UTF-8 has U+FFFD where it is not."""
    try:
        values: list[Any] = column.to_pylist()
        return values
    except UnicodeDecodeError:
        if not pa.types.is_string(column.type) and not pa.types.is_large_string(column.type):
            raise
        stored = column.view(pa.large_binary() if pa.types.is_large_string(column.type) else pa.binary()).to_pylist()
        return [None if value is None else value.decode(errors="replace") for value in stored]
