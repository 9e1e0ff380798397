"""The plan: which rows of which files make which shard, frozen before the first one is labelled."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from pipeline.data.documents import open_documents

FEWEST_ROWS, MOST_ROWS, UNITS_WANTED = 8, 4096, 16


@dataclass(frozen=True)
class Unit:
    """Rows `start` to `stop` of a file, which become shard number `index`."""

    index: int
    file: str
    start: int
    stop: int


@dataclass(frozen=True)
class Source:
    """The input as it was found: files with their row counts, their one schema and a digest of their footers."""

    files: tuple[Path, ...]
    rows: tuple[int, ...]
    schema: pa.Schema
    sha256: str


def inspect(files: Sequence[Path], *, tokenized: bool) -> Source:
    """Reads the footer of every file.

    Raises:
        ValueError: if a file is unreadable, lacks the column, or has other columns than the first.
    """
    rows: list[int] = []
    schema: pa.Schema | None = None
    digest = hashlib.sha256()
    for file in files:
        parquet = open_documents(file, tokenized=tokenized)
        found = parquet.schema_arrow.remove_metadata()
        if schema is not None and not found.equals(schema):
            raise ValueError(f"{file} has other columns than {files[0]}; annotate them apart")
        schema = found
        rows.append(parquet.metadata.num_rows)
        digest.update(f"{file.name} {file.stat().st_size}\n".encode() + _footer(file))
    assert schema is not None
    return Source(tuple(file.resolve() for file in files), tuple(rows), schema, digest.hexdigest())


def plan_units(source: Source, *, rows_per_unit: int, limit: int | None) -> list[Unit]:
    """Consecutive units of at most `rows_per_unit` rows that do not cross files, `limit` rows in all."""
    units: list[Unit] = []
    left = sum(source.rows) if limit is None else limit
    for file, rows in zip(source.files, source.rows, strict=True):
        rows = min(rows, left)
        left -= rows
        for start in range(0, rows, rows_per_unit):
            units.append(Unit(len(units), str(file), start, min(start + rows_per_unit, rows)))
    return units


def default_rows_per_unit(rows: int) -> int:
    """Enough units to share out, from the rows alone, so that the shards do not depend on the number of workers."""
    return min(MOST_ROWS, max(FEWEST_ROWS, -(-rows // UNITS_WANTED)))


def _footer(file: Path) -> bytes:
    """A Parquet file's metadata, which holds the statistics and offsets of every column chunk."""
    with file.open("rb") as stream:
        stream.seek(-8, 2)
        length = int.from_bytes(stream.read(4), "little")
        stream.seek(-8 - length, 2)
        return stream.read(length)
