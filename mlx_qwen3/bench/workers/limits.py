"""What the machine can do: bytes per second of a copy, operations per second of a matrix product."""

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import mlx.core as mx
import numpy as np

COPIED = 1 << 28  # bytes; more than any cache holds
ROWS = {mx.gpu: 4096, mx.cpu: 1024}  # of the square matrices that are multiplied
TRIES = 30  # at most; the fastest counts, because nothing disturbed it
ENOUGH = 2  # seconds of trying, after which 3 tries suffice: a product on a slow BLAS takes most of one


def measure(dtype: mx.Dtype) -> dict[str, float]:
    """A copy reads and writes every byte, and both count. The product is of `dtype`, on the default device."""
    device = mx.default_device().type
    rows = ROWS[device]
    a, b = (mx.random.normal((rows, rows)).astype(dtype) for _ in range(2))
    mx.eval(a, b)
    copy = _copy_on_gpu() if device == mx.gpu else _copy_on_cpu()
    return {
        "copy_bytes_per_s": 2 * COPIED / _best(copy),
        "product_flops": 2 * rows**3 / _best(lambda: mx.eval(a @ b)),
        "product_rows": rows,
    }


def _copy_on_gpu() -> Callable[[], None]:
    source = mx.zeros((COPIED // 4,), mx.float32)
    mx.eval(source)
    return lambda: mx.eval(source + 1)


def _copy_on_cpu() -> Callable[[], None]:
    """All cores copy at once. One core does not fill the bus, and MLX would use only one."""
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    source, target = np.ones(COPIED // 4, np.float32), np.ones(COPIED // 4, np.float32)
    parts = list(zip(np.array_split(source, threads), np.array_split(target, threads), strict=True))
    pool = ThreadPoolExecutor(threads)

    def copy() -> None:
        for _ in pool.map(lambda part: np.copyto(part[1], part[0]), parts):  # copyto releases the GIL
            pass

    return copy


def _best(work: Callable[[], None]) -> float:
    seconds: list[float] = []
    while len(seconds) < TRIES and (len(seconds) < 3 or sum(seconds) < ENOUGH):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return min(seconds)
