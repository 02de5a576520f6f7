"""Attention in query blocks against the fused kernel, on MLX and on torch."""

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from arrays import as_numpy, relative
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_qwen3.compare.attention import attention_chunk, score_blocks
from mlx_qwen3.model.cache import KVCache

CHUNKS = (1, 2, 7, 36, 37, 64)
# Measured on the CPU: 0, 2.1e-4, 1.6e-3 (the fused operation 0, 4.9e-4, 3.9e-3: it rounds in between). Other BLAS and
# back ends add in another order.
TOLERANCE = {mx.float32: 2e-6, mx.float16: 4e-4, mx.bfloat16: 3e-3}


def arrays(L: int, S: int, H: int = 6, K: int = 2, D: int = 20, B: int = 2, seed: int = 0) -> list[mx.array]:
    rng = np.random.default_rng(seed)
    shapes = [(B, H, L, D), (B, K, S, D), (B, K, S, D)]
    return [mx.array(rng.normal(size=shape).astype(np.float32)) for shape in shapes]


def fused(q: mx.array, k: mx.array, v: mx.array, mask: Any = "causal", scale: float | None = None) -> mx.array:
    """The kernel of the model, its heads merged."""
    out = mx.fast.scaled_dot_product_attention(q, k, v, scale=scale or q.shape[3] ** -0.5, mask=mask)
    return out.transpose(0, 2, 1, 3).reshape(q.shape[0], q.shape[2], -1)


@pytest.mark.parametrize("chunk", CHUNKS)
@pytest.mark.parametrize("mask", ["causal", None])
@pytest.mark.parametrize("heads", [(6, 2), (6, 1), (6, 6), (1, 1)])
@pytest.mark.parametrize("lengths", [(37, 37), (5, 37), (1, 37), (37, 60), (1, 1)])
def test_it_equals_the_fused_kernel(chunk, mask, heads, lengths):
    """Every chunk size, prompts after a cached prefix, shared key/value heads."""
    q, k, v = arrays(*lengths, *heads)
    assert relative(attention_chunk(q, k, v, mask=mask, chunk=chunk), as_numpy(fused(q, k, v, mask))) < 2e-6


@given(
    L=st.integers(1, 40),
    prefix=st.integers(0, 40),
    group=st.integers(1, 4),
    K=st.integers(1, 3),
    chunk=st.integers(1, 50),
)
@settings(max_examples=60, deadline=None)
def test_any_sizes(L, prefix, group, K, chunk):
    q, k, v = arrays(L, L + prefix, group * K, K, D=8, B=1)
    assert relative(attention_chunk(q, k, v, chunk=chunk), as_numpy(fused(q, k, v))) < 2e-6


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_the_dtype_stays_and_rounding_is_all_that_differs(dtype):
    q, k, v = (x.astype(dtype) for x in arrays(37, 60))
    exact = as_numpy(fused(*(x.astype(mx.float32) for x in (q, k, v))))
    ours = attention_chunk(q, k, v, chunk=8)
    assert ours.dtype == dtype
    assert relative(ours, exact) <= TOLERANCE[dtype]
    assert relative(ours, exact) <= 1.05 * relative(fused(q, k, v), exact) + 1e-6  # no worse than the kernel


@pytest.mark.parametrize("chunk", CHUNKS)
def test_padded_rows_and_other_masks(chunk):
    q, k, v = arrays(37, 37)
    padded = KVCache(2, [0, 6]).mask(37)
    for mask in (padded, mx.where(padded, 0.0, -1e9), mx.ones((37,), dtype=mx.bool_)):
        assert relative(attention_chunk(q, k, v, mask=mask, chunk=chunk), as_numpy(fused(q, k, v, mask))) < 2e-6


def test_a_scale_of_its_own():
    q, k, v = arrays(9, 9)
    assert relative(attention_chunk(q, k, v, scale=0.7, chunk=4), as_numpy(fused(q, k, v, scale=0.7))) < 2e-6


def test_blocks_are_joined_merged_and_projected():
    q, k, v = arrays(37, 37)
    weight = mx.array(np.random.default_rng(3).normal(size=(48, 120)).astype(np.float32))
    merged = fused(q, k, v)
    out = attention_chunk(q, k, v, lambda x: x @ weight.T, chunk=10)
    assert out.shape == (2, 37, 48)
    assert relative(out, as_numpy(merged @ weight.T)) < 2e-6


@pytest.mark.parametrize("chunk", CHUNKS)
def test_torch_gives_the_same(chunk):
    torch = pytest.importorskip("torch")
    q, k, v = arrays(37, 60)
    theirs = attention_chunk(*(torch.tensor(np.array(x)) for x in (q, k, v)), chunk=chunk)
    assert theirs.shape == (2, 37, 120)
    assert relative(theirs.numpy(), as_numpy(fused(q, k, v))) < 2e-6


def test_a_causal_block_ends_at_the_last_key_it_sees():
    q, k, _ = arrays(10, 14)
    assert [(start, scores.shape) for start, scores, _ in score_blocks(q, k, chunk=4)] == [
        (0, (2, 6, 4, 8)),
        (4, (2, 6, 4, 12)),
        (8, (2, 6, 2, 14)),
    ]


def test_memory_is_that_of_a_block():
    """16 heads on 2,048 keys make 268 MB of scores for all queries, and 8 MB for 64 of them."""
    q, k, v = arrays(2048, 2048, 16, 8, 32, B=1)
    mx.eval(q, k, v)
    mx.clear_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    mx.eval(attention_chunk(q, k, v, chunk=64))
    assert mx.get_peak_memory() - before < 5 * 16 * 64 * 2048 * 4  # measured 30 MB, most of it copies of k and results


@pytest.mark.parametrize(
    ("shapes", "options", "message"),
    [
        (((1, 2, 3, 4), (1, 2, 3, 4)), {"chunk": 0}, "chunk is 0; expected 1 or more"),
        (((1, 2, 3, 4), (1, 2, 3, 8)), {}, "differ in batch or head_dim"),
        (((1, 3, 3, 4), (1, 2, 3, 4)), {}, "3 query heads cannot share 2 key/value heads"),
        (((1, 2, 5, 4), (1, 2, 3, 4)), {}, "5 queries are more than the 3 keys"),
        (((1, 2, 3, 4), (1, 2, 3, 4)), {"mask": "diagonal"}, "mask is 'diagonal'"),
    ],
)
def test_what_does_not_fit_is_refused(shapes, options, message):
    q, k = map(mx.zeros, shapes)
    with pytest.raises(ValueError, match=message):
        attention_chunk(q, k, k, **options)
