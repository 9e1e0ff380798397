"""Documents in Parquet, JSON lines and plain text: their rows, as Arrow batches of one schema, and their token ids.

Each file is inspected for its number of rows and its columns. The schemas of all files are then merged, and any range
of a file's rows can be read with the merged schema. `iterate_rows` reads only the column of documents, and needs no
earlier inspection.

A plain text file is one document. Its row has the content as `text`, and the file's path as `id` and `file`. The file
must be UTF-8. Line endings are kept, and a byte order mark is removed.
"""

import logging
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from pipeline.data import jsonl, parquet
from pipeline.data.columns import FileColumns, merged_schema, plain_field
from pipeline.data.encoding import encode_column
from pipeline.data.files import File, shortened
from pipeline.data.json_objects import LONGEST_OBJECT
from pipeline.data.skipped import LONGEST_DOCUMENT, counted, counting, without_long
from pipeline.data.streams import MARK, READ_BYTES, Digested, Utf8Decoder, decoded, open_file, reading, require_narrow
from schemas.rows import FILE_COLUMN, ID_COLUMN, TEXT_COLUMN, is_text, is_token_list

PLAIN_TEXT = pa.schema([(name, pa.string()) for name in (TEXT_COLUMN, ID_COLUMN, FILE_COLUMN)])
MOST_NAMES = 20  # columns listed in an error message

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Column:
    """Column that holds the documents. Every file must have this column."""

    name: str = TEXT_COLUMN
    tokenized: bool = False
    """True if the column holds lists of token ids instead of text."""
    longest: int = LONGEST_DOCUMENT
    """Maximum size of a document in bytes: the bytes of its text, or four bytes per token id. A longer document becomes
    null."""

    @property
    def longest_object(self) -> int:
        """Maximum size of a JSON object in bytes.

        It exceeds `longest`, since escapes lengthen a document in JSON and an object may have further values.
        """
        return max(LONGEST_OBJECT, 4 * self.longest)


@dataclass(frozen=True)
class FileInfo:
    """Result of inspecting a file: its number of rows, row groups, schema and digest."""

    rows: int
    groups: tuple[int, ...]
    """Number of rows in each part of the file that can be read cheaply on its own. The parts of a Parquet file are its
    row groups. Any other file is a single part, or has no part if it has no rows."""
    schema: pa.Schema
    """Schema of the columns. For Parquet, this is the file's schema without views and extension types. For JSON lines,
    its types hold all values of the file. A column of nulls has the type null, except the column of documents."""
    sha256: str
    """Digest of a Parquet file's name, size and footer, or of the decompressed content of any other file."""


def inspect_file(file: File, column: Column, passed: Collection[str] | None = None) -> FileInfo:
    """Return the rows, columns and digest of a file, after checking the column of documents.

    For a Parquet file, only the footer is read. Any other file is read completely. For JSON lines, types are determined
    only for the columns in `passed`, or for all columns if `passed` is None.

    Raises:
        ValueError: if the file is damaged or has changed since it was found, or if the column of documents is missing
            or has the wrong type.
        FileNotFoundError: if the file has disappeared since it was found.
        OSError: if the file's disk or store cannot be reached now.
    """
    with reading(file):
        info = _file_info(file, column, passed)
    if info.rows:
        _require_column(file, info.schema, column)
    return info


def unified(
    infos: Sequence[FileInfo], files: Sequence[File], column: Column, passed: Collection[str] | None = None
) -> pa.Schema:
    """Return one schema for all files: columns are matched by name, and types are wide enough for every file.

    The schema has the column of documents and the columns that `passed` names. If `passed` is None, the schema has the
    columns of all files. Files without rows are ignored if another file has rows. A JSON lines file may lack a column,
    in some lines or in all lines. A text file has the columns `text`, `id` and `file`. If text files are mixed with
    files of other formats, only their column `text` is used.

    Raises:
        ValueError: if `passed` names a column that no file has; if a file that is not JSON lines lacks a column of the
            schema; if the types of a column are incompatible.
    """
    has_rows = any(info.rows for info in infos)
    pairs = [
        (_without_names_if_mixed(info.schema, file, files), file)
        for info, file in zip(infos, files, strict=True)
        if bool(info.rows) == has_rows
    ]
    existing = dict.fromkeys(name for schema, _ in pairs for name in schema.names)
    if not has_rows and column.name not in existing:
        return pa.schema([_required_field(column)])
    requested = {column.name, *(existing if passed is None else passed)}
    if unknown := requested - existing.keys():
        raise ValueError(f"the source has no column {', '.join(sorted(unknown))}; it has {', '.join(existing)}")
    types = _types_of_lines(schema for schema, file in pairs if file.format == "JSON lines")
    if mixed := [name for name, kind in types.items() if name in requested and jsonl.holds_json(kind)]:
        reason = "objects whose keys differ, or values of several types; passed on as JSON text"
        LOG.warning("%s: %s", ", ".join(mixed), reason)
    return merged_schema([_file_columns(schema, file, types) for schema, file in pairs], requested, column.name)


