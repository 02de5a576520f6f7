"""Stored bytes as MLX arrays."""

import ctypes
import operator
import signal

import mlx.core as mx
import numpy as np
import pytest

from mlx_qwen3.files.values import to_mlx


@pytest.mark.parametrize("dtype", "bool uint8 uint16 uint32 int32 int64 float16 float32 float64".split())
def test_to_mlx_gives_what_mlx_gives(dtype):
    array = np.arange(12).reshape(3, 4).astype(dtype)
    for view in (array, array.T, array[::2], array[:, 1:3], array[:0], np.array(array[1, 1])):
        found, expected = to_mlx(view), mx.array(view)
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        assert np.array_equal(np.array(found), view)


def test_to_mlx_loses_no_ctrl_c():
    """C code calls the two one after the other, so Python can answer the signal only inside the second."""
    default = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            list(map(operator.call, [ctypes.CDLL(None)["raise"], to_mlx], [signal.SIGINT, np.ones(3)]))
    finally:
        signal.signal(signal.SIGINT, default)
