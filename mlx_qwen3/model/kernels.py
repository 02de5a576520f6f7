"""What a decode step does in another way on each of MLX's back ends, and why.

B batch, H query heads, K key/value heads, D head_dim, S keys
"""

from functools import cache
from typing import Any

import mlx.core as mx


def on_gpu() -> bool:
    return mx.default_device().type == mx.gpu


def on_metal() -> bool:
    return on_gpu() and mx.metal.is_available()


def norm_rope(qkv: mx.array, weight: mx.array, cos: mx.array, sin: mx.array, eps: float) -> tuple[mx.array, mx.array]:
    """QK-norm and rotation of a fused projection.

    qkv (B, H + 2K, 1, D); weight (H + K, 1, D) of the norms; cos and sin (B, 1, 1, D) float32, the first half of sin
    negated. Returns queries (B, H, 1, D), and keys and values (2, B, K, 1, D) as the cache takes them.
    """
    # MLX has no call for the two together: on Metal one kernel takes the place of five.
    return metal_norm_rope(qkv, weight, cos, sin, eps) if on_metal() else plain_norm_rope(qkv, weight, cos, sin, eps)


def plain_norm_rope(
    qkv: mx.array, weight: mx.array, cos: mx.array, sin: mx.array, eps: float
) -> tuple[mx.array, mx.array]:
    normed, D = weight.shape[0], weight.shape[2]
    H = 2 * normed - qkv.shape[1]
    qk = mx.fast.rms_norm(qkv[:, :normed], None, eps) * weight
    swapped = mx.concatenate([qk[..., D // 2 :], qk[..., : D // 2]], axis=-1)
    qk = (qk * cos + swapped * sin).astype(qkv.dtype)
    return qk[:, :H], mx.stack([qk[:, H:], qkv[:, normed:]])


def metal_norm_rope(
    qkv: mx.array, weight: mx.array, cos: mx.array, sin: mx.array, eps: float
) -> tuple[mx.array, mx.array]:
    B, heads, _, D = qkv.shape
    K = heads - weight.shape[0]
    H = heads - 2 * K
    q, kv = _metal_kernel()(
        inputs=[qkv, weight, cos, sin, mx.array(eps)],
        template=[("T", qkv.dtype), ("H", H), ("K", K), ("D", D)],
        grid=(32, heads, B),
        threadgroup=(32, 1, 1),
        output_shapes=[(B, H, 1, D), (2, B, K, 1, D)],
        output_dtypes=[qkv.dtype, qkv.dtype],
    )
    return q, kv


# One SIMD group of 32 lanes for every head; roundings to T where mx.fast.rms_norm and mx.fast.rope have them.
NORM_ROPE = """
    const uint lane = thread_position_in_grid.x, head = thread_position_in_grid.y, row = thread_position_in_grid.z;
    const uint from = (row * (H + 2 * K) + head) * D;
    float squares = 0;
    for (uint i = lane; i < D; i += 32) {
        const float x = qkv[from + i];
        squares += x * x;
    }
    const float scale = metal::precise::rsqrt(simd_sum(squares) / D + eps);
    const bool is_value = head >= H + K;
    const uint plane = is_value * threads_per_grid.z + row;
    const uint into = head < H ? (row * H + head) * D : (plane * K + (head - H) % K) * D;
    for (uint i = lane; i < D; i += 32) {
        const uint j = (i + D / 2) % D;
        T result = qkv[from + i];
        if (!is_value) {
            const T x = weight[head * D + i] * T(qkv[from + i] * scale);
            const T y = weight[head * D + j] * T(qkv[from + j] * scale);
            result = T(x * cos[row * D + i] + y * sin[row * D + i]);
        }
        if (head < H) q[into + i] = result;
        else kv[into + i] = result;
    }
"""


@cache
def _metal_kernel() -> Any:
    return mx.fast.metal_kernel(
        name="norm_rope",
        input_names=["qkv", "weight", "cos", "sin", "eps"],
        output_names=["q", "kv"],
        source=NORM_ROPE,
    )


def attend(q: mx.array, keys: mx.array, values: mx.array, scale: float, mask: mx.array) -> mx.array:
    """Attention of one query: q (B, H, 1, D), keys and values (B, K, S, D), mask (B, 1, 1, S) bool -> (B, H, 1, D)."""
    if on_gpu():
        return mx.fast.scaled_dot_product_attention(q, keys, values, scale=scale, mask=mask)
    # A CPU has no fused kernel. The queries of a key head as the rows of one product read the keys once, where MLX's
    # own expansion multiplies one row for every query head.
    B, H, _, D = q.shape
    scores = q.reshape(B, keys.shape[1], -1, D) @ mx.swapaxes(keys, 2, 3)
    weights = mx.softmax(mx.where(mask, scores * scale, -mx.inf), axis=-1, precise=True)
    return (weights @ values).reshape(B, H, 1, D)


def replay_after() -> int:
    """How many tokens to decode before the step's graph is compiled."""
    # On a CPU mx.compile runs g++ for every kernel that the machine has not seen: some two seconds that a short reply
    # would wait for.
    return 0 if on_gpu() else 64