def read_rows(file: File, start: int, stop: int, schema: pa.Schema, column: Column) -> Iterator[pa.RecordBatch]:
    """Yield batches of rows `start` to `stop` of a file, in order, with the columns and types of `schema`.

    `schema` must include the column of documents. Text in this column is valid Unicode: U+FFFD replaces any invalid
    parts. A document that is too long becomes null and is counted in the metadata of its batch. Batches have at most
    ROWS_PER_BATCH rows and BATCH_BYTES bytes, unless a single row is larger.

    Raises:
        ValueError: if the file has changed since it was found, or its data is truncated or damaged.
        FileNotFoundError: if the file has disappeared since it was found, or does not exist on this machine.
        OSError: if the file's disk or store cannot be reached now, or fails during reading.
    """
    with reading(file):
        for rows in _stored_rows(file, start, stop, schema, column):
            yield without_long(rows, column.name, column.longest)


def iterate_rows(files: Sequence[File], column: Column, limit: int | None = None) -> Iterator[pa.RecordBatch]:
    """Yield the column of documents of all files, in order and in batches, with at most `limit` rows in total.

    At the end, log warnings if documents were empty, too long or not valid Unicode.

    Raises:
        ValueError, OSError: as inspect_file and read_rows do.
    """
    others = f" and {len(files) - 1:,} more" if len(files) > 1 else ""
    return counted(_rows_of_each(files, column, limit), f"{files[0].url}{others}" if files else "")


def document_tokens(
    rows: pa.RecordBatch | pa.Table, column: Column, tokenizer: Tokenizer | None, vocabulary: int
) -> list[np.ndarray]:
    """Return an int32 array of token ids for each row.

    The tokenizer encodes the row's text. If `tokenizer` is None, the row already holds token ids. A row without text or
    token ids becomes an empty array.

    Raises:
        ValueError: if an id in a row is null or outside the vocabulary, or the tokenizer fails.
    """
    values = rows.column(column.name)
    if tokenizer is not None:
        return encode_column(tokenizer, values)
    try:
        documents = [np.array(ids or [], dtype=np.int64) for ids in values.to_pylist()]
    except (TypeError, OverflowError) as error:
        raise ValueError(
            f"column `{column.name}` holds a value that is not a token id ({error}); leave those rows out"
        ) from error
    for ids in documents:
        if len(ids) and not 0 <= ids.min() <= ids.max() < vocabulary:
            raise ValueError(
                f"token ids from {ids.min()} to {ids.max()} do not fit a vocabulary of {vocabulary}; set a larger "
                "`vocabulary`"
            )
    return [ids.astype(np.int32) for ids in documents]


def without_names(text: pa.Schema) -> pa.Schema:
    """Return the schema of text files without the columns for the files' names."""
    return pa.schema([field for field in text if field.name not in (ID_COLUMN, FILE_COLUMN)])


def _file_info(file: File, column: Column, passed: Collection[str] | None) -> FileInfo:
    if file.format == "Parquet":
        footer = parquet.read_footer(file)
        schema = _with_text_for_nulls(footer.schema, column)
        return FileInfo(sum(footer.groups), footer.groups, schema, footer.sha256)
    if file.format == "text":
        return FileInfo(1, (1,), PLAIN_TEXT, _plain_text_sha256(file))
    with open_file(file) as stream:
        scan = jsonl.scan(stream, _required_field(column), passed, column.longest_object)
    return FileInfo(scan.rows, (scan.rows,) if scan.rows else (), pa.schema([*scan.types.items()]), scan.sha256)


def _require_column(file: File, schema: pa.Schema, column: Column) -> None:
    names, fits = schema.names, is_token_list if column.tokenized else is_text
    if column.name not in names:
        advice = "" if column.tokenized else "; name the one to read with `text_column`"
        listed = shortened(names, MOST_NAMES) or "none"
        raise ValueError(f"{file.url} has no column `{column.name}`; it has {listed}{advice}")
    if names.count(column.name) > 1:
        raise ValueError(f"{file.url} has more than one column `{column.name}`; rename them")
    kind = schema.field(column.name).type
    if not fits(kind):
        expected = "lists of token ids" if column.tokenized else "text"
        message = f"column `{column.name}` of {file.url} holds {kind}, not {expected}"
        raise ValueError(f"{message}; name a column that does, or convert it")


def _with_text_for_nulls(schema: pa.Schema, column: Column) -> pa.Schema:
    """Return the schema, with the required type for the column of documents if this column has the type null.

    pandas writes the type null for the columns of an empty table.
    """
    at = schema.get_field_index(column.name)
    return schema.set(at, _required_field(column)) if at >= 0 and pa.types.is_null(schema.field(at).type) else schema


