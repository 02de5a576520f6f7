"""A prompt's operations on a CPU: each is computed when it is called, by native.cpp on all cores.

MLX's CPU back end computes everything but products on one core, without the processor's wide vectors, and makes a pass
over the scores of attention for each step of its softmax. BENCHMARKS.md has the times. Products are the BLAS's here as
there, but come from the same thread as the rest: after each, a BLAS's threads keep their cores busy for a while.

B batch, L new tokens, T = B * L, H query heads, K key/value heads, D head_dim, S keys
"""

import ctypes
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from .. import blas, compiler
from ..files.blank import blank
from ..files.values import to_mlx

SOURCE = Path(__file__).with_suffix(".cpp")
LARGE = 3 << 18  # numbers; a smaller array is made in less time as a copy of one of NumPy's than as blank memory
P, N, F = ctypes.c_void_p, ctypes.c_long, ctypes.c_float
ARGUMENTS = {
    "norm": (P, P, P, N, N, F),
    "norm_rope": (P, P, P, P, P, P, N, N, N, N, N, F),
    "attend": (P, P, P, P, P, P, N, N, N, N, N, N, F, N),
    "swiglu": (P, P, N, N),
    "product": (P, P, P, P, P, N, N, N),
}
_state = threading.local()


@contextmanager
def at_once(whether: bool) -> Iterator[None]:
    """In the block, operations of this thread that this module has are computed at once."""
    before = _threads()
    _state.threads = blas.threads() if whether else 0
    try:
        yield
    finally:
        _state.threads = before


def computes(*arrays: mx.array) -> bool:
    """Whether this thread's operations are computed at once, and these arrays are of the kind that they take."""
    return _threads() > 0 and all(array.dtype == mx.float32 for array in arrays)


def _threads() -> int:
    """Those that an operation takes; 0 outside of `at_once`."""
    return getattr(_state, "threads", 0)


@cache
def functions() -> ctypes.CDLL:
    """The functions of native.cpp. Raises OSError if they cannot be compiled, or there is no fast BLAS."""
    if blas.gemm() is None:
        raise OSError("no fast BLAS is loaded")
    blas.threads()  # loads the BLAS's OpenMP; the functions then use the same threads
    library = compiler.library(SOURCE)
    for name, arguments in ARGUMENTS.items():
        getattr(library, name).argtypes = (N, *arguments)
        getattr(library, name).restype = None
    return library


def norm(x: mx.array, weight: mx.array, eps: float) -> mx.array:
    """RMSNorm of x (T, n), times weight (n,)."""
    y = _new(*x.shape)
    _call("norm", x, weight, y, *x.shape, eps)
    return y


def norm_rope(qkv: mx.array, weight: mx.array, cos: mx.array, sin: mx.array, eps: float) -> tuple[mx.array, mx.array]:
    """As `kernels.norm_rope`."""
    (B, _, L, _), (normed, _, D) = cos.shape, weight.shape
    heads = qkv.shape[1] // D
    H, K = 2 * normed - heads, heads - normed
    q, kv = _new(B, H, L, D), _new(2, B, K, L, D)
    _call("norm_rope", qkv, weight, cos, sin, q, kv, B, L, H, K, D, eps)
    return q, kv


def attend(q: mx.array, kv: mx.array, scale: float, causal: bool) -> mx.array:
    """Attention of q (B, H, L, D) over keys and values (2, B, K, S, D), (B, H, L, D).

    causal: the last query sees all keys, each before it one key less.
    """
    (B, H, L, D), (K, S) = q.shape, kv.shape[2:4]
    out = _new(B, L, H, D)
    mx.eval(q, kv)
    (queries, q_strides), (stored, kv_strides) = _rows(q), _rows(kv)
    with blas.threads_for(_threads()):  # each has products of its own
        _call("attend", blas.gemm(), queries, q_strides, stored, kv_strides, out, B, H, K, L, S, D, scale, causal)
    return out.transpose(0, 2, 1, 3)


def swiglu(gate_up: mx.array) -> mx.array:
    """silu(gate) * up of the two halves of gate_up (T, 2 * inner)."""
    T, n = gate_up.shape[0], gate_up.shape[1] // 2
    y = _new(T, n)
    _call("swiglu", gate_up, y, T, n)
    return y


def product(x: mx.array, weight: mx.array, residual: mx.array | None = None) -> mx.array:
    """x (T, inputs) @ weight.T, plus the residual (T, outputs)."""
    y = _new(len(x), len(weight))
    _call("product", blas.gemm(), x, weight, residual, y, len(x), *weight.shape[::-1])
    return y


def _new(*shape: int) -> mx.array:
    """An array for a result."""
    if math.prod(shape) < LARGE:
        return to_mlx(np.empty(shape, np.float32))
    return blank(*shape, kind="<f4")


def _rows(array: mx.array) -> tuple[np.ndarray, Any]:
    """The numbers of an array in rows, of which each is dense, and the strides of all axes but the last."""
    numbers = np.array(array, copy=False)
    *_, row, number = numbers.strides
    if number != numbers.itemsize or row < numbers.shape[-1] * number:  # as BLAS does not take it
        numbers = numbers.copy()
    strides = [stride // numbers.itemsize for stride in numbers.strides[:-1]]
    return numbers, (N * len(strides))(*strides)


def _call(name: str, *arguments: Any) -> None:
    """The function of this name. Arrays are handed over as addresses of dense numbers."""
    mx.eval([argument for argument in arguments if isinstance(argument, mx.array)])
    numbers = [
        np.ascontiguousarray(np.array(argument, copy=False)) if isinstance(argument, mx.array) else argument
        for argument in arguments
    ]
    getattr(functions(), name)(_threads(), *(n.ctypes.data if isinstance(n, np.ndarray) else n for n in numbers))
