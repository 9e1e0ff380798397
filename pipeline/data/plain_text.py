"""Plain text: a file is one document, which is one row with its `text` and, twice, its path as `id` and `file`.

It must be UTF-8. Line ends stay as they are; a byte order mark at the beginning is left out.
"""

import codecs
import hashlib
from collections.abc import Iterator

import pyarrow as pa

from pipeline.data.files import File
from pipeline.data.skipped import counting
from pipeline.data.streams import READ_BYTES, decoded, not_utf8, open_file, require_narrow
from schemas.rows import FILE_COLUMN, ID_COLUMN, TEXT_COLUMN

SCHEMA = pa.schema([(name, pa.string()) for name in (TEXT_COLUMN, ID_COLUMN, FILE_COLUMN)])
MARK = "\ufeff"


def sha256(file: File) -> str:
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


def rows_between(file: File, start: int, stop: int, schema: pa.Schema, longest: int) -> Iterator[pa.RecordBatch]:
    """The document, with those columns of SCHEMA that `schema` has, where row 0 is among the rows `start` to `stop`.

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
