"""Memory that nobody has written to."""

import gc
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_qwen3.files.blank import _Blank, blank, clear_cache
from mlx_qwen3.model import kernels


@pytest.mark.parametrize("size", [0, 1, 5, 4097, 3_000_000])
def test_it_is_bytes_that_can_be_written(size):
    made = blank(size)
    assert (made.shape, made.dtype) == ((size,), mx.uint8)
    np.array(made, copy=False)[:] = 7
    assert mx.all(made == 7)


def test_mlx_has_let_go_of_the_file():
    """Its thread would do so later, when Python may have ended, which aborts the process."""
    made = [blank(1000) for _ in range(20)]
    assert len(made) == 20
    assert not [found for found in gc.get_objects() if type(found) is _Blank]  # others answer isinstance with a warning


def test_one_thread_makes_some_while_another_clears_the_cache():
    """`mx.clear_cache` waits for MLX's threads with Python's lock in hand: in a process of its own, which may hang."""
    program = """
import threading
import mlx.core as mx
from mlx_qwen3.files.blank import blank, clear_cache
thread = threading.Thread(target=lambda: [blank(100_000) for _ in range(200)])
thread.start()
while thread.is_alive():
    mx.eval(mx.ones((1000,)) + 1)  # leaves something in the cache
    clear_cache()
"""
    subprocess.run([sys.executable, "-c", program], timeout=60, check=True)


@pytest.mark.skipif(sys.platform != "linux" or kernels.on_gpu(), reason="/proc says how much memory is in use")
def test_it_takes_memory_when_it_is_written():
    size = 200_000_000
    clear_cache()  # or it could be memory that was in use before
    before = resident()
    made = blank(size)
    assert resident() - before < size / 10
    np.array(made, copy=False)[: size // 2] = 1
    assert 0.4 * size < resident() - before < 0.6 * size


def resident():
    """Bytes of memory that the process takes."""
    return 1000 * int(Path("/proc/self/status").read_text().split("VmRSS:")[1].split()[0])
