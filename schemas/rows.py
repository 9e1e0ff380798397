"""Rows of source documents: FineWeb's columns, of which only `text` is required, and the features of `datasets`.

A file that is tokenized already has `input_ids` instead of `text`. Every other column is passed on to the annotated
dataset unchanged.
"""

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

TEXT_COLUMN = "text"
TOKENS_COLUMN = "input_ids"
ID_COLUMN, FILE_COLUMN = "id", "file"
"""Columns of rows from text files: both hold the file's path below the folder that all files of the input share."""

NO_BOUND = 2**31 - 1
"""Limit on the bytes of a document if no other is set: Arrow's longest string."""

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
    """True for the Arrow types that hold lists, except views."""
    return any(is_kind(kind) for is_kind in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list))


def is_token_list(kind: pa.DataType) -> bool:
    """True for lists of integers of any width."""
    return is_list(kind) and bool(pa.types.is_integer(kind.value_type))


FEATURES_KEY = b"huggingface"
EXTENSION_KEYS = (EXTENSION_NAME := b"ARROW:extension:name", b"ARROW:extension:metadata")
"""Keys of a field's metadata that name its extension type, used by the arrays of `datasets`."""

Features = dict[str, Any]


def read_features(schema: pa.Schema, source: str) -> Features:
    """Return each column's features in the JSON of `datasets`; empty if `datasets` did not write the schema.

    `source` names the file in errors.

    Raises:
        ValueError: if the metadata cannot be read.
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
    """Return schema metadata that describes these features; empty if there are none."""
    return {FEATURES_KEY: json.dumps({"info": {"features": features}}).encode()} if features else {}


def same_feature(one: Any, other: Any) -> bool:
    """True for two descriptions of one feature, even if two versions of `datasets` wrote them."""
    return bool(_plain(one) == _plain(other))


def _plain(feature: Any) -> Any:
    """Return a feature's description without what only some versions write: unset attributes, older names of lists."""
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
