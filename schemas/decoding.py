"""Decoding of a dataset's JSON records into dataclasses.

The JSON is untrusted. A value must have its field's type. Numbers must be finite, and whole numbers must not be
negative. A reader is a function that checks a JSON value and converts it to a field's type.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from math import isfinite
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, TypeVar, Union, cast, get_args, get_origin, get_type_hints

LARGEST = 2**63 - 1  # the largest whole number in Arrow and Parquet
SHOWN = 40  # most characters of a wrong value in an error

Record = TypeVar("Record")
Reader = Callable[[Any, str], Any]


def json_object(text: str | bytes) -> dict[str, Any]:
    """Parse a JSON object.

    Raises:
        ValueError: if `text` is not a JSON object.
    """
    try:
        values = json.loads(text, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(values, dict):
        raise ValueError("it is not a JSON object")
    return values


def decoded(kind: type[Record], values: object, name: str = "it") -> Record:
    """Return an instance of the dataclass `kind` with the values of a JSON object. Lists become tuples.

    `name` stands for the object in error messages.

    Raises:
        ValueError: naming a field that is missing, is unknown or has a value of the wrong type.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{name} is {_shown(values)}, not an object")
    readers, needed = _fields(cast(Any, kind))
    if not needed <= values.keys():
        raise ValueError(f"{name} lacks {', '.join(each for each in readers if each in needed - values.keys())}")
    if not values.keys() <= readers.keys():
        raise ValueError(f"{name} has {_shown(min(values.keys() - readers))}, which this version does not write")
    return kind(**{each: readers[each](value, each) for each, value in values.items()})


@contextmanager
def reading(place: Path | str, remedy: str) -> Iterator[None]:
    """Context manager that adds a file's name and a remedy to the message of a ValueError raised inside it.

    Raises:
        ValueError: with the longer message, instead of the original error.
    """
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{place} is damaged ({error}); {remedy}") from error


def text_of(file: Path) -> str:
    """Return the text of a regular file. A pipe is refused, because reading a pipe could block forever.

    Raises:
        ValueError: if `file` is not a regular file, or not UTF-8.
    """
    if not file.is_file():
        raise ValueError("it is not a file")
    return file.read_text(encoding="utf-8")


@cache
def _fields(kind: type) -> tuple[dict[str, Reader], set[str]]:
    """Return a dictionary from field names to readers, and the names of the fields without a default."""
    hints = get_type_hints(kind)
    assert is_dataclass(kind)
    needed = {each.name for each in fields(kind) if each.default is MISSING and each.default_factory is MISSING}
    return {each.name: _reader(hints[each.name]) for each in fields(kind)}, needed


def _reader(kind: Any) -> Reader:
    """Return the reader for a field's type. A reader takes a JSON value and the field's name, which errors mention."""
    arguments = get_args(kind)
    if get_origin(kind) in (Union, UnionType):
        (other,) = set(arguments) - {NoneType}
        read = _reader(other)
        return lambda value, name: None if value is None else read(value, name)
    if get_origin(kind) is tuple:
        return _list_reader(arguments)
    if get_origin(kind) is Literal:
        choices = f"one of {', '.join(arguments)}"
        return lambda value, name: value if value in arguments else _refuse(value, name, choices)
    if isinstance(kind, type) and is_dataclass(kind):
        return lambda value, name: decoded(kind, value, name)
    return {int: _whole, float: _finite, str: _text, bool: _flag}[kind]


def _list_reader(kinds: tuple[Any, ...]) -> Reader:
    """Return the reader for a list: `kinds` has a type for each item, or one type and `...` for any number of items."""
    if kinds[-1] is Ellipsis:
        each = _reader(kinds[0])
        return lambda value, name: tuple([each(item, name) for item in _list(value, name)])
    readers = tuple(map(_reader, kinds))

    def fixed(value: Any, name: str) -> tuple[Any, ...]:
        if len(_list(value, name)) != len(readers):
            _refuse(value, name, f"a list of {len(readers)}")
        return tuple([reader(item, name) for reader, item in zip(readers, value, strict=True)])

    return fixed


def _list(value: Any, name: str) -> list[Any]:
    return value if type(value) is list else _refuse(value, name, "a list")


def _whole(value: Any, name: str) -> int:
    return value if type(value) is int and 0 <= value <= LARGEST else _refuse(value, name, "a whole number >= 0")


def _finite(value: Any, name: str) -> float:
    finite = isfinite(value) if type(value) is float else type(value) is int and abs(value) <= LARGEST
    return float(value) if finite else _refuse(value, name, "a finite number")


def _text(value: Any, name: str) -> str:
    return value if type(value) is str else _refuse(value, name, "text")


def _flag(value: Any, name: str) -> bool:
    return value if type(value) is bool else _refuse(value, name, "true or false")


def _refuse(value: object, name: str, expected: str) -> NoReturn:
    raise ValueError(f"{name} is {_shown(value)}, not {expected}")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


def _shown(value: object) -> str:
    """Return a value as ASCII JSON, truncated to `SHOWN` characters. For a list or an object, return only its type."""
    if isinstance(value, list | dict):
        return f"a list of {len(value)}" if isinstance(value, list) else "an object"
    text = json.dumps(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
