"""Rotary position embedding (arXiv 2104.09864), rotate-half, with YaRN (arXiv 2309.00071)."""

import math

import mlx.core as mx
import numpy as np

from ..files.config import Qwen3Config, Yarn


class RoPE:
    """Rotates queries and keys by their positions.

    The frequencies are computed here and not by `mx.fast.rope`, with the roundings of transformers: at position
    40,000 one unit in the last place of a float32 frequency turns a pair by 0.002 radians.
    """

    def __init__(self, config: Qwen3Config):
        self.dims = config.head_dim
        inv_freq = inverse_frequencies(config.head_dim, config.rope_theta, config.yarn)
        self.inv_freq = mx.array(inv_freq)  # radians per position, (D / 2,)
        self.freqs = mx.array(1 / inv_freq)

    def __call__(self, x: mx.array, offset: int | mx.array) -> mx.array:
        """x (B, heads, L, D), the first of the L tokens at position `offset`, one for all rows or (B,)."""
        return mx.fast.rope(x, self.dims, traditional=False, base=None, scale=1.0, offset=offset, freqs=self.freqs)


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
