"""Memory that is filled from files: with bytes as they are, with floats widened to float32, or with unpacked values.

The threads of filling.cpp need no lock of Python's, so they work while a tokenizer is parsed, and they finish a block
while it is in their cache. Where there is no g++, and for few bytes, threads of Python's do the same.
"""

import ctypes
import os
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple

import mlx.core as mx
import numpy as np

from .. import interrupt
from ..compiler import library
from .jobs import THREADS, Job, run

LEAST = 1 << 28  # bytes; for fewer it takes longer to compile than to fill
WAIT = 0.05  # seconds between two chances for Ctrl-C
BYTES = 0
KINDS = {mx.float32: 1, mx.bfloat16: 2, mx.float16: 3, mx.uint8: 4}  # of values: `Kind` in filling.cpp


class Range(NamedTuple):
    """Rows of a tensor in a file."""

    start: int  # byte of the file
    width: int  # bytes of a row
    descriptor: int
    kind: int


class Packed(NamedTuple):
    """How codes become values."""

    bits: int = 0
    group: int = 0  # codes for each scale
    codes: int = 0  # address of the float32 value of every code; 0 if they are integers
    scales: int = 0  # address of the float32 value of every scale that is a byte


PLAIN = Packed()


@dataclass(frozen=True)
class Filling:
    """The memory for the values of one tensor, and where they come from.

    ranges: of the values, or of codes, scales and perhaps biases; none if only `jobs` can fill the memory.
    """

    target: memoryview
    jobs: Callable[[], Sequence[Job]]  # that do it in Python
    rows: int = 0
    ranges: Sequence[Range] = ()
    packed: Packed = PLAIN

    def work(self) -> tuple[object, ...]:
        """A `Work` of filling.cpp."""
        address = ctypes.addressof(ctypes.c_char.from_buffer(self.target))
        ranges = [*self.ranges, *[(0, 0, 0, 0)] * (3 - len(self.ranges))]
        return address, self.rows, len(self.target) // self.rows, ranges, *self.packed


RANGE = [("start", "i8"), ("width", "i8"), ("descriptor", "i4"), ("kind", "i4")]
PACKED = [("bits", "i4"), ("group", "i4"), ("codes", "u8"), ("scales", "u8")]
WORK = np.dtype([("target", "u8"), ("rows", "i8"), ("width", "i8"), ("ranges", RANGE, 3), *PACKED])


class Fill:
    """Fillings that have begun. What filling.cpp can do goes on until it is done, or this is stopped or forgotten."""

    def __init__(self, fillings: Sequence[Filling]):
        native = [filling for filling in fillings if filling.ranges and filling.target]
        functions = _functions() if sum(len(filling.target) for filling in native) >= LEAST else None
        self._threads = _Threads(functions, native) if functions else None
        self._rest = [filling for filling in fillings if not filling.ranges] if functions else fillings

    def finish(self) -> None:
        """Wait until all is done. Raises what the jobs raise."""
        try:
            undone = self._threads.finish() if self._threads else []
        finally:  # also after Ctrl-C
            self.stop()
        run([job for filling in (*self._rest, *undone) for job in filling.jobs()])

    def stop(self) -> None:
        """Do no more."""
        if self._threads:
            self._threads.end()


class _Threads:
    """Those of filling.cpp."""

    def __init__(self, functions: ctypes.CDLL, fillings: Sequence[Filling]):
        works = np.array([filling.work() for filling in fillings], WORK)
        self._functions, self._handle = functions, functions.begin(works.ctypes.data, len(works))
        self.end = weakref.finalize(self, _end, functions, self._handle, fillings)
        # One processor stays free for this thread: else it waits for its turn whenever both want the process's memory.
        self._first = min(THREADS, max(1, len(os.sched_getaffinity(0)) - 1))
        self._start(self._first)

    def finish(self) -> list[Filling]:
        """Wait for the end. Returns what could not be done, such as reading a file that has become shorter."""
        self._start(THREADS - self._first)
        while not self._functions.wait_for(self._handle, WAIT):
            pass
        return self.end() or []

    def _start(self, count: int) -> None:
        with interrupt.held():  # or they could take the signal
            self._functions.start(self._handle, count)


def fill(fillings: Sequence[Filling]) -> None:
    """Fill memory. Raises what the jobs raise."""
    Fill(fillings).finish()


def _end(functions: ctypes.CDLL, handle: int, fillings: Sequence[Filling]) -> list[Filling]:
    """End the threads. Returns the fillings that are not done."""
    done = np.zeros(len(fillings), np.uint8)
    functions.end(handle, done.ctypes.data)
    return [filling for filling, whole in zip(fillings, done, strict=True) if not whole]


@cache
def _functions() -> ctypes.CDLL | None:
    """Those of filling.cpp; None if it cannot be compiled here."""
    try:
        functions = library(Path(__file__).with_suffix(".cpp"))
    except OSError:
        return None
    functions.begin.restype = ctypes.c_void_p
    functions.begin.argtypes = [ctypes.c_void_p, ctypes.c_int64]
    functions.start.argtypes = [ctypes.c_void_p, ctypes.c_int]
    functions.start.restype = None
    functions.wait_for.argtypes = [ctypes.c_void_p, ctypes.c_double]
    functions.end.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    functions.end.restype = None
    return functions
