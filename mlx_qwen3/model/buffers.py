"""Buffers of keys and values: how large they are made, and how they grow.

A buffer (2, B, K, capacity, D) holds the keys and values of B rows of a layer. Its slots are used from the first one
on. On a CPU the slots that are not used yet take no memory, since nothing has been written to them.

A step attends to a window: the filled slots and some more, so that one graph of the step serves many tokens. All slots
of the window must hold numbers, because a mask only multiplies by 0, and 0 * NaN is NaN.
"""

import math
from collections.abc import Sequence

import mlx.core as mx

from ..files.blank import blank
from . import kernels

# Tokens by which a window grows. A step is traced anew for each new window, and it attends to the whole window. On a
# CPU the empty slots of several rows take longer to read than a trace.
STEP, STEP_OF_ROWS = 256, 64
# A long window grows by this share of its length, as a power of two, so that a long text needs few traces.
SHARE_OF_WINDOW = 32
# A buffer that is full becomes larger by this share of its length. Its content is copied.
SHARE_OF_BUFFER = 4
# On a GPU, unused slots do take memory. So a buffer has at most so many of them, or that share.
AHEAD = 1024
# Shorter buffers on a CPU have a power of two of slots: a step is traced anew for each pair of buffer and window.
SHORT = 4096


def rounded(tokens: int, rows: int) -> int:
    """The least capacity of a buffer of `rows` rows for this many tokens."""
    step = STEP if rows == 1 or kernels.on_gpu() else STEP_OF_ROWS
    return -(-tokens // step) * step


def window(tokens: int, rows: int, capacity: int) -> int:
    """The slots that a step attends to, if it fills the slot number `tokens`."""
    step = 1 << max(0, (tokens // SHARE_OF_WINDOW).bit_length() - 1)
    return min(capacity, -(-rounded(tokens, rows) // step) * step)


def grown_capacity(tokens: int, rows: int, filled: int, limit: int) -> int:
    """The capacity of a new buffer for this many tokens, in place of one that has `filled`.

    `limit` is the number of tokens that the rows reach at most; 0 if nobody knows.
    """
    if limit and not kernels.on_gpu():
        least = rounded(max(tokens, limit), rows)
        return least if least > SHORT else 1 << (least - 1).bit_length()
    more = tokens // SHARE_OF_BUFFER
    if limit:
        more = min(max(more, AHEAD), max(0, limit - tokens))
    elif not filled:
        more = 0
    return rounded(tokens + more, rows)


def empty(shape: Sequence[int], dtype: mx.Dtype) -> mx.array:
    """A buffer whose slots hold anything. On a CPU it takes no memory before they are written."""
    if kernels.on_gpu():
        return mx.zeros(shape, dtype)
    return blank(math.prod(shape) * dtype.size).view(dtype).reshape(shape)


def with_capacity(buffer: mx.array, filled: int, capacity: int) -> mx.array:
    """A copy of the first `filled` slots of a buffer in one of this capacity."""
    made = empty((*buffer.shape[:3], capacity, buffer.shape[4]), buffer.dtype)
    if filled:
        made[:, :, :, :filled] = buffer[:, :, :, :filled]
    return made
