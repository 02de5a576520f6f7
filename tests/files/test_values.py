"""Stored bytes as values of MLX and NumPy."""

import ctypes
import operator
import os
import signal

import mlx.core as mx
import numpy as np
import pytest
from checkpoints import write_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from quantizing import MODES, in_mlx_terms, source_in

from mlx_qwen3.conversion.convert import convert
from mlx_qwen3.errors import CheckpointError
from mlx_qwen3.files import headers
from mlx_qwen3.files.checkpoint import Checkpoint
from mlx_qwen3.files.quantization import Quantization
from mlx_qwen3.files.values import E2M1, E4M3, E8M0, bits_of, dequantize, read_rows, rounded, stacked, to_mlx


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


@settings(max_examples=60, deadline=None)
@given(spec=st.sampled_from(MODES), rows=st.integers(1, 40), groups=st.integers(1, 3), seed=st.integers(0, 99))
def test_numpy_reads_packed_weights_as_mlx_does(spec, rows, groups, seed):
    how = in_mlx_terms(spec)
    values = np.random.default_rng(seed).normal(0, 3, (rows, 128 * groups)).astype(np.float32)
    packed = mx.quantize(mx.array(values), **how)
    weight, scales, *biases = [np.array(array) for array in packed]
    ours = dequantize(Quantization(**how), weight.view(np.uint8), scales, biases[0] if biases else None)
    theirs = np.array(mx.dequantize(*packed, **how, dtype=mx.float32))
    np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)  # one device may fuse the multiplication and the sum


def test_the_tables_of_small_floats():
    """Values of the OCP specification, tables 1 and 2, and E8M0's ends."""
    assert E2M1.tolist()[:8] == [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    assert (E4M3[0x01], E4M3[0x08], E4M3[0x7E], E4M3[0x80 | 0x38]) == (2**-9, 2**-6, 448, -1)
    assert (E8M0[0], E8M0[127], E8M0[254]) == (2.0**-127, 1, 2.0**127)


@pytest.mark.parametrize("spec", ["affine3g32", "affine8", "mxfp8", "nvfp4"])
def test_any_rows_of_a_stored_matrix_are_read_alone(spec, tmp_path):
    source = source_in(tmp_path / "source", mx.bfloat16)
    convert(source, tmp_path / "out", quantize=spec, divergence=False)
    part = Checkpoint(tmp_path / "out").parts["layers.1.self_attn.v_proj"]
    whole = read_rows(part.leaves, part.quantization, 0, 64)
    for first, count in ((0, 1), (5, 17), (63, 1)):
        np.testing.assert_array_equal(
            read_rows(part.leaves, part.quantization, first, count), whole[first : first + count]
        )


@pytest.fixture
def small_pieces(monkeypatch):
    """Every tensor is read in many pieces, several at a time, as large ones are."""
    monkeypatch.setattr(headers, "CHUNK", 64)


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16, mx.float32], ids=str)
def test_numpy_rounds_as_mlx_does(dtype):
    high = np.arange(1 << 16, dtype=np.uint32)[:, None] << 16
    low = np.array([0, 1, 0x0FFF, 0x1000, 0x1001, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    values = (high | low).view(np.float32)
    values = values[np.abs(values) < 65504] if dtype == mx.float16 else values[~np.isnan(values)]
    assert (rounded(values, dtype, "w") == bits_of(mx.array(values).astype(dtype))).all()


def test_values_past_float16_are_refused_but_infinities_stay():
    values = np.array([1, -70000, np.inf], np.float32)
    with pytest.raises(CheckpointError, match="w reaches inf, past float16's 65504"):
        rounded(values, mx.float16, "w")
    assert (rounded(values[[0, 2]], mx.float16, "w").view(np.float16) == [1, np.inf]).all()


def test_pieces_that_are_read_together_make_the_whole(tiny, small_pieces):
    tensors = Checkpoint(tiny).tensors
    weights = mx.load(str(tiny / "model.safetensors"))
    parts = [f"model.layers.0.self_attn.{name}_proj.weight" for name in "qkv"]
    assert mx.array_equal(stacked([tensors[name] for name in parts]), mx.concatenate([weights[name] for name in parts]))
    rows = tensors["model.embed_tokens.weight"].rows(7, 100)
    assert mx.array_equal(stacked([rows]), weights["model.embed_tokens.weight"][7:107])


def test_a_file_that_is_cut_is_named_whoever_reads_it(tmp_path, small_pieces):
    folder = write_checkpoint(tmp_path)
    tensors = Checkpoint(folder).tensors
    last = max(tensors.values(), key=lambda tensor: tensor.start)
    os.truncate(folder / "model.safetensors", last.start + 100)
    with pytest.raises(CheckpointError, match=rf"model\.safetensors ends inside {last.name}"):
        stacked([last])
