"""JSON lines as Arrow rows: a scan of a file finds a type for each column, and rows are then read with these types.

The type of a column can hold all values of the column. Values without a common type are kept as JSON text. JSON lines
have no index: rows are reached by reading all rows before them, and types are known only after the whole file is read.
"""

import json
import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, BinaryIO

import pyarrow as pa

from pipeline.data.columns import is_json
from pipeline.data.iterators import batched_by_size
from pipeline.data.json_objects import LONGEST_OBJECT, objects
from pipeline.data.skipped import counting
from pipeline.data.streams import Digested, MalformedError
from schemas.rows import is_token_list

TOKENS = pa.list_(pa.int64())
JSON = pa.json_()
"""Type of a column whose values have no other common type. The values are kept as JSON text, which `datasets`
decodes."""
INT64, UINT64 = range(-(2**63), 2**63), range(2**64)
MOST_DEPTH = 32  # levels of nested lists and objects; anything deeper is JSON
MOST_KEYS = 1000  # keys of an object in a column; an object with more keys is JSON
MOST_FIELDS = 10_000  # columns, including those of nested objects
SHAPES_BYTES = 2**26  # total size of rows whose shapes are remembered, so that most values need no merging
SCALARS: Mapping[Any, pa.DataType] = {
    type(None): pa.null(),
    bool: pa.bool_(),
    int: pa.int64(),
    float: pa.float64(),
    str: pa.string(),
    object: JSON,
}

KINDS = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}

Shape = type | tuple[Any, ...]
"""Shape of a JSON value: the type of a scalar, `list` with the shapes of the items, or `dict` with the keys and the
shapes of their values."""


@dataclass(frozen=True)
class Scan:
    """Result of reading a whole file: the number of rows, the column types and a digest."""

    rows: int
    types: dict[str, pa.DataType]
    """Types by column name, in the order of first occurrence. A column that is not in `passed` has the type null and is
    listed only if fewer than MOST_FIELDS columns were found before it. A column that holds only nulls has the type null
    too, unless it is the required column."""
    sha256: str
    """Digest of the content."""


def scan(
    stream: BinaryIO, required: pa.Field, passed: Collection[str] | None = None, longest: int = LONGEST_OBJECT
) -> Scan:
    """Read all rows of a file, and return their number, the types of the columns and a digest.

    Types are determined for the columns in `passed`, or for all columns if `passed` is None. The required column always
    has the type of the field `required`. It is among the columns if at least one row has it, even as null, or if the
    file has no rows.

    Raises:
        MalformedError: if the file holds anything except objects; if it has more than MOST_FIELDS columns; if all
            objects are longer than `longest`; if the required column has values other than null, and all of them have
            the wrong type.
    """
    content, rows, types, short = Digested(stream), 0, Types(passed), False
    convert, fits, others = required_converter(required), False, set[type]()
    for row, size, too_long in objects(content.buffered, longest=longest):
        rows += 1
        short = short or not too_long
        for name, value in row.items():
            if name == required.name:
                types.found[name] = required.type
                fits = fits or convert(value) is not None
                others.add(type(value))
            else:
                types.add(name, value, size)
    if not fits and (others := others - {type(None)}):
        raise _of_other_types(required, others)
    if rows and not short:
        raise MalformedError("has only lines that are too long; check the file, or raise `longest_document`")
    if not rows:
        types.found[required.name] = required.type
    return Scan(rows, types.found, content.sha256)


