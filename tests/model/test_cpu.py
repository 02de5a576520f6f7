"""Attention in blocks and exponentials on a CPU, against NumPy in float64."""

import mlx.core as mx
import numpy as np
import pytest

from mlx_qwen3.model import cpu, kernels

pytestmark = pytest.mark.skipif(not kernels.can_compile(), reason="needs g++")


def attention(q, kv, scale, causal):
    """In float64, without blocks."""
    q, (keys, values) = np.array(q, np.float64), np.array(kv, np.float64)
    keys, values = (np.repeat(x, q.shape[1] // x.shape[1], axis=1) for x in (keys, values))
    scores = scale * q @ keys.swapaxes(2, 3)
    L, S = scores.shape[2:]
    if causal:
        scores = np.where(np.arange(S) <= np.arange(S - L, S)[:, None], scores, -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights @ values / weights.sum(axis=-1, keepdims=True)


# B, H, K, L, S, D: whole blocks and parts of one, with keys before the prompt and without
SHAPES = [(1, 4, 2, 128, 128, 16), (1, 4, 4, 70, 131, 20), (2, 6, 2, 65, 65, 8), (1, 4, 1, 20, 300, 12)]


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_attention_in_blocks(shape, causal, compiled, monkeypatch):
    B, H, K, L, S, D = shape
    q, kv = mx.random.normal((B, H, L, D), key=mx.random.key(1)), mx.random.normal((2, B, K, S, D))
    expected = attention(q, kv, 0.7, causal)
    for tile in (cpu.TILE, 5000):  # with few scores in a tile, heads are computed apart
        monkeypatch.setattr(cpu, "TILE", tile)
        monkeypatch.setattr(cpu, "WORTH_WAITING", tile // 4)
        np.testing.assert_allclose(cpu.attend(q, kv, 0.7, causal, compiled), expected, atol=1e-5)  # 2e-6


def test_blocks_have_fewer_queries_over_many_keys():
    assert [cpu.block_size(2, keys) for keys in (100, 4096, 4097, 8192, 1 << 20)] == [64, 64, 32, 32, 16]


def test_long_prompts_go_in_blocks(monkeypatch):
    """And a prompt with a mask, a short one, and another dtype do not use the compiled exponential."""
    compiled = []
    attend = cpu.attend
    monkeypatch.setattr(cpu, "attend", lambda *a: compiled.append(a[-1]) or attend(*a))
    monkeypatch.setattr(kernels, "MANY", 4 * 40 * 40)
    for L, dtype in ((40, mx.float32), (40, mx.bfloat16), (20, mx.float32), (15, mx.float32)):
        q, kv = mx.zeros((1, 4, L, 8), dtype), mx.zeros((2, 1, 2, L, 8), dtype)
        kernels.attend(q, kv, 1.0, "causal")
    assert compiled == [True, False, False]
    kernels.attend(q, kv, 1.0, mx.ones((1, 1, 15, 15), mx.bool_))
    assert len(compiled) == 3


def test_exponentials():
    x = np.concatenate([np.linspace(-63.4, 127.9, 100_001), np.linspace(-1, 1, 1001)]).astype(np.float32)
    found = np.array(cpu.exp2(mx.array(x)), np.float64)
    assert np.abs(found / np.exp2(x.astype(np.float64)) - 1).max() < 4e-7  # 3e-7
    assert cpu.exp2(mx.array([-mx.inf, -1e30, -200, -63.6, 0, 128])).tolist() == pytest.approx(
        [0, 0, 0, 0, 1, mx.inf], rel=1e-6
    )
    assert np.isnan(cpu.exp2(mx.array([mx.nan])).item())


def test_swiglu_of_large_numbers():
    gate, up = np.array([-1e30, -100, -5, 0, 3, 100], np.float32), np.array([1e30, 2, 2, 2, 2, 2], np.float32)
    with np.errstate(over="ignore"):
        expected = gate / (1 + np.exp(-gate.astype(np.float64))) * up
    np.testing.assert_allclose(cpu.swiglu(mx.array(gate), mx.array(up)), expected, rtol=2e-6, atol=1e-30)
