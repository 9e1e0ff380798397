"""Documents as rows: files checked before any work starts, their rows in bounded batches, and rows as tokens.

Parquet gives its rows group by group. Of JSON lines, planning reads the whole file once, and rows are reached by
reading over the lines before them. A file of plain text is a single row.
"""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from pipeline.data import json_lines, parquet_rows, plain_text
from pipeline.data.encoding import encode_column
from pipeline.data.formats import remedy
from pipeline.data.locations import File
from pipeline.data.opened import open_file
from pipeline.data.redaction import redacted
from pipeline.data.tally import counted
from pipeline.data.utf8 import MalformedError
from schemas.documents import FILE_COLUMN, ID_COLUMN, TEXT_COLUMN, is_text, is_token_list

MOST_NAMES = 20  # of columns in an error


@dataclass(frozen=True)
class Column:
    """The one column that documents must have."""

    name: str = TEXT_COLUMN
    tokenized: bool = False
    """Lists of token ids in place of text."""


@dataclass(frozen=True)
class Layout:
    """What a look at a file tells."""

    rows: int
    groups: tuple[int, ...]
    """Rows of each run that is cheap to read apart: Parquet's row groups, all of any other file."""
    schema: pa.Schema
    """Without metadata. A column of JSON lines that holds nulls alone has the type null until files are `unified`, but
    for the required one."""
    sha256: str
    """Of a Parquet file's name, size and footer; of the decompressed content of JSON lines and text."""


def inspect_file(file: File, column: Column) -> Layout:
    """Reads a Parquet file's footer, or all of any other file, and checks the required column.

    Raises:
        ValueError: if the file has changed since it was found, is damaged, lacks the column, or has another type there.
        FileNotFoundError: if it is gone since it was found.
        OSError: if its disk or its store cannot be reached now.
    """
    with _reading(file):
        layout = _layout(file, column)
    _require_column(file, layout.schema, column)
    return layout


def unified(layouts: Sequence[Layout], files: Sequence[File]) -> pa.Schema:
    """The columns of all files: equal ones, or merged from JSON lines, where a column may be absent from a file.

    Of text files beside others it is `text` alone.

    Raises:
        ValueError: if a file has other columns than the first, one of them being Parquet.
    """
    if all(file.format == "JSON lines" for file in files):
        return _merged([layout.schema for layout in layouts])
    alone = all(file.format == "text" for file in files)
    schemas = [
        _merged([layout.schema])
        if file.format == "JSON lines"
        else without_names(layout.schema)
        if file.format == "text" and not alone
        else layout.schema
        for layout, file in zip(layouts, files, strict=True)
    ]
    for file, schema in zip(files, schemas, strict=True):
        if not schema.equals(schemas[0]):
            raise ValueError(f"{file.url} has other columns than {files[0].url}; annotate them apart")
    return schemas[0]


def without_names(text: pa.Schema) -> pa.Schema:
    """The columns of text files without those of their names."""
    return pa.schema([field for field in text if field.name not in (ID_COLUMN, FILE_COLUMN)])


def read_rows(file: File, start: int, stop: int, schema: pa.Schema, column: Column) -> Iterator[pa.RecordBatch]:
    """Rows `start` to `stop` in order, with the columns and types of `schema`, which holds the required column.

    Batches have at most ROWS_PER_BATCH rows and BATCH_BYTES bytes, as far as single rows allow. Text in the required
    column is valid Unicode, U+FFFD in place of what is not.

    Raises:
        ValueError: if the file has changed since it was found, or its data is cut short or damaged.
        FileNotFoundError: if it is gone since it was found, at least from where this is called.
        OSError: if its disk or its store cannot be reached now, or fails in between.
    """
    with _reading(file):
        if file.format == "Parquet":
            yield from parquet_rows.rows_between(file, start, stop, schema, column.name)
        elif file.format == "text":
            yield from plain_text.rows_between(file, start, stop, schema)
        else:
            with open_file(file) as stream:
                yield from json_lines.rows_between(stream, start, stop, schema, column.name)


def iterate_rows(files: Sequence[File], column: Column, limit: int | None = None) -> Iterator[pa.RecordBatch]:
    """The one required column of every row of the files, `limit` rows at the most; a warning tells of empty rows.

    Raises:
        ValueError, OSError: as inspect_file and read_rows do.
    """
    others = f" and {len(files) - 1:,} more" if len(files) > 1 else ""
    return counted(_rows_of_each(files, column, limit), f"{files[0].url}{others}" if files else "")


def _rows_of_each(files: Sequence[File], column: Column, limit: int | None) -> Iterator[pa.RecordBatch]:
    for file in files:
        if limit == 0:
            return
        schema = _required_alone(file, column)
        rows = given = 0
        for batch in read_rows(file, 0, sys.maxsize if limit is None else limit, schema, column):
            rows += len(batch)
            given += len(batch) - batch.column(0).null_count
            yield batch
        if file.format == "JSON lines" and rows and not given:
            inspect_file(file, column)  # which tells nulls from a column that is not there
        limit = None if limit is None else limit - rows


