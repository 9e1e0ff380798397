"""Batches of an annotated dataset's rows: their labels checked, so many rows at a time, and as Python's values."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.data.documents import Column, read_rows
from pipeline.data.locations import File
from pipeline.data.shard_files import reading_shard
from pipeline.data.shards import ENTROPY_COLUMNS
from schemas.annotations import INPUT_IDS
from schemas.documents import NO_BOUND

Row = dict[str, Any]
"""By column: `input_ids` int32 [N], entropies float32 [N] in nats, NaN where null; any other as Python's values."""


def read_labelled(file: File, start: int, stop: int, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Rows `start` to `stop` of a shard with the columns of `schema`, their labels checked.

    Raises:
        ValueError: if a label is not finite, or there is not one a token where tokens are read too.
        ValueError, OSError: as read_rows does.
    """
    with reading_shard(file):
        for batch in read_rows(file, start, stop, schema, Column(schema.names[0], longest=NO_BOUND)):
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


def _require_labels(batch: pa.RecordBatch, file: File, first_row: int) -> None:
    """Checks every entropy column that is there."""
    for name in set(ENTROPY_COLUMNS) & set(batch.schema.names):
        labels = batch.column(name)
        if not np.isfinite(labels.flatten().drop_null().to_numpy()).all():
            raise ValueError(f"{file.url} has a label in `{name}` that is not finite; annotate its source again")
        if INPUT_IDS in batch.schema.names:
            tokens_M = batch.column(INPUT_IDS).value_lengths().to_numpy(zero_copy_only=False)
            labels_M = labels.value_lengths().to_numpy(zero_copy_only=False)
            if not np.array_equal(tokens_M, labels_M):
                row = int(np.argmax(tokens_M != labels_M))
                wrong = f"{labels_M[row]} labels in `{name}` for {tokens_M[row]} tokens"
                raise ValueError(f"row {first_row + row} of {file.url} has {wrong}; annotate its source again")


def _values(name: str, column: pa.Array) -> Sequence[Any]:
    if name not in (INPUT_IDS, *ENTROPY_COLUMNS):
        values: list[Any] = column.to_pylist()
        return values
    numbers_N = column.flatten().to_numpy(zero_copy_only=False)
    numbers_N = numbers_N.astype(np.int32 if name == INPUT_IDS else np.float32)  # a copy, which may be written to
    return np.split(numbers_N, np.cumsum(column.value_lengths().to_numpy())[:-1])
