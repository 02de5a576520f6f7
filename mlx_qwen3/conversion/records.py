"""Dataclasses from JSON, for files that anyone may have written: every field is checked, and a wrong one is named."""

from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from ..files.reading import short

Record = TypeVar("Record")
KINDS = {str: "text", int: "a whole number from 0 up", float: "a number", NoneType: "null"}


def decode(kind: type[Record], value: Any, place: str = "") -> Record:
    """A `kind`, which is a dataclass, from a JSON object.

    Raises ValueError that names a field which is missing, unknown, or of another type. Whole numbers in these files
    are counts, so a negative one is an error too.
    """
    if not isinstance(value, dict):
        raise ValueError(f"{place or 'the content'} is {_shown(value)}; expected an object")
    wanted = get_type_hints(kind)
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    for name in value:
        if name not in names:
            raise ValueError(f"{_inside(place, name)} is a field that this version does not know")
    for name in names:
        if name not in value:
            raise ValueError(f"{_inside(place, name)} is missing")
    return kind(**{name: _value(wanted[name], value[name], _inside(place, name)) for name in names})


def _value(kind: Any, value: Any, place: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if isinstance(kind, UnionType):  # X | None
        (kind,) = [argument for argument in arguments if argument is not NoneType]
        return None if value is None else _value(kind, value, place)
    if origin is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{place} is {_shown(value)}; expected a list")
        return tuple(_value(arguments[0], entry, f"{place}[{index}]") for index, entry in enumerate(value))
    if origin is Mapping:
        if not isinstance(value, dict):
            raise ValueError(f"{place} is {_shown(value)}; expected an object")
        return {name: _value(arguments[1], entry, _inside(place, name)) for name, entry in value.items()}
    if is_dataclass(kind):
        return decode(kind, value, place)  # type: ignore[arg-type]
    allowed = (int, float) if kind is float else (kind,)
    if not isinstance(value, allowed) or isinstance(value, bool) or (kind is int and value < 0):
        raise ValueError(f"{place} is {_shown(value)}; expected {KINDS[kind]}")
    return value


def _inside(place: str, name: str) -> str:
    return short(f"{place}.{name}" if place else name)


def _shown(value: Any) -> str:
    return short(repr(value))
