"""Attention in blocks on a CPU, against NumPy in float64."""

import mlx.core as mx
import numpy as np
import pytest
from arrays import as_numpy
from oracle import attention_over

from mlx_qwen3.model import cpu, kernels

pytestmark = pytest.mark.skipif(kernels.on_gpu(), reason="a GPU has a fused kernel")


# B, H, K, L, S, D: whole blocks and parts of one, with keys before the prompt and without
SHAPES = [(1, 4, 2, 128, 128, 16), (1, 4, 4, 70, 131, 20), (2, 6, 2, 65, 65, 8), (1, 4, 1, 20, 300, 12)]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_attention_in_blocks(shape, causal, monkeypatch):
    B, H, K, L, S, D = shape
    q, kv = mx.random.normal((B, H, L, D), key=mx.random.key(1)), mx.random.normal((2, B, K, S, D))
    expected = attention_over(as_numpy(q), as_numpy(kv), 0.7, causal)
    for scores in (cpu.WORTH_WAITING, 1):
        monkeypatch.setattr(cpu, "WORTH_WAITING", scores)
        np.testing.assert_allclose(cpu.attend(q, kv, 0.7, causal), expected, atol=1e-5)  # 2e-6


def test_blocks_have_fewer_queries_over_many_keys():
    assert [cpu.block_size(2, keys) for keys in (100, 4096, 4097, 8192, 1 << 20)] == [64, 64, 32, 32, 16]


def test_long_prompts_go_in_blocks(monkeypatch):
    """And a prompt with a mask and a short one do not."""
    lengths = []
    attend = cpu.attend
    monkeypatch.setattr(cpu, "attend", lambda q, *a: lengths.append(q.shape[2]) or attend(q, *a))
    for L, dtype in ((40, mx.float32), (30, mx.bfloat16), (15, mx.float32)):
        q, kv = mx.zeros((1, 4, L, 8), dtype), mx.zeros((2, 1, 2, L, 8), dtype)
        kernels.attend(q, kv, 1.0, "causal")
    assert lengths == [40, 30]
    kernels.attend(q, kv, 1.0, mx.ones((1, 1, 15, 15), mx.bool_))
    assert len(lengths) == 2
