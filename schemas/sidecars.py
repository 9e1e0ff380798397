"""Sidecars: datasets with the labels of documents, without text and token ids.

A row has the labels of a document and three keys: the source's own `id` if there is one, the file and the row from
which the document was read, and a digest of its content. Labels are joined to a document by its `id` and digest, or by
the digest alone. `entropy[i]` is the label of the i-th token of the document's encoding.
"""

import pyarrow as pa

from schemas.annotations import MEAN_ENTROPY, NUM_TOKENS, PER_TOKEN, PROVENANCE_KEY, Provenance
from schemas.rows import ID_COLUMN

SOURCE_FILE, SOURCE_ROW, DIGEST = "source_file", "source_row", "document_digest"
DIGEST_BYTES = 16
KEY_FIELDS = (
    pa.field(SOURCE_FILE, pa.string()),
    pa.field(SOURCE_ROW, pa.int64()),
    pa.field(DIGEST, pa.binary(DIGEST_BYTES)),
)
STORED_IN_SIDECARS = (*PER_TOKEN, NUM_TOKENS, MEAN_ENTROPY)
"""Columns that a sidecar has in common with an annotated dataset."""

KEY_DESCRIPTIONS = {
    ID_COLUMN: "the source's own key of the document",
    SOURCE_FILE: "path of the source's file, relative to the folder that contains all files of the source",
    SOURCE_ROW: "number of the document's row in this file, counted from 0",
    DIGEST: "first 16 bytes of the SHA-256 of the document's text in UTF-8, or of its token ids as little-endian int32;"
    " null without a document",
}


def sidecar_schema(source: pa.Schema, provenance: Provenance) -> pa.Schema:
    """Return the schema of a sidecar: the keys, then the label columns.

    The source's `id` is a key only if it is text or a whole number.

    Raises:
        ValueError: if `provenance` asks for the text or for other columns of the source.
    """
    if provenance.columns or provenance.keep_text:
        raise ValueError("a `sidecar` holds no columns of the source; leave `columns` and `keep_text` out")
    own = [source.field(ID_COLUMN)] if has_id(source) else []
    numbers = [(NUM_TOKENS, pa.int32()), (MEAN_ENTROPY, pa.float32())]
    labels = [pa.field(name, kind) for name, kind in (*provenance.label_types.items(), *numbers)]
    return pa.schema([*own, *KEY_FIELDS, *labels], metadata={PROVENANCE_KEY: provenance.to_json().encode()})


def has_id(schema: pa.Schema) -> bool:
    """True if a source has a column `id` of text or of whole numbers. Only these types can be keys."""
    at = schema.get_field_index(ID_COLUMN)
    kind = pa.null() if at < 0 else schema.field(at).type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_integer(kind))
