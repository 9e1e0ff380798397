"""JSON: each object of a file, one a line or all in an array, read as an Arrow row whatever it holds.

There is no index: rows are reached by reading over those before them, and types are known only when the whole file has
been read.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa

from pipeline.data.batches import grouped
from pipeline.data.json_objects import objects
from pipeline.data.opened import Digested
from pipeline.data.utf8 import MalformedError

TOKENS = pa.list_(pa.int64())
SCALARS = {str, int, float, bool, type(None)}
INT64 = range(-(2**63), 2**63)
NAMES: Mapping[type, str] = {bool: "true or false", int: "numbers", float: "numbers", str: "text"}
ARROW_TYPES: Mapping[frozenset[type], pa.DataType] = {
    frozenset(): pa.null(),
    frozenset({bool}): pa.bool_(),
    frozenset({int}): pa.int64(),
    frozenset({float}): pa.float64(),
    frozenset({int, float}): pa.float64(),
}


@dataclass(frozen=True)
class Scan:
    """What a whole scan tells. `types` are in the order of first sight; null for a column of nulls alone."""

    rows: int
    types: dict[str, pa.DataType]
    """In the order of first sight; null for a column of nulls alone, but for the required one."""
    sha256: str
    """Of the content, white space and all."""


def scan(stream: BinaryIO, required: pa.Field) -> Scan:
    """Reads all rows. The required column has its type if a row has it, with nulls alone too, or if there is no row.

    Raises:
        MalformedError: if the file holds anything but objects, or only values of other types in the required column.
    """
    content = Digested(stream)
    kinds: defaultdict[str, set[type]] = defaultdict(set)
    rows, seen, convert = 0, False, converter(required.type, exactly=True)
    for row, _ in objects(content.buffered):
        rows += 1
        for name, value in row.items():
            kinds[name].add(_kind(value))
        seen = seen or convert(row.get(required.name)) is not None
    types = {name: ARROW_TYPES.get(frozenset(found - {type(None)}), pa.string()) for name, found in kinds.items()}
    if not seen and (others := kinds.get(required.name, set()) - {type(None)}):
        raise _of_other_types(required, others)
    if required.name in types or not rows:
        types[required.name] = required.type
    return Scan(rows, types, content.sha256)


def rows_between(stream: BinaryIO, start: int, stop: int, schema: pa.Schema, required: str) -> Iterator[pa.RecordBatch]:
    """Rows `start` to `stop` with the columns of `schema`, a batch of at most ROWS_PER_BATCH rows or BATCH_BYTES.

    Raises:
        MalformedError: if anything but objects stands among them.
    """
    converters = {field.name: converter(field.type, exactly=field.name == required) for field in schema}
    for found in grouped(objects(stream, start, stop), rows=lambda each: 1, size=lambda each: each.size):
        columns = [[convert(each.row.get(name)) for each in found] for name, convert in converters.items()]
        arrays = [pa.array(values, field.type) for values, field in zip(columns, schema, strict=True)]
        yield pa.RecordBatch.from_arrays(arrays, schema=schema)


def converter(kind: pa.DataType, *, exactly: bool) -> Callable[[Any], Any]:
    """From a JSON value to one of the Arrow type, or None.

    In a string column, text stays as it is; any other value becomes its JSON text, or None if it is `exactly` text
    that is wanted.
    """
    if pa.types.is_boolean(kind):
        return lambda value: value if isinstance(value, bool) else None
    if pa.types.is_integer(kind):
        return lambda value: value if _is_integer(value) else None
    if pa.types.is_floating(kind):
        return lambda value: float(value) if isinstance(value, float) or _is_integer(value) else None
    if pa.types.is_list(kind):
        return lambda value: value if isinstance(value, list) and all(map(_is_integer, value)) else None
    if exactly:
        return lambda value: value if isinstance(value, str) else None
    return lambda value: value if isinstance(value, str) or value is None else json.dumps(value, ensure_ascii=False)


def merged(kinds: Iterable[pa.DataType]) -> pa.DataType:
    """The type of a column that has these in several files; a string where there are nulls alone."""
    found = set(kinds) - {pa.null()}
    if found == {pa.int64(), pa.float64()}:
        return pa.float64()
    return found.pop() if len(found) == 1 else pa.string()


def _is_integer(value: object) -> bool:
    return type(value) is int and value in INT64


def _kind(value: object) -> type:
    """Its type; `object` for what has no Arrow type of its own."""
    kind = type(value)
    return kind if kind in SCALARS and (kind is not int or value in INT64) else object


def _of_other_types(required: pa.Field, kinds: set[type]) -> MalformedError:
    wanted = "text" if pa.types.is_string(required.type) else "lists of token ids"
    there = ", ".join(sorted({NAMES.get(kind, "objects or lists") for kind in kinds}))
    return MalformedError(f"holds {there} in column `{required.name}`, not {wanted}; name one that does, or convert it")
