"""Plain text: a file is one document, which is one row with its `text` and, twice, its path as `id` and `file`.

It is read whole and must be UTF-8. Line ends stay as they are; a byte order mark at the beginning is left out.
"""

import hashlib
from collections.abc import Iterator
from functools import partial

import pyarrow as pa

from pipeline.data.locations import File
from pipeline.data.opened import READ_BYTES, open_file
from pipeline.data.utf8 import decoded, require_narrow
from schemas.documents import FILE_COLUMN, ID_COLUMN, TEXT_COLUMN

SCHEMA = pa.schema([(name, pa.string()) for name in (TEXT_COLUMN, ID_COLUMN, FILE_COLUMN)])
MARK = "\ufeff"
MOST_BYTES = 2**31 - 1  # of a string of Arrow's


def sha256(file: File) -> str:
    """Of the decompressed content.

    Raises:
        ValueError: if it is too large.
        MalformedError: if it is not UTF-8.
    """
    return hashlib.sha256(_text(file).encode()).hexdigest()


def rows_between(file: File, start: int, stop: int, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The document, with those columns of SCHEMA that `schema` has, where row 0 is among the rows `start` to `stop`.

    Raises:
        ValueError, MalformedError: as sha256 does.
    """
    if start <= 0 < stop:
        row = {TEXT_COLUMN: _text(file).removeprefix(MARK), ID_COLUMN: file.path, FILE_COLUMN: file.path}
        yield pa.RecordBatch.from_pylist([row], schema=schema)


def _text(file: File) -> str:
    with open_file(file) as stream:
        content = b"".join(iter(partial(stream.read, READ_BYTES), b""))  # read() asks for a size, which it seeks for
    if len(content) > MOST_BYTES:
        raise ValueError(f"{file.url} holds more than {MOST_BYTES:,} bytes of text; cut it into several documents")
    require_narrow(content)
    return decoded(content, line=1)
