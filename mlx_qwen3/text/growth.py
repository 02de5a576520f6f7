"""Limits on the size of values in a chat template, checked before operations that make a large value of a small one.

The result of any other operation is at most a few times as large as its input, so it is checked afterwards.
"""

import re
from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any

MAX_SOURCE = 1 << 20  # characters of a template; Qwen3's has 4,000
MAX_SIZE = 1 << 24  # characters of one value, and of the whole prompt: about four million tokens

PERCENT_WIDTH = re.compile(r"%(?:\([^)]*\))?[^a-zA-Z%]*?(\d{6,})")  # with a name or without
BRACE_WIDTH = re.compile(r":[^{}]*?(\d{6,})")
WIDTH_FROM_VALUES = re.compile(r"%(?:\([^)]*\))?[^a-zA-Z%]*\*|\{[^{}]*\{")  # %*d and {:{}}


class TemplateLimitError(Exception):
    """A chat template asks for more memory or time than a prompt can need."""


def check_size(value: Any) -> None:
    """Raise TemplateLimitError if a value is too large."""
    if type(value) is str:  # the most frequent case, which needs no counting
        if len(value) > MAX_SIZE:
            raise _too_large()
    elif isinstance(value, str | bytes | int | list | tuple | dict | set) and size(value) > MAX_SIZE:
        raise _too_large()


def check_growth(estimate: Callable[..., int] | None, *args: Any, **kwargs: Any) -> None:
    """Raise TemplateLimitError if an operation would make a value that is too large."""
    if estimate is None:
        return
    try:
        expected = estimate(*args, **kwargs)
    except (TypeError, AttributeError):  # not the arguments of this operation: it fails by itself
        return
    if expected > MAX_SIZE:
        raise _too_large()


def size(value: Any) -> int:
    """Characters of a value. Each element of a list or an object counts as 8; a part that occurs twice counts twice.

    Counting stops past MAX_SIZE.
    """
    total, left = 0, [value]
    while left and total <= MAX_SIZE:
        item = left.pop()
        if isinstance(item, str | bytes):
            total += len(item)
        elif isinstance(item, int):
            total += 1 + item.bit_length() // 4
        elif isinstance(item, Mapping):
            total += 8 * len(item)
            left.extend(item)
            left.extend(item.values())
        elif isinstance(item, list | tuple | set):
            total += 8 * len(item)
            left.extend(item)
    return total


def _too_large() -> TemplateLimitError:
    return TemplateLimitError(f"it makes a value of more than {MAX_SIZE:,} characters")


def _times(left: Any, right: Any) -> int:
    if isinstance(left, int) and isinstance(right, int):
        return (left.bit_length() + right.bit_length()) // 4
    value, count = (right, left) if isinstance(left, int) else (left, right)
    return (size(value) + 1) * count if isinstance(value, str | bytes | list | tuple) else 0


def _power(base: Any, exponent: Any) -> int:
    return base.bit_length() * exponent // 4 if isinstance(base, int) and isinstance(exponent, int) else 0


def _percent(text: Any, values: Any) -> int:
    if not isinstance(text, str | bytes):
        return 0
    listed = values if isinstance(values, tuple) else tuple(values.values()) if isinstance(values, dict) else (values,)
    return _widest(text, PERCENT_WIDTH, listed)


def _braces(text: str, *args: Any, **kwargs: Any) -> int:
    mappings = [arg.values() for arg in args if isinstance(arg, dict)]  # of format_map
    return _widest(text, BRACE_WIDTH, [*args, *kwargs.values(), *chain(*mappings)])


def _widest(text: str | bytes, pattern: re.Pattern[str], values: Any) -> int:
    """The largest width that a format text asks for."""
    text = text.decode("latin-1") if isinstance(text, bytes) else text
    widths = [float(digits) for digits in pattern.findall(text)]
    if WIDTH_FROM_VALUES.search(text):
        widths += [abs(float(value)) if abs(value) < 1e300 else 1e300 for value in values if isinstance(value, int)]
    return int(max(widths, default=0))


def _replaced(text: Any, old: Any, new: Any, count: int | None = None) -> int:
    times = text.count(old)
    return len(text) + min(times, times if count is None or count < 0 else count) * len(new)


def _joined(separator: Any, values: Any) -> int:
    return size(values) + len(separator) * len(values)


def _expanded(text: Any, width: int = 8) -> int:
    tabs = text.count("\t" if isinstance(text, str) else b"\t")
    return len(text) + tabs * width


def _indented(text: str, width: int | str = 4, *_rest: Any, **_options: Any) -> int:
    return (text.count("\n") + 1) * (len(width) if isinstance(width, str) else width)


def _as_json(value: Any, ensure_ascii: bool = False, indent: Any = None, *_rest: Any, **_options: Any) -> int:
    width = len(indent) if isinstance(indent, str) else int(indent or 0)
    total, left = 0, [(value, 1)]
    while left and total * width <= MAX_SIZE:
        item, depth = left.pop()
        total += 2 * depth  # the line of an item, and the bracket that closes it
        parts = item.values() if isinstance(item, Mapping) else item if isinstance(item, list | tuple) else ()
        left.extend((part, depth + 1) for part in parts)
    return total * width


def _first(_text: Any, amount: int, *_rest: Any) -> int:
    return abs(amount)


OPERATORS: dict[str, Callable[..., int] | None] = {"*": _times, "**": _power, "%": _percent, "+": None}
# Of text, bytes and integers
METHODS: dict[str, Callable[..., int]] = {
    "center": _first,
    "ljust": _first,
    "rjust": _first,
    "zfill": _first,
    "to_bytes": _first,
    "expandtabs": _expanded,
    "replace": _replaced,
    "join": _joined,
    "format": _braces,
    "format_map": _braces,
    "translate": lambda text, table: len(text) * (1 + size(table)),
}
FILTERS: dict[str, Callable[..., int]] = {
    "batch": lambda _value, linecount, fill_with=None: linecount * (1 + size(fill_with)),
    "center": lambda _value, width=80: width,
    "format": lambda text, *args, **kwargs: _percent(text, kwargs or args),
    "indent": _indented,
    "join": lambda values, d="", attribute=None: _joined(d, values),
    "replace": _replaced,
    "round": lambda _value, precision=0, method="common": abs(precision) << 12,  # 10 to that power
    "slice": lambda _value, slices, fill_with=None: slices * (1 + size(fill_with)),
    "tojson": _as_json,
}
