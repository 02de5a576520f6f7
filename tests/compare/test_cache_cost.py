"""What a quantized cache costs, against the formulas in NumPy."""

import mlx.core as mx
import numpy as np
import pytest
from arrays import as_numpy
from checkpoints import write_checkpoint

from mlx_qwen3.compare.cache_cost import cache_cost
from mlx_qwen3.model.load import load_model

LENGTH = 37


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(write_checkpoint(tmp_path_factory.mktemp("model"), head_dim=64), "fp32")


@pytest.fixture(scope="module")
def row():
    return mx.array(np.random.default_rng(3).integers(0, 151, (2, LENGTH)))


def relative(found, right):
    return np.linalg.norm(found - right) / np.linalg.norm(right)


@pytest.mark.parametrize(("kv_bits", "size"), [(8, 2 * 2 * 2 * (64 + 8)), (4, 2 * 2 * 2 * (32 + 8))])
def test_the_numbers_are_those_of_the_formulas(model, row, kv_bits, size):
    shown, logits = {None: {}, kv_bits: {}}, {}
    for bits, steps in shown.items():
        cache = model.make_cache(2, None, bits)
        logits[bits] = as_numpy(
            model(row, cache, lambda name, *arrays, steps=steps: steps.setdefault(name, []).append(arrays))
        ).astype(np.float64)
    cost = cache_cost(model, [row], kv_bits)
    for layer, own in enumerate(cost.layers):
        for name, step, index in (("keys", "cache", 0), ("values", "cache", 1), ("residual", "output", 0)):
            right, found = (as_numpy(shown[bits][step][layer][index]) for bits in (None, kv_bits))
            assert getattr(own, name) == pytest.approx(relative(found, right), rel=1e-3)
            assert getattr(own, name) > 1e-4
    p, q = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in logits.values())
    kl = (np.exp(p) * (p - q)).sum(-1)
    assert cost.kl_mean == pytest.approx(kl.mean(), rel=0.02)
    assert cost.kl_max == pytest.approx(kl.max(), rel=0.02)
    assert cost.top1_agreement == (p.argmax(-1) == q.argmax(-1)).mean()
    assert (cost.tokens, cost.token_bytes, cost.unquantized_bytes) == (2 * LENGTH, size, 2 * 2 * 2 * 64 * 4)


def test_passes_of_any_length_and_rows_one_by_one_measure_the_same(model, row):
    whole = cache_cost(model, [row], 8)
    parts = cache_cost(model, [row[:1], row[1:]], 8, chunk=10)
    assert parts.tokens == whole.tokens
    # Values halfway between two steps may go to either.
    assert parts.kl_mean == pytest.approx(whole.kl_mean, rel=0.2)
    for a, b in zip(parts.layers, whole.layers, strict=True):
        assert a.keys == pytest.approx(b.keys, rel=0.05)


def test_eight_bits_cost_less_than_four(model, row):
    eight, four = (cache_cost(model, [row], bits) for bits in (8, 4))
    assert 30 * eight.kl_mean < four.kl_mean
    assert all(10 * a.keys < b.keys for a, b in zip(eight.layers, four.layers, strict=True))