def document_tokens(
    rows: pa.RecordBatch | pa.Table, column: Column, tokenizer: Tokenizer | None, vocabulary: int
) -> list[np.ndarray]:
    """Token ids of each row, int32: its text encoded, or its own ids where there is no tokenizer.

    A row without text or tokens is a document of none.

    Raises:
        ValueError: if an id is null or outside the vocabulary.
    """
    given = rows.column(column.name)
    if tokenizer is not None:
        return encode_column(tokenizer, given)
    try:
        documents = [np.array(ids or [], dtype=np.int64) for ids in given.to_pylist()]
    except (TypeError, OverflowError) as error:
        raise ValueError(
            f"`{column.name}` holds something that is no token id ({error}); leave such rows out"
        ) from error
    for ids in documents:
        if len(ids) and not 0 <= ids.min() <= ids.max() < vocabulary:
            there = f"token ids from {ids.min()} to {ids.max()}"
            raise ValueError(f"{there} do not fit a vocabulary of {vocabulary}; give a larger --vocabulary")
    return [ids.astype(np.int32) for ids in documents]


def _layout(file: File, column: Column) -> Layout:
    if file.format == "Parquet":
        footer = parquet_rows.read_footer(file)
        schema = _with_text_for_nulls(footer.schema, column)
        return Layout(sum(footer.groups), footer.groups, schema, footer.sha256)
    if file.format == "text":
        return Layout(1, (1,), plain_text.SCHEMA, plain_text.sha256(file))
    with open_file(file) as stream:
        found = json_lines.scan(stream, _required_field(column))
    return Layout(found.rows, (found.rows,) if found.rows else (), pa.schema([*found.types.items()]), found.sha256)


def _require_column(file: File, schema: pa.Schema, column: Column) -> None:
    names, fits = schema.names, is_token_list if column.tokenized else is_text
    if column.name not in names:
        there = ", ".join(names[:MOST_NAMES]) + (f" and {len(names) - MOST_NAMES} more" if names[MOST_NAMES:] else "")
        advice = "" if column.tokenized else "; name the one to read with --text-column"
        raise ValueError(f"{file.url} has no column `{column.name}`; it has {there or 'none'}{advice}")
    if len(set(names)) < len(names):
        raise ValueError(f"{file.url} has several columns of one name among {', '.join(names)}; rename them")
    kind = schema.field(column.name).type
    if not fits(kind):
        wanted = "lists of token ids" if column.tokenized else "text"
        raise ValueError(
            f"column `{column.name}` of {file.url} holds {kind}, not {wanted}; name one that does, or convert it"
        )


def _with_text_for_nulls(schema: pa.Schema, column: Column) -> pa.Schema:
    """The schema with a type for the required column where it has none: pandas writes an empty table's columns so."""
    at = schema.get_field_index(column.name)
    return schema.set(at, _required_field(column)) if at >= 0 and pa.types.is_null(schema.field(at).type) else schema


def _required_field(column: Column) -> pa.Field:
    return pa.field(column.name, json_lines.TOKENS if column.tokenized else pa.string())


def _required_alone(file: File, column: Column) -> pa.Schema:
    """Parquet alone needs a look: of JSON lines the type is the one that is asked for, and text has its own."""
    if file.format == "JSON lines":
        return pa.schema([_required_field(column)])
    if file.format == "Parquet":
        return pa.schema([inspect_file(file, column).schema.field(column.name)])
    _require_column(file, plain_text.SCHEMA, column)
    return pa.schema([plain_text.SCHEMA.field(column.name)])


def _merged(schemas: Sequence[pa.Schema]) -> pa.Schema:
    kinds: dict[str, list[pa.DataType]] = {}
    for field in (field for schema in schemas for field in schema):
        kinds.setdefault(field.name, []).append(field.type)
    return pa.schema([(name, json_lines.merged(found)) for name, found in kinds.items()])


@contextmanager
def _reading(file: File) -> Iterator[None]:
    """Names the file that is malformed or cannot be decoded; an error of the disk or the store passes as it is."""
    try:
        yield
    except MalformedError as error:
        raise ValueError(f"{file.url} {error}") from None
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, UnicodeDecodeError, OSError) as error:
        # Of damaged data too Arrow raises OSError, but bare and without a number, as a disk's and a store's never is.
        if isinstance(error, OSError) and (type(error) is not OSError or error.errno is not None):
            raise
        reason = redacted(" ".join(str(error).split()))
        raise ValueError(f"{file.url} is not a readable {file.format} file: {reason}; {remedy(file.name)}") from error
