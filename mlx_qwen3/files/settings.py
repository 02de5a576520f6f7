"""Values of a JSON file, checked: a setting of another type or range is an error that names it."""

from collections.abc import Mapping
from numbers import Integral
from typing import Any, TypeGuard

from ..errors import ConfigError
from .reading import short

LARGEST = 1 << 31  # of a count: what an index of 32 bits holds


def shown(value: Any) -> str:
    """A value from an untrusted file for a message."""
    return short(repr(value))


def is_int(value: Any) -> TypeGuard[int]:
    """Also NumPy's integers; True and False are none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def required(raw: Mapping[str, Any], key: str) -> Any:
    if raw.get(key) is None:
        raise ConfigError(f"{key} is missing from config.json; take the file from the model's release")
    return raw[key]


def count(raw: Mapping[str, Any], key: str, most: int = LARGEST) -> int:
    value = required(raw, key)
    if not is_int(value) or not 0 < value <= most:
        raise ConfigError(f"{key} is {shown(value)} in config.json; expected a positive integer, at most {most:,}")
    return int(value)


def number(raw: Mapping[str, Any], key: str, least: float = 0.0, most: float = 1e30) -> float:
    """Above 0, and from `least` to `most`."""
    value = required(raw, key)
    real = isinstance(value, int | float) and not isinstance(value, bool)
    if not real or not (0 < value <= most and value >= least):
        expected = f"a number from {least:g} to {most:g}" if least else "a positive number"
        raise ConfigError(f"{key} is {shown(value)} in config.json; expected {expected}")
    return float(value)


def flag(raw: Mapping[str, Any], key: str) -> bool:
    value = required(raw, key)
    if not isinstance(value, bool):
        raise ConfigError(f"{key} is {shown(value)} in config.json; expected true or false")
    return value


def mapping(raw: Mapping[str, Any], key: str) -> dict[str, Any]:
    """A setting that is an object, {} if it is absent or null."""
    value = raw.get(key)
    if value is not None and not isinstance(value, dict):
        raise ConfigError(f"{key} is {shown(value)} in config.json; expected an object")
    return value or {}


def token_ids(raw: Mapping[str, Any], key: str, file: str = "config.json") -> frozenset[int]:
    """A setting that is absent, null, one token id or a list of them."""
    value = raw.get(key)
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(is_int(i) and 0 <= i < LARGEST for i in ids):
        raise ConfigError(f"{key} is {shown(value)} in {file}; expected a token id or a list of them")
    return frozenset(ids)
