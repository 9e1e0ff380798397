"""The rows this project reads: FineWeb's columns, of which only `text` is required.

A file may be tokenized already: then it has `input_ids` in place of `text`. Every other column is
passed on to the annotated dataset as it is.
"""

import pyarrow as pa

TEXT_COLUMN = "text"
TOKENS_COLUMN = "input_ids"
ID_COLUMN, FILE_COLUMN = "id", "file"
"""Of plain text: both hold the file's path below the folder that all files of the input share."""

NO_BOUND = 2**31 - 1
"""Bytes of the longest document where nothing else bounds them: as long as a string of Arrow's may be."""

FINEWEB = pa.schema(
    [
        (TEXT_COLUMN, pa.string()),
        ("id", pa.string()),
        ("dump", pa.string()),
        ("url", pa.string()),
        ("date", pa.string()),
        ("file_path", pa.string()),
        ("language", pa.string()),
        ("language_score", pa.float64()),
        ("token_count", pa.int64()),
    ]
)


def is_text(kind: pa.DataType) -> bool:
    """True for the Arrow types that hold UTF-8 text."""
    return any(is_kind(kind) for is_kind in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))


def is_list(kind: pa.DataType) -> bool:
    """True for the Arrow types that hold lists, but for views."""
    return any(is_kind(kind) for is_kind in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list))


def is_token_list(kind: pa.DataType) -> bool:
    """True for lists of integers of any width."""
    return is_list(kind) and bool(pa.types.is_integer(kind.value_type))
