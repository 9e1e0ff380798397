"""JSON: each object of a file, one a line or all in an array, read as an Arrow row of the types that all have together.

There is no index: rows are reached by reading over those before them, and types are known only when the whole file has
been read.
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
"""Type of values that have no other type together. They are kept as JSON text, which `datasets` decodes."""
INT64, UINT64 = range(-(2**63), 2**63), range(2**64)
MOST_DEPTH = 32  # of lists and objects in each other; what is deeper is JSON
MOST_KEYS = 1000  # of an object in a column; one with more is JSON
MOST_FIELDS = 10_000  # columns, those of nested objects among them
SHAPES_BYTES = 2**26  # of the rows whose shapes are remembered, so that most values cost no merging
SCALARS: Mapping[Any, pa.DataType] = {
    type(None): pa.null(),
    bool: pa.bool_(),
    int: pa.int64(),
    float: pa.float64(),
    str: pa.string(),
    object: JSON,
}

SAID = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}

Shape = type | tuple[Any, ...]
"""A scalar's type, `list` with the shapes of its items, or `dict` with its keys and the shapes of their values."""


class WrongValueError(ValueError):
    """A value that its column cannot hold; the message says of which kind."""


@dataclass(frozen=True)
class Scan:
    """What a whole scan tells."""

    rows: int
    types: dict[str, pa.DataType]
    """In the order of first sight; null for a column of nulls alone, but for the required one, and for a column that is
    not passed on, as far as there are no more than MOST_FIELDS of these."""
    sha256: str
    """Of the content, white space and all."""


class Types:
    """The types of the columns that are passed on, all where `passed` is None, of the rows that were added."""

    def __init__(self, passed: Collection[str] | None) -> None:
        self.passed, self.found = passed, dict[str, pa.DataType]()
        self._known, self._remembered = set[tuple[str, Shape]](), 0
        self._fields = 0

    def add(self, name: str, value: Any, size: int) -> None:
        """Adds a value of a row of that size.

        Raises:
            MalformedError: if there are more than MOST_FIELDS.
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
            told = f"has more than {MOST_FIELDS:,} columns, those in nested objects counted"
            raise MalformedError(f"{told}; name those to pass on with --columns")


def scan(
    stream: BinaryIO, required: pa.Field, passed: Collection[str] | None = None, longest: int = LONGEST_OBJECT
) -> Scan:
    """Reads all rows. The required column has its type if a row has it, with nulls alone too, or if there is no row.

    Raises:
        MalformedError: if the file holds anything but objects, none that is short enough, more columns than there may
            be, or only values of other types in the required column.
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
        raise MalformedError("has only lines that are too long; check it, or give more with --longest-document")
    if not rows:
        types.found[required.name] = required.type
    return Scan(rows, types.found, content.sha256)


def rows_between(
    stream: BinaryIO, start: int, stop: int, schema: pa.Schema, required: str, longest: int = LONGEST_OBJECT
) -> Iterator[pa.RecordBatch]:
    """Rows `start` to `stop` with the columns of a plain schema, in batches of ROWS_PER_BATCH rows or BATCH_BYTES.

    A row that is too long has null in every column and is counted in its batch, as `without_long` has it.

    Raises:
        MalformedError: if anything but objects stands among them, or one has a value of another type in a column, the
            required one excepted.
    """
    converters = {field.name: converter(field) for field in schema}
    converters[required] = required_converter(schema.field(required))
    number, least = start, sum(fields_of(field.type) for field in schema)  # a null takes memory too
    each_in_turn = objects(stream, start, stop, longest)
    for found in batched_by_size(each_in_turn, rows=lambda each: 1, size=lambda each: max(each.size, least)):
        rows = [each.row for each in found]
        columns = [[*_converted(rows, name, convert, number)] for name, convert in converters.items()]
        arrays = [pa.array(values, field.type) for values, field in zip(columns, schema, strict=True)]
        yield counting(pa.RecordBatch.from_arrays(arrays, schema=schema), sum(each.too_long for each in found))
        number += len(rows)


def converter(field: pa.Field) -> Callable[[Any], Any]:
    """From a JSON value to one that Arrow takes for a plain field; raises WrongValueError for another value."""
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
    return lambda value: value  # for a type that Parquet files have, which takes what it can


def required_converter(field: pa.Field) -> Callable[[Any], Any]:
    """From a JSON value to text or token ids, whichever the field holds; None for any other value."""
    if is_token_list(field.type):
        return lambda value: value if isinstance(value, list) and all(map(_is_integer, value)) else None
    return lambda value: value if isinstance(value, str) else None


def shape(value: Any, depth: int = 0) -> Shape:
    """What decides a value's type; equal for most values of a column."""
    kind = type(value)
    if kind is int:
        # `datasets` decodes JSON up to 2**64; beyond, it makes a float of an integer, as Arrow does.
        return int if value in INT64 else object if value in UINT64 else float
    if kind is list and depth < MOST_DEPTH:
        return list, frozenset(shape(item, depth + 1) for item in value)
    if kind is dict and depth < MOST_DEPTH and 0 < len(value) <= MOST_KEYS:
        return dict, tuple(value), tuple(shape(part, depth + 1) for part in value.values())
    return kind if kind in SCALARS else object  # Parquet has no objects without keys


def type_of(shape: Shape) -> pa.DataType:
    """The type of values of that shape."""
    if not isinstance(shape, tuple):
        return SCALARS[shape]
    if shape[0] is list:
        return pa.list_(reduce(merged, map(type_of, shape[1]), pa.null()))
    return pa.struct([*zip(shape[1], map(type_of, shape[2]), strict=True)])


def merged(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    """The type of a column that has values of both.

    It is JSON where they go not together, and, as `load_dataset` has it, of objects whose keys differ.
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
    """Number of columns that a type takes in a file: one, or those of its parts."""
    parts = [kind.field(index).type for index in range(kind.num_fields)]
    return sum(map(fields_of, parts)) if parts else 1


def holds_json(kind: pa.DataType) -> bool:
    """True for JSON and types with JSON in them."""
    parts = [kind.field(index).type for index in range(kind.num_fields)]
    return isinstance(kind, pa.JsonType) or any(map(holds_json, parts))


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
    raise WrongValueError(SAID[type(value)])


def _converted(rows: Sequence[dict[str, Any]], name: str, convert: Callable[[Any], Any], before: int) -> Iterator[Any]:
    """The column's values, one a row, of which there are `before` others."""
    for number, row in enumerate(rows, before + 1):
        try:
            yield convert(row.get(name))
        except WrongValueError as error:
            place = f"has {error} in `{name}` of object {number:,}"
            raise MalformedError(f"{place}; correct it, or leave that object out") from None


def _of_other_types(required: pa.Field, kinds: Collection[type]) -> MalformedError:
    wanted = "text" if pa.types.is_string(required.type) else "lists of token ids"
    there = ", ".join(sorted({SAID[kind] for kind in kinds}))
    return MalformedError(f"holds {there} in column `{required.name}`, not {wanted}; name one that does, or convert it")


def _names(kind: pa.DataType) -> list[str]:
    return [part.name for part in kind.fields]


def _is_integer(value: object) -> bool:
    return type(value) is int and value in INT64


SCALAR_KINDS: Sequence[tuple[Callable[[pa.DataType], bool], Callable[[Any], bool]]] = (
    (pa.types.is_null, lambda value: False),
    (pa.types.is_boolean, lambda value: type(value) is bool),
    (pa.types.is_integer, _is_integer),
    (pa.types.is_string, lambda value: type(value) is str),
    (pa.types.is_large_string, lambda value: type(value) is str),
)
