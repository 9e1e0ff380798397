"""Merging of the schemas of several files into one.

Columns are matched by name. Their types are widened as in Arrow. Their features, which are the column types of the
`datasets` library, are kept.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import pyarrow as pa

from schemas.rows import EXTENSION_KEYS, EXTENSION_NAME, Features, features_metadata, read_features, same_feature


@dataclass(frozen=True)
class FileColumns:
    """Columns of a file: a schema made by `plain_schema`, and the file's URL for error messages."""

    schema: pa.Schema
    url: str
    may_lack: bool = False
    """True if this file may lack columns that other files have. A missing column is read as nulls, like a missing key
    in a line of JSON."""


def plain_schema(schema: pa.Schema, url: str) -> pa.Schema:
    """Convert a schema to the plain form in which this package reads and writes rows.

    The plain form does not depend on which packages are imported. The schema's metadata keeps only the features of
    `datasets`. All fields are nullable. An extension type is replaced by its storage type, and its name is
    kept in the field's metadata. View types become `string` and `binary`, since few of Arrow's kernels accept views.

    Raises:
        ValueError: if the features cannot be read.
    """
    features = read_features(schema, url)
    return pa.schema([plain_field(field) for field in schema], metadata=features_metadata(features))


def plain_field(field: pa.Field) -> pa.Field:
    """Convert a field to the plain form that `plain_schema` describes."""
    metadata = field.metadata or {}
    named = {key: metadata[key] for key in EXTENSION_KEYS if key in metadata}  # in a fixed order, which files preserve
    kind = field.type
    if isinstance(kind, pa.ExtensionType | pa.JsonType):  # Arrow's other extension types do not depend on imports
        serialized = b"" if isinstance(kind, pa.JsonType) else kind.__arrow_ext_serialize__()
        named = dict(zip(EXTENSION_KEYS, (kind.extension_name.encode(), serialized), strict=True))
        kind = kind.storage_type
    return pa.field(field.name, _plain(kind), metadata=named or None)


def _plain(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_string_view(kind):
        return pa.string()
    if pa.types.is_binary_view(kind):
        return pa.binary()
    if pa.types.is_dictionary(kind):
        return pa.dictionary(kind.index_type, _plain(kind.value_type), kind.ordered)
    if pa.types.is_struct(kind):
        return pa.struct([plain_field(field) for field in kind.fields])
    if pa.types.is_map(kind):
        key = plain_field(kind.key_field).with_nullable(False)
        return pa.map_(key, plain_field(kind.item_field), kind.keys_sorted)
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(_item(kind), kind.list_size)
    if pa.types.is_list(kind) or pa.types.is_list_view(kind):
        return pa.list_(_item(kind))
    if pa.types.is_large_list(kind) or pa.types.is_large_list_view(kind):
        return pa.large_list(_item(kind))
    return kind


def _item(kind: pa.DataType) -> pa.Field:
    """Return the field of a list's items under the name that Parquet uses.

    List types made in memory use another name.
    """
    return plain_field(kind.value_field).with_name("element")


def is_json(field: pa.Field) -> bool:
    """True if a field of a `plain_schema` holds JSON text that `datasets` decodes."""
    return (field.metadata or {}).get(EXTENSION_NAME) == b"arrow.json"


def merged_schema(parts: Sequence[FileColumns], requested: Collection[str], required: str) -> pa.Schema:
    """Merge the requested columns into one schema, with types wide enough for all files.

    Columns are in the order of their first occurrence. `required` is the name of the column of documents. Error
    messages suggest columns to request, and never list this column.

    Raises:
        ValueError: if a file has a requested column twice; if a file lacks a requested column and its `may_lack` is
            False; if types or features are incompatible.
    """
    names = [name for name in dict.fromkeys(name for part in parts for name in part.schema.names) if name in requested]
    known = [(read_features(part.schema, part.url), part.url) for part in parts]
    fields, features, wrong = list[pa.Field](), Features(), list[str]()
    for name in names:
        try:
            field, feature = _merged_field(name, parts), _merged_feature(name, known)
            fields.append(field)
            features |= feature
        except ValueError as error:
            wrong.append(str(error))
    if wrong:
        sound = " ".join(field.name for field in fields if field.name != required)
        leave_out = f", or leave it out: `columns` {sound}" if sound else ""
        raise ValueError(f"{wrong[0]}; annotate them separately{leave_out}")
    return pa.schema(fields, metadata=features_metadata(features))


def _merged_field(name: str, parts: Sequence[FileColumns]) -> pa.Field:
    """Return the field of a column, with a type that holds the values of all files."""
    having = [part for part in parts if name in part.schema.names]
    for part in parts:
        if len(part.schema.get_all_field_indices(name)) > 1:
            raise ValueError(f"{part.url} has more than one column `{name}`")
        if part not in having and not part.may_lack:
            raise ValueError(f"{part.url} has no column `{name}`, which {having[0].url} has")
    first = having[0]
    merged = first.schema.field(name)
    for part in having[1:]:
        field = part.schema.field(name)
        first = part if pa.types.is_null(merged.type) else first
        try:
            merged = _widened(merged, field)
        except (pa.ArrowInvalid, pa.ArrowTypeError):
            kind, first_kind = _type_name(field), _type_name(merged)
            raise ValueError(f"column `{name}` of {part.url} holds {kind}, that of {first.url} {first_kind}") from None
    return merged


def _merged_feature(name: str, known: Sequence[tuple[Features, str]]) -> Features:
    """Return a column's feature as `{name: feature}`, or an empty mapping if no file declares a feature for the column.

    Raises:
        ValueError: if files declare different features.
    """
    having = [(features[name], url) for features, url in known if name in features]
    for feature, url in having:
        if not same_feature(feature, having[0][0]):
            raise ValueError(
                f"`datasets` reads column `{name}` of {url} differently from that of {having[0][1]}, for example "
                "because class names differ"
            )
    return {name: having[0][0]} if having else {}


def _widened(one: pa.Field, other: pa.Field) -> pa.Field:
    """Return a field that holds the values of both fields. It is dictionary-encoded only if both fields are."""
    if one.equals(other, check_metadata=True):
        return one
    for field, its_other in ((one, other), (other, one)):
        if pa.types.is_null(field.type):
            return its_other
    kinds = [one.type, other.type]
    if len({pa.types.is_dictionary(kind) for kind in kinds}) == 2:
        kinds = [kind.value_type if pa.types.is_dictionary(kind) else kind for kind in kinds]
    if _extensions(one) != _extensions(other) or len({pa.types.is_binary(kind) for kind in kinds}) == 2:
        raise pa.ArrowInvalid("bytes or an extension, and something else")
    schemas = [pa.schema([field.with_type(kind)]) for field, kind in zip((one, other), kinds, strict=True)]
    return pa.unify_schemas(schemas, promote_options="permissive").field(0)


def _extensions(field: pa.Field) -> list[tuple[str, object]]:
    """List the path and the metadata of each extension type in a field and its nested fields."""
    own = [("", field.metadata)] if field.metadata else []
    kind = field.type
    inner = [kind.field(index) for index in range(kind.num_fields)]
    listed = pa.types.is_nested(kind) and not pa.types.is_struct(kind)
    named = [(str(index) if listed else part.name, part) for index, part in enumerate(inner)]
    return [*own, *sorted((f"{name}.{path}", metadata) for name, part in named for path, metadata in _extensions(part))]


def _type_name(field: pa.Field) -> str:
    """Describe a field's type and its extension type, if any."""
    name = (field.metadata or {}).get(EXTENSION_NAME)
    return f"{field.type} ({name.decode()})" if name else str(field.type)
