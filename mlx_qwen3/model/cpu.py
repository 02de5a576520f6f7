"""Attention and exponentials on a CPU, where MLX has no fused kernel.

MLX's CPU back end computes an exponential in 14 ns, one at a time, and the scores of keys that a query does not see. Of
a prompt, attention is computed in blocks, with exponentials from operations that the compiler vectorizes. dev/LOG.md
has the times.

B batch, L new tokens, H query heads, K key/value heads, G = H / K, D head_dim, S keys, C queries of a block
"""

import math
from collections.abc import Callable
from functools import lru_cache, partial

import mlx.core as mx
import numpy as np

from ..files.config import Qwen3Config
from ..files.values import to_mlx
from . import streams

# Of one query: keys from which exponentials are powers, from which there are blocks, and sizes of these
MANY_KEYS, MANY_BLOCKS, SMALLEST_BLOCK, LARGEST_BLOCK = 2048, 16384, 1024, 2048
# Queries that are computed together: half of the scores of a block's own keys are not needed. Over many keys they are
# fewer, so that a key head has at most HEAD_SCORES scores if it can.
BLOCK, SMALLEST_QUERIES, HEAD_SCORES = 64, 16, 1 << 19
# Scores that are computed together. MLX's CPU holds the results of some 50 operations before it frees the first. So a
# tile of each stream is evaluated alone, and its results stay in the cache of the processor.
TILE = 1 << 18
WORTH_WAITING = 1 << 18  # scores; to wait for fewer takes longer than they do
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


def attend_one(q: mx.array, kv: mx.array, scale: float, mask: mx.array | None) -> mx.array:
    """Attention of one query of each row, q (B, H, 1, D), over keys and values (2, B, K, S, D), (B, H, 1, D).

    mask: (B, 1, 1, S) bool, or None if it sees every key.
    """
    # The queries of a key head as the rows of one product read the keys once; MLX's own expansion multiplies one row
    # for every query head. An axis of length 1 at the front saves nodes that remove it.
    B, H, _, D = q.shape
    keys, values = mx.split(kv, 2)
    queries = q.reshape(1, B, kv.shape[2], -1, D)
    if q.dtype != mx.float32 or (B == 1 and kv.shape[3] < MANY_KEYS):
        scores = (queries @ mx.swapaxes(keys, 3, 4)) * scale  # one kernel with the mask, if the step is compiled
        scores = scores if mask is None else mx.where(mask, scores, -mx.inf)
        return (mx.softmax(scores, axis=-1, precise=True) @ values).reshape(B, H, 1, D)
    if blocks := _key_blocks(kv.shape[3]):
        return _attend_in_blocks(q, kv, scale, mask, blocks)
    # Softmax in parts, for the sake of `exp`: one short row has too few scores to pay for more operations. To add -inf
    # takes less time for each score than to choose it.
    scores = (queries * scale) @ mx.swapaxes(keys, 3, 4)
    scores = scores if mask is None else scores + mx.where(mask, 0.0, -mx.inf)
    weights = exp(scores - mx.max(scores, axis=-1, keepdims=True))
    return ((weights @ values) / mx.sum(weights, axis=-1, keepdims=True)).reshape(B, H, 1, D)


def _key_blocks(keys: int) -> int:
    """The number of equal blocks of keys for the attention of one query; 0 if blocks would not pay."""
    # MKL multiplies a few rows by a large matrix in less time if it gets the matrix in parts: dev/LOG.md.
    size = min(keys & -keys, LARGEST_BLOCK)
    return keys // size if keys >= MANY_BLOCKS and size >= SMALLEST_BLOCK else 0


def _attend_in_blocks(q: mx.array, kv: mx.array, scale: float, mask: mx.array | None, blocks: int) -> mx.array:
    B, H, _, D = q.shape
    keys, values = mx.split(mx.unflatten(kv, 3, (blocks, -1)), 2)  # (1, B, K, blocks, size, D)
    scores = (q.reshape(1, B, keys.shape[2], 1, -1, D) * scale) @ mx.swapaxes(keys, 4, 5)
    if mask is not None:
        scores = scores + mx.where(mask, 0.0, -mx.inf).reshape(-1, 1, blocks, 1, keys.shape[4])
    weights = exp(scores - mx.max(scores, axis=(3, 5), keepdims=True))
    total = mx.sum(weights, axis=(3, 5))[..., None]
    return (mx.sum(weights @ values, axis=3) / total).reshape(B, H, 1, D)


