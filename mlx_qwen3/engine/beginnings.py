"""Which of many sequences of token ids begins like another one, found without a look at each of them."""

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from typing import Generic, TypeVar

import numpy as np

Value = TypeVar("Value")
Ids = Sequence[int] | np.ndarray


class Beginnings(Generic[Value]):
    """Sequences of token ids, each with a value. None of them is the beginning of another one.

    In sorted order, the sequence that shares the longest beginning with `ids` stands next to the place of `ids`.
    """

    def __init__(self) -> None:
        self._keys: list[bytes] = []  # sorted
        self._values: dict[bytes, Value] = {}  # the one added last at the end

    def __len__(self) -> int:
        return len(self._keys)

    def __iter__(self) -> Iterator[Value]:
        """The values, the one added last at the end."""
        return iter(self._values.values())

    def add(self, ids: Ids, value: Value) -> Value | None:
        """Add a sequence, or a known one again with a new value. There must be no longer one, see `longer`.

        Returns the value of the sequence that was its beginning and is replaced, if there was one.
        """
        self.remove(ids)
        key = _key(ids)
        at = bisect_left(self._keys, key)
        replaced = None
        if at and key.startswith(self._keys[at - 1]):
            replaced = self._values.pop(self._keys.pop(at - 1))
        insort(self._keys, key)
        self._values[key] = value
        return replaced

    def remove(self, ids: Ids) -> None:
        """Remove a sequence, if it is known."""
        key = _key(ids)
        if key in self._values:
            del self._values[key], self._keys[bisect_left(self._keys, key)]

    def best(self, ids: Ids) -> tuple[int, Value | None]:
        """The length of the longest beginning that `ids` share with a known sequence, and the value of that one."""
        key = _key(ids)
        at = bisect_left(self._keys, key)
        near = [(_shared(key, other), other) for other in self._keys[max(0, at - 1) : at + 1]]
        length, best = max(near, default=(0, b""))
        return (length, self._values[best]) if length else (0, None)

    def longer(self, ids: Ids) -> Value | None:
        """The value of a sequence that begins with all of `ids`, or is equal to them."""
        length, value = self.best(ids)
        return value if length == len(ids) else None


def shared_length(a: np.ndarray, b: np.ndarray) -> int:
    """The length of the common beginning of two sequences of ids."""
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if len(different) else n


def _key(ids: Ids) -> bytes:
    """Bytes in the same order as the ids, and of which one begins with the other if the ids do."""
    return np.asarray(ids, ">u4").tobytes()


def _shared(a: bytes, b: bytes) -> int:
    return shared_length(np.frombuffer(a, np.uint32), np.frombuffer(b, np.uint32))
