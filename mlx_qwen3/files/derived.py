"""Tensors that are computed from stored ones: the matrices of a packed release, in the form that this package uses.

To the rest of the package such a tensor is a stored one: it has a dtype and a shape, and its bytes can be read row by
row. Only as much is computed as is read.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import mlx.core as mx
import numpy as np

from .dtypes import NAMES
from .filling import PLAIN, Filling, Packed, Range
from .headers import CHUNK, Buffer, StoredTensor
from .jobs import Job, run

BLOCK_BYTES = 1 << 19  # computed at a time: it stays in a processor's second-level cache
FILLED_BYTES = 1 << 22  # of threads, which take turns in Python: fewer and larger blocks
Rows = Callable[[int, int], np.ndarray]  # (first row, number of rows) -> their values
Fill = Callable[[int, int, memoryview], None]  # (first row, number of rows, the bytes of their values)


@dataclass(frozen=True)
class Derivation:
    """How a tensor is computed. `made` and `note` are for the certificate of a conversion.

    fill: as `rows`, but it writes the values to memory that it is given, and several threads may call it at once.
    ranges: what the rows from the first on are made of, and `packed`: how, as `Filling` has them.
    """

    rows: Rows  # gives values of the tensor's dtype
    sources: tuple[str, ...]  # names in the files
    kept: mx.Dtype  # the dtype that a conversion gives it if none was asked for
    made: str
    note: str = ""
    fill: Fill | None = None
    ranges: Callable[[int], Sequence[Range]] | None = None
    packed: Packed = PLAIN


@dataclass(frozen=True, kw_only=True)
class DerivedTensor(StoredTensor):
    """`file` is where most of its bytes come from, and `start` counts from the beginning of the tensor."""

    derivation: Derivation

    @property
    def sources(self) -> tuple[str, ...]:
        return self.derivation.sources

    @property
    def kept(self) -> mx.Dtype:
        return self.derivation.kept

    @property
    def dtype_name(self) -> str:
        return self.code or NAMES[self.kept]

    @property
    def kept_bytes(self) -> int:
        return math.prod(self.shape) * (1 if self.code else self.kept.size)

    @property
    def made(self) -> str:
        return self.derivation.made

    @property
    def note(self) -> str:
        return self.derivation.note

    def read(self) -> memoryview:
        content = np.empty(self.nbytes, np.uint8).data
        run(self.jobs(content))
        return content

    def chunks(self, size: int = CHUNK) -> Iterator[Buffer]:
        for block in self.row_blocks(size):
            yield block.read()

    def jobs(self, target: memoryview) -> list[Job]:
        """As for a stored tensor. What only this thread may do is done at once, and not left to a job."""
        width = self.nbytes // self.shape[0]  # bytes of a row
        rows, fill = self.derivation.rows, self.derivation.fill
        jobs: list[Job] = []
        for block in self.row_blocks(FILLED_BYTES if fill else BLOCK_BYTES):
            first, done = block.start // width, block.start - self.start
            part = target[done : done + block.nbytes]
            if fill:
                jobs.append(partial(fill, first, block.shape[0], part))
            else:
                part[:] = rows(first, block.shape[0]).reshape(-1).view(np.uint8).data
        return jobs

    def filling(self, target: memoryview) -> Filling:
        """As for a stored tensor, and as `jobs` does it."""
        if self.derivation.ranges is None:
            jobs = self.jobs(target)
            return Filling(target, lambda: jobs)
        rows, width = self.shape[0], self.nbytes // self.shape[0]
        ranges = self.derivation.ranges(self.start // width)
        return Filling(target, partial(self.jobs, target), rows, ranges, self.derivation.packed)


class Latest:
    """The arrays of the matrix that was used last.

    A matrix that is stored by columns has to be turned as a whole before its rows can be read in blocks.
    """

    def __init__(self) -> None:
        self._owner = ""
        self._arrays: dict[str, Any] = {}

    def get(self, owner: str, key: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        """The array `key` of the matrix `owner`. Forgets those of the matrix before."""
        if owner != self._owner:
            self._owner, self._arrays = owner, {}
        if key not in self._arrays:
            self._arrays[key] = make()
        found: np.ndarray = self._arrays[key]
        return found
