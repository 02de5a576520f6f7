"""Prompts on a CPU: attention in blocks, and exponentials from operations that the compiler vectorizes.

MLX's CPU back end computes an exponential in 14 ns, one at a time, and the scores of keys that a query does not see.
dev/LOG.md has the times.

B batch, L new tokens, H query heads, K key/value heads, G = H / K, D head_dim, S keys, C queries of a block
"""

import math
from functools import lru_cache

import mlx.core as mx
import numpy as np

from ..files.config import Qwen3Config
from ..files.values import to_mlx

BLOCK = 64  # queries that are computed together; half of the scores of a block's own keys are not needed
# Scores that are computed together. MLX's CPU holds the results of some 50 operations before it frees the first. So a
# tile is evaluated alone, and its results stay in the cache of the processor.
TILE = 1 << 19
WORTH_WAITING = 1 << 17  # scores; to wait for fewer takes longer than they do
MASKED = -1e30  # is added to a score that does not count; -inf would make -inf - (-inf), which is NaN

# 2^f for f from -0.5 to 0.5, off by 1e-7: a polynomial through Chebyshev's points.
POLYNOMIAL = (
    1.0000000754548972,
    0.6931471880262273,
    0.2402210748530968,
    0.05550357114222094,
    0.009676031918255982,
    0.001339086336353527,
)
# Smaller results than 2^LEAST are 0. They change no sum that has a 1, and products with them can be too small for
# float32's normal numbers, which a processor multiplies a hundred times slower.
LEAST, MOST = -63, 128
ZERO = LEAST - 1
ROUND = float(3 << 22)  # float32 numbers of this size are integers, so that adding it rounds
MANTISSA_BITS, EXPONENT_BIAS = 23, 127


def attend(q: mx.array, kv: mx.array, scale: float, causal: bool, compiled: bool) -> mx.array:
    """Attention of q (B, H, L, D) over keys and values (2, B, K, S, D), (B, H, L, D), in blocks of queries.

    causal: the last query sees all keys, each before it one key less. compiled: use `exp2`; q is float32.
    """
    (B, H, L, D), (K, S) = q.shape, kv.shape[2:4]
    keys, values = kv[0, :], kv[1, :]  # slices, because kv[0] is a gather, which copies
    blocks = []
    for first in range(0, L, BLOCK):
        last = min(first + BLOCK, L)
        seen = S - L + last if causal else S
        block, mask = q[:, :, first:last], "causal" if causal else None
        if not compiled:
            some_keys, some_values = keys[:, :, :seen], values[:, :, :seen]
            attention = mx.fast.scaled_dot_product_attention(block, some_keys, some_values, scale=scale, mask=mask)
            blocks.append(attention)
            _free(blocks[-1], B * H * (last - first) * seen)
            continue
        heads = max(1, min(K, TILE // (B * H // K * (last - first) * seen)))
        parts = []
        for k in range(0, K, heads):
            some = slice(k, k + heads)
            queries = block.reshape(B, K, -1, D)[:, some] * (scale * math.log2(math.e))
            parts.append(_tile(queries, keys[:, some, :seen], values[:, some, :seen], last - first if causal else 0))
            _free(parts[-1], B * heads * (H // K) * (last - first) * seen)
        blocks.append(mx.concatenate(parts, axis=1).reshape(B, H, last - first, D))
    return mx.concatenate(blocks, axis=2)


def score_bytes(config: Qwen3Config, queries: int, keys: int) -> int:
    """Of a block's scores: MLX has them before and after the softmax, and `_tile` six times, for powers and parts."""
    heads = config.num_attention_heads
    tile = max(TILE, heads // config.num_key_value_heads * queries * keys)
    return 4 * max(2 * heads * queries * keys, 6 * min(heads * queries * keys, tile))


def _free(result: mx.array, scores: int) -> None:
    """Evaluate the result, and so free what it was computed from, if it had many scores."""
    if scores >= WORTH_WAITING:
        mx.eval(result)


def _tile(queries: mx.array, keys: mx.array, values: mx.array, causal: int) -> mx.array:
    """Attention of scaled queries (B, K, G * C, D) over keys and values (B, K, S, D).

    causal: C if the queries see only keys up to their own, which are the last C keys; else 0.
    """
    # Keys before queries, because MLX finds the maximum of columns five times faster than that of rows.
    scores = keys @ mx.swapaxes(queries, 2, 3)  # (B, K, S, G * C)
    if causal:
        own = scores.shape[2] - causal
        scores[:, :, own:] = scores[:, :, own:] + _causal_mask(causal, scores.shape[3] // causal)
    weights = exp2(scores - mx.max(scores, axis=2, keepdims=True))
    return (mx.swapaxes(weights, 2, 3) @ values) / mx.sum(weights, axis=2)[..., None]


@lru_cache(maxsize=2 * BLOCK)
def _causal_mask(tokens: int, repeats: int) -> mx.array:
    """(C keys, G * C queries)"""
    places = np.arange(tokens)
    mask = np.where(places[:, None] <= places, np.float32(0), np.float32(MASKED))
    return to_mlx(np.tile(mask, repeats))


def exp2(x: mx.array) -> mx.array:
    """2 to the x, float32, off by 3e-7 of the result; 0 below 2^LEAST. Two kernels, which g++ compiles."""
    power, fraction = _split(mx.minimum(mx.maximum(x, ZERO), MOST))
    # The last bits of `power` are those of an exponent. Only a view makes a float32 of them.
    return _join(fraction, mx.view(mx.view(power, mx.int32) << MANTISSA_BITS, mx.float32))


@lambda function: mx.compile(function, shapeless=True)
def _split(x: mx.array) -> tuple[mx.array, mx.array]:
    power = x + (ROUND - ZERO)
    return power, x - (power - (ROUND - ZERO))


@lambda function: mx.compile(function, shapeless=True)
def _join(f: mx.array, power: mx.array) -> mx.array:
    # `power` lacks a factor, so that it is 0 for the least x. Estrin's scheme, because MLX fuses few operations in a
    # row.
    a, b, c, d, e, g = (math.ldexp(number, EXPONENT_BIAS + ZERO) for number in POLYNOMIAL)
    square = f * f
    return ((a + b * f) + square * (c + d * f) + square * square * (e + g * f)) * power


def swiglu(gate: mx.array, up: mx.array) -> mx.array:
    """silu(gate) * up, float32, any shape."""
    return gate / (1 + exp2(gate * -math.log2(math.e))) * up
