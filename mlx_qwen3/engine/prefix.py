"""Prefixes: keys and values of earlier prompts and replies, which a new prompt may begin with."""

from collections.abc import Sequence

import numpy as np

from ..model.cache import KVCache


class Prefix:
    """Token ids and a cache of one row that holds them."""

    def __init__(self, ids: Sequence[int], cache: KVCache):
        self.ids, self.cache = np.array(ids, np.int32), cache

    @property
    def nbytes(self) -> int:
        return self.cache.nbytes


class PrefixStore:
    """The prefixes that were used last, up to a number of bytes."""

    def __init__(self, limit: int):
        self._limit = limit
        self._prefixes: list[Prefix] = []  # the one used last at the end

    @property
    def nbytes(self) -> int:
        return sum(prefix.nbytes for prefix in self._prefixes)

    def longest(self, ids: np.ndarray) -> int:
        """How many tokens of `ids` the best prefix has."""
        return max((shared_length(ids, prefix.ids) for prefix in self._prefixes), default=0)

    def take(self, ids: np.ndarray) -> KVCache:
        """A cache of its own with the longest known beginning of `ids`."""
        best = max(self._prefixes, key=lambda prefix: shared_length(ids, prefix.ids))
        self._prefixes.remove(best)
        self._prefixes.append(best)
        return best.cache.copy(shared_length(ids, best.ids))

    def put(self, ids: Sequence[int], cache: KVCache) -> None:
        """Keep a cache of one row that holds `ids`. The store owns it from now on."""
        new = Prefix(ids, cache)
        if any(shared_length(new.ids, prefix.ids) == len(new.ids) for prefix in self._prefixes):
            return  # a longer one begins with it
        self._prefixes = [p for p in self._prefixes if shared_length(new.ids, p.ids) < len(p.ids)]
        self._prefixes.append(new)
        self.shrink(self._limit)

    def shrink(self, limit: int) -> None:
        """Drop what was not used for the longest time until at most `limit` bytes are left."""
        while self._prefixes and self.nbytes > limit:
            del self._prefixes[0]


def shared_length(a: np.ndarray, b: np.ndarray) -> int:
    """How many tokens two sequences of ids begin with in common."""
    n = min(len(a), len(b))
    different = np.flatnonzero(a[:n] != b[:n])
    return int(different[0]) if len(different) else n
