"""Attention and exponentials on a CPU, where MLX has no fused kernel.

MLX's CPU back end computes an exponential in 14 ns, one at a time, and also the scores of keys that a query does not
see. Long prompts have native.py, if the machine has what it needs.

B batch, L new tokens, H query heads, K key/value heads, D head_dim, S keys
"""

import math

import mlx.core as mx

# Of one query: keys from which exponentials are powers, from which there are blocks, and sizes of these
MANY_KEYS, MANY_BLOCKS, SMALLEST_BLOCK, LARGEST_BLOCK = 2048, 16384, 1024, 2048
# Queries that are computed together: half of the scores of a block's own keys are not needed. Over many keys they are
# fewer, so that a key head has at most HEAD_SCORES scores if it can.
BLOCK, SMALLEST_QUERIES, HEAD_SCORES = 64, 16, 1 << 19
WORTH_WAITING = 1 << 18  # scores; to wait for fewer takes longer than they do


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


def attend(q: mx.array, kv: mx.array, scale: float, causal: bool) -> mx.array:
    """Attention of q (B, H, L, D) over keys and values (2, B, K, S, D), (B, H, L, D), in blocks of queries.

    causal: the last query sees all keys, each before it one key less.
    """
    (H, L), (K, S) = q.shape[1:3], kv.shape[2:4]
    size, mask = block_size(H // K, S), "causal" if causal else None
    blocks = []
    for first in range(0, L, size):
        last = min(first + size, L)
        keys, values = (kv[side, :, :, : S - L + last if causal else S] for side in (0, 1))
        block = mx.fast.scaled_dot_product_attention(q[:, :, first:last], keys, values, scale=scale, mask=mask)
        if H * size * S >= WORTH_WAITING:
            mx.eval(block)  # frees the scores
        blocks.append(block)
    return mx.concatenate(blocks, axis=2)


def block_size(group: int, keys: int) -> int:
    """The queries of a block over so many keys, if `group` query heads have one key head."""
    size = BLOCK
    while size > SMALLEST_QUERIES and group * size * keys > HEAD_SCORES:
        size //= 2
    return size


def score_bytes(heads: int, queries: int, keys: int) -> int:
    """Of a block's scores: MLX has them before and after the softmax."""
    return 4 * 2 * heads * queries * keys


def exp(x: mx.array) -> mx.array:
    """e to the x, float32."""
    # mx.exp takes 13 ns a number on x86. A power is the C library's own, takes 5, and is no less exact: off by 3e-6 of
    # the result at -87, and by less near 0.
    return mx.power(math.e, x)