def rows_between(
    stream: BinaryIO, start: int, stop: int, schema: pa.Schema, required: str, longest: int = LONGEST_OBJECT
) -> Iterator[pa.RecordBatch]:
    """Yield batches of rows `start` to `stop`, with the columns of `schema`, which must be plain as in `plain_schema`.

    A batch has at most ROWS_PER_BATCH rows and BATCH_BYTES bytes, unless a single row is larger. A row that is too long
    is null in every column and is counted in the metadata of its batch, as in `without_long`.

    Raises:
        MalformedError: if there is anything except objects, or an object has a value of the wrong type in a column
            other than the required one.
    """
    converters = {field.name: converter(field) for field in schema}
    converters[required] = required_converter(schema.field(required))
    number, least = start, sum(fields_of(field.type) for field in schema)  # a null takes memory too
    in_turn = objects(stream, start, stop, longest)
    for batch in batched_by_size(in_turn, rows=lambda each: 1, size=lambda each: max(each.size, least)):
        rows = [each.row for each in batch]
        columns = [[*_converted(rows, name, convert, number)] for name, convert in converters.items()]
        arrays = [pa.array(values, field.type) for values, field in zip(columns, schema, strict=True)]
        yield counting(pa.RecordBatch.from_arrays(arrays, schema=schema), sum(each.too_long for each in batch))
        number += len(rows)


class WrongValueError(ValueError):
    """Error for a value that its column cannot hold. The message is only the kind of value, for example `a number`."""


class Types:
    """Collector of column types that hold all values added so far.

    Types are determined for the columns in `passed`, or for all columns if `passed` is None.
    """

    def __init__(self, passed: Collection[str] | None) -> None:
        self.passed, self.found = passed, dict[str, pa.DataType]()
        self._known, self._remembered = set[tuple[str, Shape]](), 0
        self._fields = 0

    def add(self, name: str, value: Any, size: int) -> None:
        """Add a value of the column `name` from a row of `size` bytes, and widen the column's type if necessary.

        Raises:
            MalformedError: if there are more than MOST_FIELDS columns.
        """
        if self.passed is not None and name not in self.passed:
            if len(self.found) < MOST_FIELDS:
                self.found.setdefault(name, pa.null())
            return
        seen = (name, shape(value))
        if seen in self._known:
            return
        if self._remembered > SHAPES_BYTES:
            self._known.clear()
            self._remembered = 0
        self._known.add(seen)
        self._remembered += size
        before = self.found.get(name)
        self.found[name] = merged(pa.null() if before is None else before, type_of(seen[1]))
        self._fields += fields_of(self.found[name]) - (0 if before is None else fields_of(before))
        if self._fields > MOST_FIELDS:
            raise MalformedError(
                f"has more than {MOST_FIELDS:,} columns, including those in nested objects; name those to pass on with "
                "`columns`"
            )


def shape(value: Any, depth: int = 0) -> Shape:
    """Return the Python types of a JSON value and of everything in it.

    They determine the value's Arrow type, and are the same for most values of a column.
    """
    kind = type(value)
    if kind is int:
        # `datasets` decodes integers of JSON below 2**64 as integers, and larger ones as floats, as Arrow does.
        return int if value in INT64 else object if value in UINT64 else float
    if kind is list and depth < MOST_DEPTH:
        return list, frozenset(shape(item, depth + 1) for item in value)
    if kind is dict and depth < MOST_DEPTH and 0 < len(value) <= MOST_KEYS:
        return dict, tuple(value), tuple(shape(part, depth + 1) for part in value.values())
    return kind if kind in SCALARS else object  # Parquet has no objects without keys


def type_of(shape: Shape) -> pa.DataType:
    """Return the Arrow type of values with this shape."""
    if not isinstance(shape, tuple):
        return SCALARS[shape]
    if shape[0] is list:
        return pa.list_(reduce(merged, map(type_of, shape[1]), pa.null()))
    return pa.struct([*zip(shape[1], map(type_of, shape[2]), strict=True)])


