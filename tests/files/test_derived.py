"""Derived tensors behave as stored ones."""

import mlx.core as mx
import numpy as np
import pytest
from releases import write_gptq

from mlx_qwen3.files.checkpoint import Checkpoint
from mlx_qwen3.files.derived import DerivedTensor, Latest
from mlx_qwen3.files.headers import join
from mlx_qwen3.files.values import stacked


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return Checkpoint(write_gptq(tmp_path_factory.mktemp("gptq") / "release").folder).parts


def test_all_ways_to_read_give_the_same_bytes(parts):
    for tensor in parts["layers.0.mlp.up_proj"].leaves.values():
        assert isinstance(tensor, DerivedTensor)
        whole = tensor.read()
        assert len(whole) == tensor.nbytes
        assert b"".join(tensor.chunks(100)) == whole  # less than two rows at a time
        assert b"".join(block.read() for block in tensor.row_blocks(1000)) == whole
        row = tensor.nbytes // tensor.shape[0]
        assert tensor.rows(5, 7).read() == whole[5 * row : 12 * row]
        assert tensor.rows(5, 7).rows(2, 3).read() == whole[7 * row : 10 * row]
        assert bytes(np.array(stacked([tensor]).view(mx.uint8)).data) == whole


def test_rows_of_several_are_stacked_and_neighbours_joined(parts):
    q, k = (parts[f"layers.0.self_attn.{name}"].leaves["scales"] for name in ("q_proj", "k_proj"))
    assert bytes(np.array(stacked([q, k]).view(mx.uint8)).data) == b"".join([q.read(), k.read()])
    assert join([q.rows(0, 3), q.rows(3, 4)]) == (q.rows(0, 7),)
    assert len(join([q, k])) == 2


def test_what_it_says_about_itself(parts):
    weight, scales, biases = parts["layers.0.mlp.up_proj"].leaves.values()
    prefix = "model.layers.0.mlp.up_proj"
    assert weight.sources == (f"{prefix}.qweight", f"{prefix}.g_idx")
    assert biases.sources == (f"{prefix}.qzeros", f"{prefix}.scales")
    assert (scales.dtype, scales.kept, scales.dtype_name) == (mx.float32, mx.float16, "F16")
    assert scales.kept_bytes == scales.nbytes // 2
    assert {leaf.made for leaf in (weight, scales, biases)} == {"repacked from gptq"}


def test_the_latest_matrix_is_kept_and_no_other():
    made: list[str] = []

    def make(name: str):
        return lambda: made.append(name) or np.zeros(1)

    latest = Latest()
    for owner, key in [("a", "x"), ("a", "x"), ("a", "y"), ("a", "x"), ("b", "x"), ("a", "x")]:
        latest.get(owner, key, make(owner + key))
    assert made == ["ax", "ay", "bx", "ax"]
