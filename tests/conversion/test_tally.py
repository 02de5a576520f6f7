"""The error of a tensor, against MLX's own dequantization."""

import mlx.core as mx
import numpy as np
import pytest
from arrays import as_numpy
from checkpoints import TINY, random_weights, write_checkpoint
from quantizing import PACKABLE, in_mlx_terms, source_in

from mlx_qwen3.conversion.convert import convert
from mlx_qwen3.conversion.tally import Tally
from mlx_qwen3.errors import CheckpointError


@pytest.mark.parametrize("spec", ["affine2", "affine4g128", "affine5", "mxfp4", "mxfp8", "nvfp4"])
def test_errors_are_those_of_mlx_own_dequantization(spec, tmp_path):
    how = in_mlx_terms(spec)
    source = source_in(tmp_path / "source", mx.bfloat16)
    certificate = convert(source, tmp_path / "out", quantize=spec, layout="native")
    weights = mx.load(str(source / "model.safetensors"))
    block = "model.layers.1.self_attn"
    whole = mx.concatenate([weights[f"{block}.{name}_proj.weight"] for name in "qkv"])
    packed = mx.quantize(whole, **how)
    # Scales in float32 first: MLX computes in the dtype of the scales and rounds every value to it.
    exact = [array if array.dtype in (mx.uint32, mx.uint8) else array.astype(mx.float32) for array in packed]
    difference = np.array(mx.dequantize(*exact, **how, dtype=mx.float32)) - as_numpy(whole)
    rows = np.linalg.norm(difference, axis=1) / np.linalg.norm(as_numpy(whole), axis=1)
    (record,) = [r for r in certificate.tensors if r.name == "layers.1.self_attn.qkv_proj.weight"]
    assert record.error.max == pytest.approx(np.abs(difference).max(), rel=1e-5)
    expected = np.linalg.norm(difference) / np.linalg.norm(as_numpy(whole))
    assert record.error.relative == pytest.approx(expected, rel=1e-5)
    assert record.error.worst_row == rows.argmax()
    assert record.error.worst_row_relative == pytest.approx(rows.max(), rel=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("options", [{"quantize": "affine4"}, {"dtype": "bf16"}], ids=str)
def test_a_weight_that_is_not_finite_is_named(value, options, tmp_path):
    config = {**TINY, **PACKABLE}
    weights = random_weights(config)
    weights["model.layers.1.self_attn.k_proj.weight"][3, 5] = value
    source = write_checkpoint(tmp_path / "source", config, weights)
    with pytest.raises(CheckpointError, match=r"layers\.1\.self_attn\.[qk]_proj\.weight.* not finite"):
        convert(source, tmp_path / "out", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_a_tally_of_zeros():
    tally = Tally("x")
    tally.add(np.zeros((2, 3), np.float32), np.zeros((2, 3), np.float32))
    assert tally.error.relative == 0
