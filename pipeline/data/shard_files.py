"""Annotated shards as files: what their names tell, and errors that say how a damaged one is made anew."""

import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.documents import Column, Layout, inspect_file
from pipeline.data.locations import File, is_url, local_file
from pipeline.data.opened import DamagedError, open_stored, reading
from pipeline.data.parquet_rows import open_parquet
from schemas.annotations import INPUT_IDS
from schemas.layout import DATA_FOLDER
from schemas.rows import NO_BOUND

SHARD = re.compile(rf"(.*)/{DATA_FOLDER}/([^/]+)/((?:\d+/)?train-\d+-of-\d+\.parquet)")
TOKENS = Column(INPUT_IDS, tokenized=True, longest=NO_BOUND)


@contextmanager
def reading_shard(file: File) -> Iterator[None]:
    """Names a shard that is damaged, and the command that mends its dataset.

    Raises:
        DamagedError: if it is damaged.
    """
    try:
        with reading(file):
            yield
    except DamagedError as error:
        raise DamagedError(error.damage, mending(file)) from error


@contextmanager
def open_shard(file: File) -> Iterator[pq.ParquetFile]:
    """A shard, its pages held against their checksums.

    Raises:
        DamagedError: if it is damaged.
        ValueError, OSError: as open_stored does.
    """
    with reading_shard(file), open_stored(file) as stored, open_parquet(stored) as parquet:
        yield parquet


def shard_schema(shard: Path) -> pa.Schema:
    """The columns of a shard on this disk, and its metadata.

    Raises:
        DamagedError: if it is damaged.
    """
    with open_shard(local_file(shard)) as parquet:
        return parquet.schema_arrow


def inspect_shard(file: File) -> Layout:
    """Rows, columns and digest of a shard, from its footer.

    Raises:
        ValueError, OSError: as inspect_file does.
    """
    with reading_shard(file):
        return inspect_file(file, TOKENS)


def mending(file: File) -> str:
    """The command that mends a damaged shard."""
    found = SHARD.fullmatch(file.url)
    if found is None:
        return "annotate its source again"
    command = f"`python -m pipeline.verify {shlex.quote(found[1])}"
    if is_url(file.url):
        return f"{command}` lists the damaged shards"
    return f"{command} --repair` sets damaged shards aside, and the same annotate command makes them anew"
