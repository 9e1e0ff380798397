"""Values of JSON as a dataclass, every one of them of the type that its field declares."""

import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any, Literal, TypeVar, Union

Made = TypeVar("Made")


def from_values(kind: type[Made], values: object) -> Made:
    """The dataclass of these values; a list becomes a tuple, a whole number a float where one is declared.

    Raises:
        ValueError: if a value is missing, of another type, or has a name that the dataclass lacks.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"it is {_named(values)}, not an object of JSON")
    declared, known = typing.get_type_hints(kind), fields(kind)  # type: ignore[arg-type]
    if unknown := values.keys() - {field.name for field in known}:
        raise ValueError(f"it has {', '.join(sorted(unknown))}, which a newer version wrote; upgrade this project")
    needed = {field.name for field in known if field.default is MISSING and field.default_factory is MISSING}
    if missing := needed - values.keys():
        raise ValueError(f"it lacks {', '.join(sorted(missing))}")
    return kind(**{name: _as(declared[name], value, name) for name, value in values.items()})


def _as(declared: Any, value: object, name: str) -> object:
    origin, inner = typing.get_origin(declared), typing.get_args(declared)
    if origin is Literal and value in inner and isinstance(value, type(inner[0])):
        return value
    if origin in (Union, types.UnionType):
        if value is None and type(None) in inner:
            return None
        return _as(next(each for each in inner if each is not type(None)), value, name)
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_as(inner[0], each, name) for each in value)
    if declared is float and type(value) in (int, float):
        return float(value)  # type: ignore[arg-type]
    if origin is None and type(value) is declared:
        return value
    wanted = f"one of {', '.join(map(repr, inner))}" if origin is Literal else getattr(declared, "__name__", declared)
    raise ValueError(f"its {name} is {_named(value)}, not {'list' if origin is tuple else wanted}")


def _named(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:60]}…"
