"""Packed matrices as values: those of MLX, bit for bit, whoever reads them and however."""

import mlx.core as mx
import numpy as np
import pytest
from checkpoints import PACKINGS, write_checkpoint, write_packed
from releases import write_gptq

from mlx_qwen3.files import derived
from mlx_qwen3.files.checkpoint import Checkpoint
from mlx_qwen3.files.unpacked import is_packed, unpacked_parts
from mlx_qwen3.files.values import bits_of, stacked, stored

DTYPES = [mx.float32, mx.bfloat16, mx.float16]
ON_CPU = mx.default_device().type == mx.cpu  # another device may fuse the multiplication and the sum


def by_mlx(part, dtype):
    weight, scales, *biases = (stored(leaf) for leaf in part.leaves.values())
    if part.quantization.mode == "affine":
        scales, biases = scales.astype(dtype), [biases[0].astype(dtype)]
    how = (part.quantization.group_size, part.quantization.bits, part.quantization.mode)
    return mx.dequantize(weight, scales, *(biases or [None]), *how).astype(dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("packing", PACKINGS.values(), ids=PACKINGS)
def test_the_values_are_those_that_mlx_dequantizes(tmp_path, monkeypatch, packing, dtype):
    monkeypatch.setattr(derived, "FILLED_BYTES", 5000)  # several blocks, also by several threads
    parts = Checkpoint(write_packed(tmp_path, packing, num_hidden_layers=1)).parts
    assert is_packed(parts)
    unpacked = unpacked_parts(parts, dtype)
    assert not is_packed(unpacked)
    assert unpacked.keys() == parts.keys()
    for name, part in parts.items():
        if part.quantization is None:
            assert unpacked[name] is part
            continue
        [(leaf, tensor)] = unpacked[name].leaves.items()
        found, expected = stacked((tensor,)), by_mlx(part, dtype)
        assert (leaf, tensor.dtype, tensor.shape, found.dtype) == ("weight", dtype, expected.shape, dtype)
        if ON_CPU:
            np.testing.assert_array_equal(bits_of(found), bits_of(expected), name)
        else:
            assert mx.allclose(found, expected, rtol=1e-6 if dtype == mx.float32 else 1e-2)


def test_any_rows_are_read_alone(tmp_path):
    parts = Checkpoint(write_packed(tmp_path, PACKINGS["affine 6"], num_hidden_layers=1)).parts
    for dtype in (mx.float32, mx.float16):
        tensor = unpacked_parts(parts, dtype)["layers.0.mlp.up_proj"].leaves["weight"]
        whole, row = bytes(tensor.read()), tensor.nbytes // tensor.shape[0]
        assert bytes(tensor.rows(7, 5).rows(1, 3).read()) == whole[8 * row : 11 * row]
        assert b"".join(bytes(block) for block in tensor.chunks(2000)) == whole


def test_a_release_is_unpacked_by_one_thread(tmp_path):
    """Its leaves are computed from a matrix that is stored by columns, of which one is kept at a time."""
    parts = Checkpoint(write_gptq(tmp_path / "gptq").folder).parts
    part = parts["layers.0.mlp.up_proj"]
    tensor = unpacked_parts(parts, mx.float32)[part.name].leaves["weight"]
    assert tensor.derivation.fill is None
    if ON_CPU:
        np.testing.assert_array_equal(bits_of(stacked((tensor,))), bits_of(by_mlx(part, mx.float32)))


def test_nothing_happens_to_a_plain_checkpoint(tmp_path):
    parts = Checkpoint(write_checkpoint(tmp_path)).parts
    assert not is_packed(parts)
    assert unpacked_parts(parts, mx.float32) == dict(parts)