def merged(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    """Return the type of a column that has values of both types.

    The result is JSON if the types are incompatible. Objects with different keys are incompatible, as in
    `load_dataset`.
    """
    if one.equals(other) or pa.types.is_null(other):
        return one
    if pa.types.is_null(one):
        return other
    if {one, other} == {pa.int64(), pa.float64()}:
        return pa.float64()
    if pa.types.is_list(one) and pa.types.is_list(other):
        return pa.list_(merged(one.value_type, other.value_type))
    if pa.types.is_struct(one) and pa.types.is_struct(other) and {*_names(one)} == {*_names(other)}:
        return pa.struct([(part.name, merged(part.type, other.field(part.name).type)) for part in one.fields])
    return JSON


def fields_of(kind: pa.DataType) -> int:
    """Return the number of columns that a type needs in a file: 1, or the sum over the parts of a nested type."""
    parts = [kind.field(index).type for index in range(kind.num_fields)]
    return sum(map(fields_of, parts)) if parts else 1


def holds_json(kind: pa.DataType) -> bool:
    """True if a type is JSON or contains JSON."""
    parts = [kind.field(index).type for index in range(kind.num_fields)]
    return isinstance(kind, pa.JsonType) or any(map(holds_json, parts))


def converter(field: pa.Field) -> Callable[[Any], Any]:
    """Return a function that converts a JSON value to a value of a plain Arrow field.

    The function raises WrongValueError if the field cannot hold the value.
    """
    kind = field.type
    if is_json(field):
        return lambda value: None if value is None else json.dumps(value, ensure_ascii=False)
    if pa.types.is_struct(kind):
        return _struct_converter(kind)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return _list_converter(converter(kind.value_field))
    for is_kind, fits in SCALAR_KINDS:
        if is_kind(kind):
            return lambda value: value if value is None or fits(value) else _refused(value)
    if pa.types.is_floating(kind):
        return _as_float
    return lambda value: value  # the type comes from Parquet files, and Arrow converts what it can


def required_converter(field: pa.Field) -> Callable[[Any], Any]:
    """Return a function that converts a JSON value to a value of the required column.

    If the field holds token ids, the function keeps lists of integers. Otherwise, the function keeps text. It returns
    None for any other value.
    """
    if is_token_list(field.type):
        return lambda value: value if isinstance(value, list) and all(map(_is_integer, value)) else None
    return lambda value: value if isinstance(value, str) else None


def _converted(rows: Sequence[dict[str, Any]], name: str, convert: Callable[[Any], Any], before: int) -> Iterator[Any]:
    """Yield the converted value of the column `name` for each row.

    `before` is the number of objects before the first row, for error messages.
    """
    for number, row in enumerate(rows, before + 1):
        try:
            yield convert(row.get(name))
        except WrongValueError as error:
            raise MalformedError(
                f"has {error} in column `{name}` of object {number:,}; correct it, or leave that object out"
            ) from None


def _struct_converter(kind: pa.DataType) -> Callable[[Any], Any]:
    parts = {part.name: converter(part) for part in kind.fields}

    def convert(value: Any) -> Any:
        if value is None:
            return None
        if not isinstance(value, dict) or not value.keys() <= parts.keys():
            return _refused(value)
        return {name: convert_part(value.get(name)) for name, convert_part in parts.items()}

    return convert


def _list_converter(convert_item: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def convert(value: Any) -> Any:
        if value is None:
            return None
        return [*map(convert_item, value)] if isinstance(value, list) else _refused(value)

    return convert


def _as_float(value: Any) -> float | None:
    if value is None or type(value) is float:
        return value
    try:
        return float(value) if type(value) is int else _refused(value)
    except OverflowError:
        return math.copysign(math.inf, value)


def _refused(value: Any) -> Any:
    raise WrongValueError(KINDS[type(value)])


def _is_integer(value: object) -> bool:
    return type(value) is int and value in INT64


SCALAR_KINDS: Sequence[tuple[Callable[[pa.DataType], bool], Callable[[Any], bool]]] = (
    (pa.types.is_null, lambda value: False),
    (pa.types.is_boolean, lambda value: type(value) is bool),
    (pa.types.is_integer, _is_integer),
    (pa.types.is_string, lambda value: type(value) is str),
    (pa.types.is_large_string, lambda value: type(value) is str),
)


def _of_other_types(required: pa.Field, kinds: Collection[type]) -> MalformedError:
    expected = "text" if pa.types.is_string(required.type) else "lists of token ids"
    values = ", ".join(sorted({KINDS[kind] for kind in kinds}))
    message = f"holds {values} in column `{required.name}`, not {expected}"
    return MalformedError(f"{message}; name a column that does, or convert it")


def _names(kind: pa.DataType) -> list[str]:
    return [part.name for part in kind.fields]
