"""JSON that was written down about a dataset, read into dataclasses: every value has its field's type, or is refused.

Anybody can have written it. Numbers are finite, and whole numbers are never negative.
"""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, TypeVar, Union, cast, get_args, get_origin, get_type_hints

LARGEST = 2**63 - 1  # of a whole number, as in Arrow and Parquet
SHOWN = 40  # characters of a wrong value

Record = TypeVar("Record")


def json_object(text: str) -> dict[str, Any]:
    """The object that a text holds.

    Raises:
        ValueError: if it holds anything else.
    """
    try:
        values = json.loads(text, parse_constant=_refuse_constant)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(values, dict):
        raise ValueError("it holds no JSON object")
    return values


def decoded(kind: type[Record], values: object, name: str = "it") -> Record:
    """A dataclass of an object's values; lists become tuples.

    Raises:
        ValueError: if a field is missing or unknown, or its value has another type, naming it.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{name} is {_shown(values)}, not an object")
    types = _types(cast(Any, kind))
    if lacking := [each for each, (_, needed) in types.items() if needed and each not in values]:
        raise ValueError(f"{name} lacks {', '.join(lacking)}")
    if unknown := sorted(set(values) - set(types)):
        raise ValueError(f"{name} has {_shown(unknown[0])}, which this version does not write")
    return kind(**{each: _value(types[each][0], value, each) for each, value in values.items()})


@contextmanager
def reading(place: Path | str, remedy: str) -> Iterator[None]:
    """Name the file in what is said of its damage.

    Raises:
        ValueError: if what is inside finds the file's text wrong.
    """
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{place} is damaged ({error}); {remedy}") from error


def text_of(file: Path) -> str:
    """A file's text. Anything but a file is refused: a pipe would be waited for without end.

    Raises:
        ValueError: if it is no file, or its text is not UTF-8.
    """
    if not file.is_file():
        raise ValueError("it is not a file")
    return file.read_text(encoding="utf-8")


@cache
def _types(kind: Any) -> dict[str, tuple[Any, bool]]:
    """Type of each field, and whether it has to be there."""
    hints = get_type_hints(kind)
    assert is_dataclass(kind)
    return {
        field.name: (hints[field.name], field.default is MISSING and field.default_factory is MISSING)
        for field in fields(kind)
    }


def _value(kind: Any, value: Any, name: str) -> Any:
    if get_origin(kind) in (Union, UnionType):
        (other,) = set(get_args(kind)) - {NoneType}
        return None if value is None else _value(other, value, name)
    if get_origin(kind) is tuple:
        return _tuple(get_args(kind), value, name)
    if get_origin(kind) is Literal:
        return value if value in get_args(kind) else _refuse(value, name, f"one of {', '.join(get_args(kind))}")
    if kind is int:
        whole = type(value) is int and 0 <= value <= LARGEST
        return value if whole else _refuse(value, name, "a whole number from 0 on")
    if kind is float:
        finite = math.isfinite(value) if type(value) is float else type(value) is int and abs(value) <= LARGEST
        return float(value) if finite else _refuse(value, name, "a finite number")
    if isinstance(kind, type) and is_dataclass(kind):
        return decoded(kind, value, name)
    assert kind in (str, bool), f"no rule for {kind}"
    return value if type(value) is kind else _refuse(value, name, "text" if kind is str else "true or false")


def _tuple(kinds: tuple[Any, ...], value: object, name: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        _refuse(value, name, "a list")
    kinds = kinds[:1] * len(value) if kinds[-1] is Ellipsis else kinds
    if len(kinds) != len(value):
        _refuse(value, name, f"a list of {len(kinds)}")
    return tuple(_value(kind, each, name) for kind, each in zip(kinds, value, strict=True))


def _refuse(value: object, name: str, wanted: str) -> NoReturn:
    raise ValueError(f"{name} is {_shown(value)}, not {wanted}")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _shown(value: object) -> str:
    """As JSON has it, in ASCII, the beginning of what is long."""
    if isinstance(value, list | dict):
        return f"a list of {len(value)}" if isinstance(value, list) else "an object"
    text = json.dumps(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
