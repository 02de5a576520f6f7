"""Rotary position embedding (arXiv 2104.09864), rotate-half, with YaRN (arXiv 2309.00071).

B batch, L new tokens, D head_dim
"""

import math

import mlx.core as mx
import numpy as np

from ..files.config import Qwen3Config, Yarn


class RoPE:
    """The angles by which queries and keys are turned.

    The frequencies are computed here and not by `mx.fast.rope`, with the roundings of transformers: at position
    40,000 one unit in the last place of a float32 frequency turns a pair by 0.002 radians.
    """

    def __init__(self, config: Qwen3Config):
        self.inv_freq = mx.array(inverse_frequencies(config.head_dim, config.rope_theta, config.yarn))  # (D / 2,)

    def __call__(self, positions: mx.array) -> tuple[mx.array, mx.array]:
        """cos and sin for `rotate`, (B, L, 1, D) float32 each, of positions (B, L)."""
        angles = positions[:, :, None, None] * self.inv_freq
        cos, sin = mx.cos(angles), mx.sin(angles)
        return mx.concatenate([cos, cos], axis=-1), mx.concatenate([-sin, sin], axis=-1)


def rotate(x: mx.array, cos: mx.array, sin: mx.array) -> mx.array:
    """Turn the pairs (i, i + D/2) of x (B, L, heads, D) by the angles of its tokens; float32 if x is."""
    half = x.shape[-1] // 2
    swapped = mx.concatenate([x[..., half:], x[..., :half]], axis=-1)
    return x * cos + swapped * sin  # the first half of sin is negated


def inverse_frequencies(dims: int, theta: float, yarn: Yarn | None) -> np.ndarray:
    """Radians per position, (dims / 2,) float32."""
    exponents = np.arange(0, dims, 2, dtype=np.float32) / np.float32(dims)
    # NumPy's float32 power is one unit off in the last place for a fifth of them.
    periods = (theta ** exponents.astype(np.float64)).astype(np.float32)
    plain = 1 / periods
    if yarn is None:
        return plain
    # Pairs that turn often within the original context keep their speed, slow ones are stretched by `factor`.
    low, high = _correction_range(dims, theta, yarn)
    ramp = np.clip((np.arange(dims // 2, dtype=np.float32) - np.float32(low)) / np.float32(high - low), 0, 1)
    keep = 1 - ramp
    return 1 / (np.float32(yarn.factor) * periods) * (1 - keep) + plain * keep


def _correction_range(dims: int, theta: float, yarn: Yarn) -> tuple[float, float]:
    def pair(turns: float) -> float:
        return dims * math.log(yarn.original_max_position_embeddings / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair(yarn.beta_fast), pair(yarn.beta_slow)
    if yarn.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dims - 1)
    return low, high if high != low else high + 0.001  # the ramp divides by high - low
