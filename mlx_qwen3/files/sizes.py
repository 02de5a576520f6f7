"""Sizes as people write them: 5GB, 512M, 2GiB."""

import re
from decimal import Decimal

from ..errors import UsageError
from .reading import short
from .settings import is_int

# B, K, KB, KIB, M, ...: powers of 1000, or of 1024 if there is an I
UNITS = {"B": 1} | {
    letter + ending: base ** (index + 1)
    for index, letter in enumerate("KMGT")
    for ending, base in (("", 1000), ("B", 1000), ("IB", 1024))
}


def parse_size(text: str, name: str = "size") -> int:
    """Bytes of a size such as 5GB, 20G, 4.1M or 2GiB. Raises UsageError, also for a number that has no unit."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)", text.strip(), re.ASCII)
    unit = UNITS.get(match[2].upper()) if match else None
    if match is None or unit is None or (size := Decimal(match[1]) * unit) < 1:
        raise UsageError(f"{name} is {short(repr(text))}; expected a number with a unit, such as 5GB, 500M or 2GiB")
    return round(size)


def bytes_of(size: int | str, name: str) -> int:
    """Bytes of a size, which is a number of bytes or a text. Raises UsageError; its message begins with `name`."""
    if isinstance(size, str):
        return parse_size(size, name)
    if not is_int(size) or size < 1:
        raise UsageError(f"{name} is {short(repr(size))}; expected bytes, 1 or more, or a text such as 5GB")
    return int(size)


def gigabytes(count: int) -> str:
    """A number of bytes for people: 1.25 GB, 3.10 MB."""
    return f"{count / 1e9:.2f} GB" if count >= 10**8 else f"{count / 1e6:.2f} MB"
