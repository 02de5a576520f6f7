"""Memory that filling.cpp fills: it gets the values that Python gives, and Python's errors."""

import ctypes
import os
import shutil
import sys

import mlx.core as mx
import numpy as np
import pytest

from mlx_qwen3.errors import CheckpointError
from mlx_qwen3.files import filling
from mlx_qwen3.files.filling import Fill, fill
from mlx_qwen3.files.headers import TensorFile, tensors_of
from mlx_qwen3.files.layout import Part
from mlx_qwen3.files.quantization import Quantization
from mlx_qwen3.files.unpacked import unpacked_parts
from mlx_qwen3.files.values import placed

pytestmark = pytest.mark.skipif(sys.platform != "linux" or not shutil.which("g++"), reason="needs g++ on Linux")
SEVERAL_BLOCKS = 200_003  # float32 values


def stored(folder, arrays):
    """The tensors of a new file by name."""
    path = folder / "model.safetensors"
    mx.save_safetensors(str(path), arrays)
    return {tensor.name: tensor for tensor in tensors_of(TensorFile(path))}


def filled(monkeypatch, runs, dtype, native):
    """The bytes of these rows by filling.cpp alone, or by Python alone."""
    with monkeypatch.context() as patch:
        patch.setattr(filling, "LEAST", 0 if native else 1 << 60)
        if native:
            patch.setattr(filling, "run", lambda jobs: pytest.fail("some is left to Python") if jobs else None)
        array, fillings = placed(runs, dtype)
        fill(fillings)
    return np.array(array.view(mx.uint8))


def assert_same(monkeypatch, runs, dtype):
    np.testing.assert_array_equal(*(filled(monkeypatch, runs, dtype, native) for native in (True, False)))


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16, mx.uint32, mx.uint8], ids=str)
def test_all_bits_are_read_and_widened(tmp_path, monkeypatch, dtype):
    bits = np.arange(1 << 16, dtype=np.uint16)  # every float of 16 bits, NaN too
    long = np.random.default_rng(0).integers(0, 1 << 16, SEVERAL_BLOCKS * 2, np.uint16)
    found = {name: mx.array(value).view(dtype) for name, value in {"every": bits, "long": long}.items()}
    found |= {f"vector {size}": found["long"][:size] for size in (1, 7, 63)}
    tensors = stored(tmp_path, found | {"matrix": found["long"][:1001].reshape(7, 143)})
    for tensor in tensors.values():
        assert_same(monkeypatch, (tensor,), dtype)
        assert_same(monkeypatch, (tensor,), mx.float32)
    several = (tensors["matrix"].rows(1, 3), tensors["matrix"], tensors["matrix"].rows(6, 1))
    assert_same(monkeypatch, several, mx.float32)


PACKINGS = [Quantization("affine", bits, group) for bits in (2, 3, 4, 5, 6, 8) for group in (32, 128)]
PACKINGS += [Quantization("mxfp4", 4, 32), Quantization("mxfp8", 8, 32), Quantization("nvfp4", 4, 16)]


@pytest.mark.parametrize("packing", PACKINGS, ids=lambda packing: f"{packing.mode} {packing.bits} {packing.group_size}")
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16], ids=str)
def test_codes_are_unpacked(tmp_path, monkeypatch, packing, dtype):
    random = np.random.default_rng(packing.bits)
    rows, columns = 301, 768  # rows of any bytes, more than a block
    weight = random.integers(0, 1 << 32, (rows, columns * packing.bits // 32), np.uint32)
    arrays = {"weight": mx.array(weight)}
    groups = (rows, columns // packing.group_size)
    if packing.mode == "affine":
        arrays |= {name: mx.array(random.normal(0, 3, groups)).astype(dtype) for name in ("scales", "biases")}
    else:
        arrays["scales"] = mx.array(random.integers(0, 240, groups, np.uint8))  # no product overflows
    leaves = stored(tmp_path, arrays)
    part = Part("w", {name: leaves[name] for name in arrays}, packing)
    tensor = unpacked_parts({"w": part}, mx.float32)["w"].leaves["weight"]
    assert_same(monkeypatch, (tensor,), mx.float32)
    assert_same(monkeypatch, (tensor.rows(5, 17), tensor.rows(300, 1)), mx.float32)


@pytest.fixture
def large(tmp_path, monkeypatch):
    """Two tensors in a file, of any size that filling.cpp would do."""
    monkeypatch.setattr(filling, "LEAST", 0)
    values = mx.random.normal((2, SEVERAL_BLOCKS))
    return stored(tmp_path, {"a": values[0], "b": values[1]})


def test_a_file_that_is_cut_is_named(large):
    os.truncate(large["b"].path, large["b"].start + 100)
    _, fillings = placed([large["a"], large["b"]], mx.float32)
    with pytest.raises(CheckpointError, match=r"model\.safetensors ends inside b; it changed while it was read"):
        fill(fillings)


def test_without_a_compiler_python_does_it(large, monkeypatch):
    def none(path):
        raise OSError("no g++")

    monkeypatch.setattr(filling, "library", none)
    filling._functions.cache_clear()
    try:
        array, fillings = placed([large["a"]], mx.float32)
        fill(fillings)
    finally:
        filling._functions.cache_clear()
    assert mx.array_equal(array, mx.load(str(large["a"].path))["a"])


@pytest.mark.parametrize("how", ["stop", "forget", "finish", "Ctrl-C"])
def test_threads_are_ended_once(large, monkeypatch, how):
    ended = []
    end = filling._end
    monkeypatch.setattr(filling, "_end", lambda *native: ended.append(1) or end(*native))
    begun = Fill(placed([large["a"], large["b"]], mx.float32)[1])
    if how == "stop":
        begun.stop()
    elif how == "finish":
        begun.finish()
    elif how == "Ctrl-C":
        monkeypatch.setattr(filling, "WAIT", "no number")  # an error while it waits
        with pytest.raises(ctypes.ArgumentError):
            begun.finish()
    del begun
    assert ended == [1]


def test_its_description_has_the_size_that_the_functions_expect():
    assert filling._functions().size_of_work() == filling.WORK.itemsize
