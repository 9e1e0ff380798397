"""Keys of documents in a sidecar: where a document was read, and a digest of its content.

The digest of a text is the first 16 bytes of the SHA-256 of its UTF-8 bytes. U+FFFD first replaces invalid Unicode in
the text. A database can compute the digest too: in DuckDB, `left(sha256(text), 32)` is the digest in hexadecimal form.
"""

import hashlib
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data.documents import Column
from pipeline.data.files import File
from schemas.sidecars import DIGEST, DIGEST_BYTES, SOURCE_FILE, SOURCE_ROW


def with_keys(batches: Iterator[pa.RecordBatch], file: File, start: int, column: Column) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a file from row `start` on, with columns for the keys of a sidecar."""
    for rows in batches:
        keys = {
            SOURCE_FILE: pa.repeat(file.path, len(rows)),
            SOURCE_ROW: pa.array(np.arange(start, start + len(rows))),
            DIGEST: digests(rows.column(column.name)),
        }
        kept = [name for name in rows.schema.names if name not in keys]  # a source may have columns of these names
        columns = {**{name: rows.column(name) for name in kept}, **keys}
        start += len(rows)
        yield pa.record_batch(columns).replace_schema_metadata(rows.schema.metadata)


def digests(documents: pa.Array) -> pa.Array:
    """Return the digest of each text or list of token ids, as 16 bytes; null for a null."""
    contents = _token_bytes(documents) if pa.types.is_nested(documents.type) else _text_bytes(documents)
    found = [None if each is None else hashlib.sha256(each).digest()[:DIGEST_BYTES] for each in contents]
    return pa.array(found, pa.binary(DIGEST_BYTES))


def _text_bytes(texts: pa.Array) -> list[bytes | None]:
    binary: list[bytes | None] = pc.cast(texts, pa.large_binary()).to_pylist()
    return binary


def _token_bytes(lists: pa.Array) -> list[bytes | None]:
    ids_N = lists.flatten().fill_null(0).to_numpy().astype("<i4")  # a null id is refused when documents are read
    ends = np.cumsum(lists.value_lengths().fill_null(0).to_numpy())
    split = np.split(ids_N, ends)[: len(lists)]
    return [ids.tobytes() if known else None for ids, known in zip(split, lists.is_valid().to_pylist(), strict=True)]
