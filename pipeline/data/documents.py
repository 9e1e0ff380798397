"""Input files: finding them, checking them before any work starts, and reading their rows as tokens."""

import glob
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from pipeline.data.tokenizer import encode
from schemas.documents import TEXT_COLUMN, TOKENS_COLUMN, is_text, is_token_list

ROWS_PER_BATCH = 256


def find_files(inputs: Sequence[str]) -> list[Path]:
    """Parquet files named by paths, folders or globs, in the order given; a folder's or glob's in name order.

    Raises:
        ValueError: if an input names nothing, or a file is named twice.
    """
    files: list[Path] = []
    for named in inputs:
        pattern = str(Path(glob.escape(named)) / "**" / "*.parquet") if Path(named).is_dir() else named
        matches = [named] if Path(named).is_file() else sorted(glob.glob(pattern, recursive=True))
        found = [Path(match) for match in matches if Path(match).is_file()]
        if not found:
            raise ValueError(f"no Parquet file at {named}")
        files += found
    named_by_path = Counter(file.resolve() for file in files)
    repeated = [str(path) for path, times in named_by_path.items() if times > 1]
    if repeated:
        raise ValueError(f"named more than once in the input: {', '.join(repeated)}")
    return files


def open_documents(file: Path, *, tokenized: bool) -> pq.ParquetFile:
    """The file, its one required column checked: `text`, or `input_ids` where documents are tokenized already.

    Raises:
        ValueError: if it is not Parquet, or lacks the column, or holds another type in it.
    """
    try:
        parquet = pq.ParquetFile(file)
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{file} is not a readable Parquet file: {error}") from error
    column, fits = (TOKENS_COLUMN, is_token_list) if tokenized else (TEXT_COLUMN, is_text)
    schema = parquet.schema_arrow
    if column not in schema.names:
        raise ValueError(f"{file} has no column `{column}`; it has {', '.join(schema.names)}")
    if not fits(schema.field(column).type):
        raise ValueError(f"column `{column}` of {file} holds {schema.field(column).type}")
    return parquet


def document_tokens(rows: pa.RecordBatch | pa.Table, tokenizer: Tokenizer | None, vocabulary: int) -> list[np.ndarray]:
    """Token ids of each row, int32: its text encoded, or its `input_ids` where there is no tokenizer.

    A row without text or tokens is a document of none.

    Raises:
        ValueError: if an id is null or outside the vocabulary.
    """
    if tokenizer is not None:
        return encode(tokenizer, [text or "" for text in rows.column(TEXT_COLUMN).to_pylist()])
    try:
        documents = [np.array(ids or [], dtype=np.int64) for ids in rows.column(TOKENS_COLUMN).to_pylist()]
    except (TypeError, OverflowError) as error:
        raise ValueError(f"`{TOKENS_COLUMN}` holds something that is no token id: {error}") from error
    for ids in documents:
        if len(ids) and not 0 <= ids.min() <= ids.max() < vocabulary:
            raise ValueError(f"token ids from {ids.min()} to {ids.max()} do not fit a vocabulary of {vocabulary}")
    return [ids.astype(np.int32) for ids in documents]


def read_rows(
    parquet: pq.ParquetFile, start: int, stop: int, columns: Sequence[str] | None = None
) -> Iterator[pa.RecordBatch]:
    """Rows `start` to `stop` of a file, a few hundred at a time, from the row groups that hold them alone."""
    first_row, groups, skip = 0, [], None
    for group in range(parquet.num_row_groups):
        rows = parquet.metadata.row_group(group).num_rows
        if first_row < stop and start < first_row + rows:
            groups.append(group)
            skip = start - first_row if skip is None else skip
        first_row += rows
    position = -(skip or 0)
    for batch in parquet.iter_batches(ROWS_PER_BATCH, row_groups=groups, columns=columns):
        wanted = batch.slice(max(0, -position))[: max(0, stop - start - max(0, position))]
        position += len(batch)
        if len(wanted):
            yield wanted


def iterate_rows(files: Sequence[Path], *, tokenized: bool, limit: int | None = None) -> Iterator[pa.RecordBatch]:
    """The one required column of every row of the files, `limit` rows at the most."""
    column = TOKENS_COLUMN if tokenized else TEXT_COLUMN
    for file in files:
        parquet = open_documents(file, tokenized=tokenized)
        rows = parquet.metadata.num_rows if limit is None else min(limit, parquet.metadata.num_rows)
        yield from read_rows(parquet, 0, rows, [column])
        limit = None if limit is None else limit - rows
