"""JSON lines: one object a line, read as Arrow rows whatever the lines hold.

A blank line is no row; a line that is no JSON object is a row of nulls. There is no index: rows are reached by reading
over the lines before them, and types are known only when the whole file has been read.
"""

import hashlib
import itertools
import json
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

import pyarrow as pa

from pipeline.data.batches import grouped

TOKENS = pa.list_(pa.int64())
SCALARS = {str, int, float, bool, type(None)}
INT64 = range(-(2**63), 2**63)
MARK = b"\xef\xbb\xbf"  # a byte order mark, which some editors put first
SURROGATE_ESCAPE = re.compile(rb"\\u[dD][89a-fA-F]")
LONE_SURROGATE = re.compile("[\ud800-\udfff]")
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
    sha256: str
    """Of the content, blank lines and all."""


def scan(stream: BinaryIO, required: pa.Field) -> Scan:
    """Reads all lines. The required column has its type, or null if no row of several holds a value of it."""
    digest = hashlib.sha256()
    kinds: defaultdict[str, set[type]] = defaultdict(set)
    rows, seen, convert = 0, False, converter(required.type, exactly=True)
    for line in stream:
        digest.update(line)
        if line.isspace():
            continue
        rows += 1
        row = parsed(line)
        for name, value in row.items():
            kinds[name].add(_kind(value))
        seen = seen or convert(row.get(required.name)) is not None
    types = {name: ARROW_TYPES.get(frozenset(found - {type(None)}), pa.string()) for name, found in kinds.items()}
    types[required.name] = required.type if seen or not rows else pa.null()
    return Scan(rows, types, digest.hexdigest())


def rows_between(stream: BinaryIO, start: int, stop: int, schema: pa.Schema, required: str) -> Iterator[pa.RecordBatch]:
    """Rows `start` to `stop` with the columns of `schema`, a batch of at most ROWS_PER_BATCH rows or BATCH_BYTES."""
    converters = {field.name: converter(field.type, exactly=field.name == required) for field in schema}
    for lines in grouped(_lines_between(stream, start, stop), rows=lambda line: 1, size=len):
        rows = [parsed(line) for line in lines]
        columns = [[convert(row.get(name)) for row in rows] for name, convert in converters.items()]
        arrays = [pa.array(values, field.type) for values, field in zip(columns, schema, strict=True)]
        yield pa.RecordBatch.from_arrays(arrays, schema=schema)


def parsed(line: bytes) -> dict[str, Any]:
    """The line's object, all of its text valid Unicode (U+FFFD for what is not); an empty one if there is none."""
    try:
        value = json.loads(line.removeprefix(MARK).decode("utf-8", errors="replace"))
        if SURROGATE_ESCAPE.search(line):
            value = json.loads(LONE_SURROGATE.sub("\ufffd", json.dumps(value, ensure_ascii=False)))
    except (ValueError, RecursionError):  # not JSON, a number of over 4300 digits, or nested a thousand deep
        return {}
    return value if isinstance(value, dict) else {}


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


def _lines_between(stream: BinaryIO, start: int, stop: int) -> Iterator[bytes]:
    lines = (line for line in stream if not line.isspace())
    return itertools.islice(lines, start, stop)
