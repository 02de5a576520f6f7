"""Two of MLX's CPU streams side by side.

A stream of a CPU is one thread: an operation that is not a product runs on one core, and the others wait. So a long
prompt has two streams, each with half of the tokens. Products then take one thread of BLAS for each stream.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import mlx.core as mx

from .. import blas

STREAMS = 2

_state = threading.local()


def current() -> Sequence[mx.Stream]:
    """The streams of this thread's pass: two inside `side_by_side`, else the default one."""
    return getattr(_state, "current", None) or [mx.default_stream(mx.default_device())]


def slices(count: int, parts: int) -> list[slice]:
    """As many equal slices of a range, or as near to that as possible."""
    size = -(-count // parts)
    return [slice(first, min(first + size, count)) for first in range(0, count, size)]


@contextmanager
def side_by_side() -> Iterator[Sequence[mx.Stream]]:
    """Two streams for the pass in the block. Evaluate its results inside: outside BLAS has all its threads again."""
    if getattr(_state, "second", None) is None:
        _state.second = mx.new_stream(mx.cpu)
    with blas.threads_for(STREAMS):
        _state.current = [mx.default_stream(mx.cpu), _state.second]
        try:
            yield _state.current
        finally:
            _state.current = None