def _required_field(column: Column) -> pa.Field:
    return pa.field(column.name, jsonl.TOKENS if column.tokenized else pa.string())


def _required_alone(file: File, column: Column) -> pa.Schema:
    """Return the schema of only the column of documents. For a Parquet file, this requires reading the footer."""
    if file.format == "JSON lines":
        return pa.schema([_required_field(column)])
    if file.format == "Parquet":
        info = inspect_file(file, column)
        return unified([info], [file], column, ()) if info.rows else pa.schema([_required_field(column)])
    _require_column(file, PLAIN_TEXT, column)
    return pa.schema([PLAIN_TEXT.field(column.name)])


def _rows_of_each(files: Sequence[File], column: Column, limit: int | None) -> Iterator[pa.RecordBatch]:
    for file in files:
        if limit == 0:
            return
        schema = _required_alone(file, column)
        rows = nulls = 0
        for batch in read_rows(file, 0, sys.maxsize if limit is None else limit, schema, column):
            rows += len(batch)
            nulls += batch.column(0).null_count
            yield batch
        if file.format == "JSON lines" and rows and rows == nulls:
            inspect_file(file, column, ())  # raises if the column is missing rather than null
        limit = None if limit is None else limit - rows


def _stored_rows(file: File, start: int, stop: int, schema: pa.Schema, column: Column) -> Iterator[pa.RecordBatch]:
    if file.format == "Parquet":
        yield from parquet.rows_between(file, start, stop, schema, column.name)
    elif file.format == "text":
        yield from _plain_text_rows(file, start, stop, schema, column.longest)
    else:
        with open_file(file) as stream:
            yield from jsonl.rows_between(stream, start, stop, schema, column.name, column.longest_object)


def _without_names_if_mixed(schema: pa.Schema, file: File, files: Sequence[File]) -> pa.Schema:
    """Return a file's schema. For a text file among files of other formats, leave out the columns for file names.

    Files of other formats do not have these columns.
    """
    mixed = file.format == "text" and any(other.format != "text" for other in files)
    return without_names(schema) if mixed else schema


def _types_of_lines(schemas: Iterable[pa.Schema]) -> dict[str, pa.DataType]:
    """Return a type for each column of several JSON lines files, by the column's name.

    The type of a column can hold the column's values in all files.
    """
    types: dict[str, pa.DataType] = {}
    for field in (field for schema in schemas for field in schema):
        types[field.name] = jsonl.merged(types.get(field.name, pa.null()), field.type)
    return types


def _file_columns(schema: pa.Schema, file: File, types: Mapping[str, pa.DataType]) -> FileColumns:
    """Return a file's columns.

    Columns of a JSON lines file get the types in `types`, which can hold the values of all JSON lines files.
    """
    if file.format != "JSON lines":
        return FileColumns(schema, file.url)
    fields = [plain_field(pa.field(name, types[name])) for name in schema.names]
    return FileColumns(pa.schema(fields), file.url, may_lack=True)


def _plain_text_sha256(file: File) -> str:
    """Return the sha256 of a text file's decompressed content, which is read piece by piece.

    Raises:
        MalformedError: if the content is not UTF-8.
    """
    decoder = Utf8Decoder()
    with open_file(file) as stream:
        content = Digested(stream)
        piece = content.buffered.read(READ_BYTES)
        require_narrow(piece)
        while piece:
            decoder.decode(piece)
            piece = content.buffered.read(READ_BYTES)
    decoder.decode(b"", final=True)
    return content.sha256


def _plain_text_rows(file: File, start: int, stop: int, schema: pa.Schema, longest: int) -> Iterator[pa.RecordBatch]:
    """Yield the only row of a text file, with the columns of `schema`, if rows `start` to `stop` include row 0.

    A document of more than `longest` bytes becomes null and is counted in the batch's metadata, as in `without_long`.

    Raises:
        MalformedError: if the content is not UTF-8.
    """
    if start <= 0 < stop:
        content = _beginning(file, longest + 1)
        text = decoded(content.removeprefix(MARK), line=1) if len(content) <= longest else None
        row = {TEXT_COLUMN: text, ID_COLUMN: file.path, FILE_COLUMN: file.path}
        yield counting(pa.RecordBatch.from_pylist([row], schema=schema), text is None)


def _beginning(file: File, size: int) -> bytes:
    """Return the first `size` bytes of a file's decompressed content, read in parts.

    A single large read would allocate `size` bytes even for a small file.
    """
    with open_file(file) as stream:
        parts = list[bytes]()
        while size > 0 and (part := stream.read(min(READ_BYTES, size))):
            parts.append(part)
            size -= len(part)
    content = b"".join(parts)
    require_narrow(content)
    return content
