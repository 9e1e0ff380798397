"""Plain text: a file is one document, which is one row with its `text` and, twice, its path as `id` and `file`.

It must be UTF-8. Line ends stay as they are; a byte order mark at the beginning is left out.
"""

import codecs
import hashlib
import logging
import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from pipeline.data import jsonl, parquet
from pipeline.data.columns import Part, merged_schema, plain_field
from pipeline.data.encoding import encode_column
from pipeline.data.files import File
from pipeline.data.json_objects import LONGEST_OBJECT
from pipeline.data.skipped import LONGEST_DOCUMENT, counted, counting, without_long
from pipeline.data.streams import READ_BYTES, decoded, not_utf8, open_file, reading, require_narrow
from schemas.rows import FILE_COLUMN, ID_COLUMN, TEXT_COLUMN, is_text, is_token_list

PLAIN_TEXT = pa.schema([(name, pa.string()) for name in (TEXT_COLUMN, ID_COLUMN, FILE_COLUMN)])
MARK = "\ufeff"
MOST_NAMES = 20  # of columns in an error

LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Column:
    """The one column that documents must have."""

    name: str = TEXT_COLUMN
    tokenized: bool = False
    """Lists of token ids in place of text."""
    longest: int = LONGEST_DOCUMENT
    """Bytes of the longest document; a longer one is null."""

    @property
    def longest_object(self) -> int:
        """Bytes of the longest object of JSON, in which a document may have escapes and others stand beside it."""
        return max(LONGEST_OBJECT, 4 * self.longest)


@dataclass(frozen=True)
class FileInfo:
    """What a look at a file tells."""

    rows: int
    groups: tuple[int, ...]
    """Rows of each run that is cheap to read apart: Parquet's row groups, all of any other file."""
    schema: pa.Schema
    """Of Parquet a plain one; of JSON the types that its own values have together. A column of nulls alone has the type
    null, but for the required one."""
    sha256: str
    """Of a Parquet file's name, size and footer; of the decompressed content of JSON lines and text."""


def inspect_file(file: File, column: Column, passed: Collection[str] | None = None) -> FileInfo:
    """Reads a Parquet file's footer, or all of any other file, and checks the required column.

    Of JSON, types are told of the columns that are passed on, all where None.

    Raises:
        ValueError: if the file has changed since it was found, is damaged, lacks the column, or has another type there.
        FileNotFoundError: if it is gone since it was found.
        OSError: if its disk or its store cannot be reached now.
    """
    with reading(file):
        layout = _layout(file, column, passed)
    if layout.rows:
        _require_column(file, layout.schema, column)
    return layout


def unified(
    layouts: Sequence[FileInfo], files: Sequence[File], column: Column, passed: Collection[str] | None = None
) -> pa.Schema:
    """One schema of the required column and those that are passed on, all where None; compared by name and widened.

    Files without rows have no say. A column may be absent from lines of JSON, and from whole files of them.

    Of text files beside others it is `text` alone.

    Raises:
        ValueError: if no file has a column that is passed on, a file lacks one, or types do not go together.
    """
    pairs = [(_beside_others(layout.schema, file, files), file) for layout, file in zip(layouts, files, strict=True)]
    rows = sum(layout.rows for layout in layouts)
    given = [pair for pair, layout in zip(pairs, layouts, strict=True) if bool(layout.rows) == bool(rows)]
    there = dict.fromkeys(name for schema, _ in given for name in schema.names)
    if not rows and column.name not in there:
        return pa.schema([_required_field(column)])
    wanted = {column.name, *(there if passed is None else passed)}
    if unknown := wanted - there.keys():
        raise ValueError(f"the source has no column {', '.join(sorted(unknown))}; it has {', '.join(there)}")
    types = _types_of_lines(schema for schema, file in given if file.format == "JSON lines")
    if mixed := [name for name, kind in types.items() if name in wanted and jsonl.holds_json(kind)]:
        told = "objects whose keys differ, or values of several types; passed on as JSON text"
        LOG.warning("%s: %s", ", ".join(mixed), told)
    return merged_schema([_part(schema, file, types) for schema, file in given], wanted, column.name)


def _beside_others(schema: pa.Schema, file: File, files: Sequence[File]) -> pa.Schema:
    """A file's columns; of text without its names, where other files are no text and have none."""
    alone = file.format != "text" or all(other.format == "text" for other in files)
    return schema if alone else without_names(schema)


def without_names(text: pa.Schema) -> pa.Schema:
    """The columns of text files without those of their names."""
    return pa.schema([field for field in text if field.name not in (ID_COLUMN, FILE_COLUMN)])


def read_rows(file: File, start: int, stop: int, schema: pa.Schema, column: Column) -> Iterator[pa.RecordBatch]:
    """Rows `start` to `stop` in order, with the columns and types of `schema`, which holds the required column.

    Batches have at most ROWS_PER_BATCH rows and BATCH_BYTES bytes, as far as single rows allow. Text in the required
    column is valid Unicode, U+FFFD in place of what is not. A document that is too long is null and counted.

    Raises:
        ValueError: if the file has changed since it was found, or its data is cut short or damaged.
        FileNotFoundError: if it is gone since it was found, at least from where this is called.
        OSError: if its disk or its store cannot be reached now, or fails in between.
    """
    with reading(file):
        for rows in _stored_rows(file, start, stop, schema, column):
            yield without_long(rows, column.name, column.longest)


