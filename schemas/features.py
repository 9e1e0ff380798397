"""The meaning that `datasets` gives to columns: names of classes, images, shapes, languages.

`datasets` writes it as JSON into the metadata of a Parquet file's schema. It is copied without importing `datasets`.
"""

import json
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

FEATURES_KEY = b"huggingface"
EXTENSION_KEYS = (EXTENSION_NAME := b"ARROW:extension:name", b"ARROW:extension:metadata")
"""A field's metadata that names its extension type, as in `datasets`' arrays. Without it, the storage type is left."""

Features = dict[str, Any]


def read_features(schema: pa.Schema, place: str) -> Features:
    """Features by column, as `datasets` describes them in JSON; none of a schema that it did not write.

    `place` names what the schema is of.

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
            f"the metadata `{key}` of {place} cannot be read ({error}); write the file without it"
        ) from error
    return {name: feature for name, feature in features.items() if name in schema.names}


def features_metadata(features: Features) -> Mapping[bytes, bytes]:
    """The metadata of a schema whose columns have these features; empty where there are none."""
    return {FEATURES_KEY: json.dumps({"info": {"features": features}}).encode()} if features else {}


def same_feature(one: Any, other: Any) -> bool:
    """True for two descriptions of one feature, also where two versions of `datasets` wrote them."""
    return bool(_plain(one) == _plain(other))


def _plain(feature: Any) -> Any:
    """The description without what only some versions write: attributes that are not set, and older names of lists."""
    if isinstance(feature, list):
        return {"_type": "List", "feature": _plain(feature[0])} if len(feature) == 1 else [*map(_plain, feature)]
    if not isinstance(feature, dict):
        return feature
    if not isinstance(feature.get("_type"), str):
        return {name: _plain(part) for name, part in feature.items()}
    given = {
        key: _plain(value) for key, value in feature.items() if value is not None and (key, value) != ("length", -1)
    }
    tagged = feature["_type"] == "Sequence" and isinstance(feature.get("feature", {}).get("_type"), str)
    return {**given, "_type": "List"} if tagged else given
