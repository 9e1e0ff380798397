"""Rows of source documents: FineWeb's columns, of which only `text` is required, and the features of `datasets`.

A tokenized file has the column `input_ids` instead of `text`. All other columns are copied to the annotated dataset
unchanged. The features are the JSON with which the `datasets` library describes the columns of a file.
"""

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

TEXT_COLUMN = "text"
TOKENS_COLUMN = "input_ids"
ID_COLUMN, FILE_COLUMN = "id", "file"
"""Columns added to rows from text files. Both hold the file's path, relative to the folder that contains all files of
the input."""

NO_BOUND = 2**31 - 1
"""Default limit for the size of a document in bytes: the length of Arrow's longest string."""

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
    """True if an Arrow type holds UTF-8 text."""
    return any(is_kind(kind) for is_kind in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))


def is_list(kind: pa.DataType) -> bool:
    """True if an Arrow type holds lists; False for list views."""
    return any(is_kind(kind) for is_kind in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list))


def is_token_list(kind: pa.DataType) -> bool:
    """True if an Arrow type holds lists of integers of any width."""
    return is_list(kind) and bool(pa.types.is_integer(kind.value_type))


FEATURES_KEY = b"huggingface"
EXTENSION_KEYS = (EXTENSION_NAME := b"ARROW:extension:name", b"ARROW:extension:metadata")
"""Metadata keys that describe a field's extension type, which the multidimensional arrays of `datasets` have."""

Features = dict[str, Any]


def read_features(schema: pa.Schema, source: str) -> Features:
    """Return the features of the columns, by column name; empty if `datasets` did not write the schema.

    `source` is the name of the file in error messages.

    Raises:
        ValueError: if the metadata cannot be parsed.
    """
    text = (schema.metadata or {}).get(FEATURES_KEY)
    if text is None:
        return {}
    try:
        info = json.loads(text).get("info")
        features = (info or {}).get("features") or {}
        if not isinstance(features, dict):
            raise TypeError(f"features are {type(features).__name__}")
    except (ValueError, AttributeError, TypeError) as error:
        key = FEATURES_KEY.decode()
        raise ValueError(
            f"the metadata `{key}` of {source} cannot be read ({error}); write the file without it"
        ) from error
    return {name: feature for name, feature in features.items() if name in schema.names}


def features_metadata(features: Features) -> Mapping[bytes, bytes]:
    """Return the schema metadata that holds these features; an empty mapping if there are no features."""
    return {FEATURES_KEY: json.dumps({"info": {"features": features}}).encode()} if features else {}


def same_feature(one: Any, other: Any) -> bool:
    """True if two JSON values describe the same feature, even if different versions of `datasets` wrote them."""
    return bool(_plain(one) == _plain(other))


def _plain(feature: Any) -> Any:
    """Return a feature's description in a form that is the same for all versions of `datasets`.

    Versions differ in the unset attributes that they write, and in their names for lists.
    """
    if isinstance(feature, list):
        return {"_type": "List", "feature": _plain(feature[0])} if len(feature) == 1 else [*map(_plain, feature)]
    if not isinstance(feature, dict):
        return feature
    if not isinstance(feature.get("_type"), str):
        return {name: _plain(part) for name, part in feature.items()}
    attributes = {
        key: _plain(value) for key, value in feature.items() if value is not None and (key, value) != ("length", -1)
    }
    tagged = feature["_type"] == "Sequence" and isinstance(feature.get("feature", {}).get("_type"), str)
    return {**attributes, "_type": "List"} if tagged else attributes