def _stored_rows(file: File, start: int, stop: int, schema: pa.Schema, column: Column) -> Iterator[pa.RecordBatch]:
    if file.format == "Parquet":
        yield from parquet.rows_between(file, start, stop, schema, column.name)
    elif file.format == "text":
        yield from plain_text_rows(file, start, stop, schema, column.longest)
    else:
        with open_file(file) as stream:
            yield from jsonl.rows_between(stream, start, stop, schema, column.name, column.longest_object)


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
            inspect_file(file, column, ())  # which tells nulls from a column that is not there
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


def _layout(file: File, column: Column, passed: Collection[str] | None) -> FileInfo:
    if file.format == "Parquet":
        footer = parquet.read_footer(file)
        schema = _with_text_for_nulls(footer.schema, column)
        return FileInfo(sum(footer.groups), footer.groups, schema, footer.sha256)
    if file.format == "text":
        return FileInfo(1, (1,), PLAIN_TEXT, _sha256(file))
    with open_file(file) as stream:
        found = jsonl.scan(stream, _required_field(column), passed, column.longest_object)
    return FileInfo(found.rows, (found.rows,) if found.rows else (), pa.schema([*found.types.items()]), found.sha256)


def _require_column(file: File, schema: pa.Schema, column: Column) -> None:
    names, fits = schema.names, is_token_list if column.tokenized else is_text
    if column.name not in names:
        there = ", ".join(names[:MOST_NAMES]) + (f" and {len(names) - MOST_NAMES} more" if names[MOST_NAMES:] else "")
        advice = "" if column.tokenized else "; name the one to read with --text-column"
        raise ValueError(f"{file.url} has no column `{column.name}`; it has {there or 'none'}{advice}")
    if names.count(column.name) > 1:
        raise ValueError(f"{file.url} has several columns of one name, `{column.name}`; rename them")
    kind = schema.field(column.name).type
    if not fits(kind):
        wanted = "lists of token ids" if column.tokenized else "text"
        told = f"column `{column.name}` of {file.url} holds {kind}, not {wanted}"
        raise ValueError(f"{told}; name one that does, or convert it")


def _with_text_for_nulls(schema: pa.Schema, column: Column) -> pa.Schema:
    """The schema with a type for the required column where it has none: pandas writes an empty table's columns so."""
    at = schema.get_field_index(column.name)
    return schema.set(at, _required_field(column)) if at >= 0 and pa.types.is_null(schema.field(at).type) else schema


def _required_field(column: Column) -> pa.Field:
    return pa.field(column.name, jsonl.TOKENS if column.tokenized else pa.string())


def _required_alone(file: File, column: Column) -> pa.Schema:
    """Parquet alone needs a look: of JSON lines the type is the one that is asked for, and text has its own."""
    if file.format == "JSON lines":
        return pa.schema([_required_field(column)])
    if file.format == "Parquet":
        layout = inspect_file(file, column)
        return unified([layout], [file], column, ()) if layout.rows else pa.schema([_required_field(column)])
    _require_column(file, PLAIN_TEXT, column)
    return pa.schema([PLAIN_TEXT.field(column.name)])


def _types_of_lines(schemas: Iterable[pa.Schema]) -> dict[str, pa.DataType]:
    """Types of the columns of several files of JSON lines."""
    types: dict[str, pa.DataType] = {}
    for field in (field for schema in schemas for field in schema):
        types[field.name] = jsonl.merged(types.get(field.name, pa.null()), field.type)
    return types


def _part(schema: pa.Schema, file: File, types: Mapping[str, pa.DataType]) -> Part:
    """A file's columns, those of JSON lines with the types that they have in all files of them."""
    if file.format != "JSON lines":
        return Part(schema, file.url)
    fields = [plain_field(pa.field(name, types[name])) for name in schema.names]
    return Part(pa.schema(fields), file.url, may_lack=True)


def _sha256(file: File) -> str:
    """Of the decompressed content, which is read piece by piece.

    Raises:
        MalformedError: if it is not UTF-8.
    """
    digest, decoder, line = hashlib.sha256(), codecs.getincrementaldecoder("utf-8")(), 1
    with open_file(file) as stream:
        piece = stream.read(READ_BYTES)
        require_narrow(piece)
        while piece:
            digest.update(piece)
            line += _decoded(decoder, piece, line).count("\n")
            piece = stream.read(READ_BYTES)
    _decoded(decoder, b"", line, final=True)
    return digest.hexdigest()


def plain_text_rows(file: File, start: int, stop: int, schema: pa.Schema, longest: int) -> Iterator[pa.RecordBatch]:
    """The document in the columns of `schema`, where row 0 is among the rows `start` to `stop`.

    One of more than `longest` bytes is null and is counted in its batch, as `without_long` has it.

    Raises:
        MalformedError: if it is not UTF-8.
    """
    if start <= 0 < stop:
        content = _beginning(file, longest + 1)
        text = decoded(content, line=1).removeprefix(MARK) if len(content) <= longest else None
        row = {TEXT_COLUMN: text, ID_COLUMN: file.path, FILE_COLUMN: file.path}
        yield counting(pa.RecordBatch.from_pylist([row], schema=schema), text is None)


def _beginning(file: File, size: int) -> bytes:
    """The first bytes of the content. They are read in parts: a reader asked for more than it has ready asks a size."""
    with open_file(file) as stream:
        parts = list[bytes]()
        while size > 0 and (part := stream.read(min(READ_BYTES, size))):
            parts.append(part)
            size -= len(part)
    content = b"".join(parts)
    require_narrow(content)
    return content


def _decoded(decoder: codecs.IncrementalDecoder, piece: bytes, line: int, *, final: bool = False) -> str:
    try:
        return decoder.decode(piece, final)
    except UnicodeDecodeError as error:
        raise not_utf8(error, line) from None
