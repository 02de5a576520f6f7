"""The operations of a pass on a CPU: each is computed when it is called, by native.cpp on all cores.

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
    "attend": (P, P, P, P, P, P, P, P, P, N, N, N, N, N, N, F, N),
    "swiglu": (P, P, N, N),
    "product": (P, P, P, P, P, N, N, N),
}
_state = threading.local()


@contextmanager
def at_once(whether: bool) -> Iterator[None]:
    """In the block, operations of this thread that this module has are computed at once, if `whether`."""
    before = _threads()
    _state.threads = blas.threads() if whether else before
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


def attend(q: mx.array, kv: mx.array, scale: float, mask: mx.array | str | None) -> mx.array:
    """As `kernels.attend`."""
    (B, H, L, D), (K, S) = q.shape, kv.shape[2:4]
    causal, out = isinstance(mask, str) and L > 1, _new(B, L, H, D)
    queries, stored, results = _numbers(q), _numbers(kv), _numbers(out).transpose(0, 2, 1, 3)
    visible = np.broadcast_to(_numbers(mask), (B, 1, L, S))[:, 0] if isinstance(mask, mx.array) else None
    if L == 1:  # the queries of a key head are rows of one product
        queries, results = (array.reshape(B, K, H // K, D) for array in (queries, results))
        if visible is not None:
            visible = np.broadcast_to(visible, (B, H // K, S))
    strided = (part for array in (queries, stored, visible, results) for part in (array, _strides(array)))
    with blas.threads_for(_threads()):  # each has products of its own
        _call("attend", blas.gemm(), *strided, B, queries.shape[1], K, queries.shape[2], S, D, scale, causal)
    return out.transpose(0, 2, 1, 3)


def swiglu(gate_up: mx.array) -> mx.array:
    """silu(gate) * up of the two halves of gate_up (T, 2 * inner)."""
    T, n = gate_up.shape[0], gate_up.shape[1] // 2
    y = _new(T, n)
    _call("swiglu", gate_up, y, T, n)
    return y


def product(x: mx.array, weight: mx.array, residual: mx.array | None = None) -> mx.array:
    """x (..., inputs) @ weight.T, plus the residual (..., outputs)."""
    (outputs, inputs), T = weight.shape, x.size // x.shape[-1]
    y = _new(*x.shape[:-1], outputs)
    _call("product", blas.gemm(), x, weight, residual, y, T, inputs, outputs)
    return y


def _new(*shape: int) -> mx.array:
    """An array for a result."""
    if math.prod(shape) < LARGE:
        return to_mlx(np.empty(shape, np.float32))
    return blank(*shape, kind="<f4")


def _numbers(array: mx.array) -> np.ndarray:
    """The numbers of an array in rows, as BLAS takes them: each is dense, and none lies in another."""
    numbers = np.array(array, copy=False)
    *_, row, number = numbers.strides
    return numbers if number == numbers.itemsize and row >= numbers.shape[-1] * number else numbers.copy()


def _strides(array: np.ndarray | None) -> Any:
    """Those of all axes but the last, counted in numbers."""
    strides = [] if array is None else [stride // array.itemsize for stride in array.strides[:-1]]
    return (N * len(strides))(*strides)


def _call(name: str, *arguments: Any) -> None:
    """The function of this name. Arrays are handed over as addresses of dense numbers."""
    mx.eval([argument for argument in arguments if isinstance(argument, mx.array)])
    numbers = [
        np.ascontiguousarray(np.array(argument, copy=False)) if isinstance(argument, mx.array) else argument
        for argument in arguments
    ]
    getattr(functions(), name)(_threads(), *(n.ctypes.data if isinstance(n, np.ndarray) else n for n in numbers))