def attend(q: mx.array, kv: mx.array, scale: float, causal: bool, compiled: bool) -> mx.array:
    """Attention of q (B, H, L, D) over keys and values (2, B, K, S, D), (B, H, L, D), in blocks of queries.

    causal: the last query sees all keys, each before it one key less. compiled: use `exp2`; q is float32.
    """
    (H, L), (K, S) = q.shape[1:3], kv.shape[2:4]
    attend_block = _in_tiles if compiled else _by_mlx
    blocks, waiting = [], Waiting()
    size = block_size(H // K, S)
    for first in range(0, L, size):
        last = min(first + size, L)
        keys = S - L + last if causal else S
        blocks.append(attend_block(q[:, :, first:last], kv[:, :, :, :keys], scale, causal, waiting))
    return mx.concatenate(blocks, axis=2)


def block_size(group: int, keys: int) -> int:
    """The queries of a block over so many keys, if `group` query heads have one key head."""
    size = BLOCK
    while size > SMALLEST_QUERIES and group * size * keys > HEAD_SCORES:
        size //= 2
    return size


class Waiting:
    """Results that take turns on the streams, and are evaluated when they have many scores."""

    def __init__(self) -> None:
        self._streams = streams.current()
        self._results: list[mx.array] = []
        self._scores = self._count = 0

    def add(self, compute: Callable[[], mx.array], scores: int) -> mx.array:
        """The result of `compute`, which has so many scores."""
        with mx.stream(self._streams[self._count % len(self._streams)]):
            result = compute()
        self._count += 1
        if len(self._streams) == 1 and scores < WORTH_WAITING:
            return result
        self._results.append(result)
        self._scores += scores
        if self._scores >= WORTH_WAITING and self._count % len(self._streams) == 0:
            mx.eval(self._results)  # frees what they were computed from
            self._results, self._scores = [], 0
        return result


def _by_mlx(q: mx.array, kv: mx.array, scale: float, causal: bool, waiting: Waiting) -> mx.array:
    """Attention of a block of queries."""
    (B, H, C, _), (K, S) = q.shape, kv.shape[2:4]
    mask = "causal" if causal else None
    parts, G = [], H // K
    for some in streams.slices(K, len(streams.current())):
        keys, values = kv[0, :, some], kv[1, :, some]  # slices, because kv[0] is a gather, which copies
        heads = q[:, G * some.start : G * some.stop]
        compute = partial(mx.fast.scaled_dot_product_attention, heads, keys, values, scale=scale, mask=mask)
        parts.append(waiting.add(compute, B * heads.shape[1] * C * S))
    return mx.concatenate(parts, axis=1)


def _in_tiles(q: mx.array, kv: mx.array, scale: float, causal: bool, waiting: Waiting) -> mx.array:
    """The same, a few key heads after another."""
    (B, H, C, D), (K, S) = q.shape, kv.shape[2:4]
    queries = q.reshape(B, K, -1, D) * (scale * math.log2(math.e))
    scores = B * H // K * C * S  # of one key head
    most = max(1, TILE // scores)
    tiles = []
    for some in streams.slices(K, max(-(-K // most), min(K, len(streams.current())))):
        compute = partial(_tile, queries[:, some], kv[0, :, some], kv[1, :, some], C if causal else 0)
        tiles.append(waiting.add(compute, (some.stop - some.start) * scores))
    return mx.concatenate(tiles, axis=1).reshape(B, H, C, D)


def score_bytes(config: Qwen3Config, queries: int, keys: int) -> int:
    """Of a block's scores: MLX has them before and after the softmax, and `_tile` six times, for powers and parts."""
    heads = config.num_attention_heads
    tile = streams.STREAMS * max(TILE, heads // config.num_key_value_heads * queries * keys)
    return 4 * max(2 * heads * queries * keys, 6 * min(heads * queries * keys, tile))


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


def exp(x: mx.array) -> mx.array:
    """e to the x, float32."""
    # mx.exp takes 13 ns a number on x86. A power is the C library's own, takes 5, and is no less exact: off by 3e-6 of
    # the result at -87, and by less near 0.
    return mx.power(math.e, x)


def exp2(x: mx.array) -> mx.array:
    """2 to the x <= MOST, float32, off by 3e-7 of the result; 0 below 2^LEAST. Two kernels, which g++ compiles."""
    power, fraction = _split(mx.maximum(x, ZERO))
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
    return gate / (1 + exp2(mx.minimum(gate * -math.log2(math.e), MOST))) * up
