"""Rotary position embedding (arXiv 2104.09864), rotate-half, with the kinds of scaling that transformers has.

B batch, L new tokens, D head_dim
"""

import math

import mlx.core as mx
import numpy as np

from ..files.config import Qwen3Config
from ..files.rope import Linear, Llama3, LongRope, Scaling, Yarn


class RoPE:
    """The angles by which queries and keys are turned.

    The frequencies are computed here and not by `mx.fast.rope`, with the roundings of transformers: at position
    40,000 one unit in the last place of a float32 frequency turns a pair by 0.002 radians.
    """

    def __init__(self, config: Qwen3Config):
        inv_freq = inverse_frequencies(config.head_dim, config.rope_theta, config.rope_scaling)
        self.inv_freq = mx.array(inv_freq)  # (D / 2,)

    def __call__(self, positions: mx.array) -> tuple[mx.array, mx.array]:
        """cos and sin for `rotate`, each (B, 1, L, D) float32, for positions (B, L)."""
        angles = positions[:, None, :, None] * self.inv_freq
        cos, sin = mx.cos(angles), mx.sin(angles)
        return mx.concatenate([cos, cos], axis=-1), mx.concatenate([-sin, sin], axis=-1)


def rotate(x: mx.array, cos: mx.array, sin: mx.array) -> mx.array:
    """Turn the pairs (i, i + D/2) of x (B, heads, L, D) by the angles of its tokens; float32 if x is."""
    first, second = mx.split(x, 2, axis=-1)  # one node, where two slices are two
    return x * cos + mx.concatenate([second, first], axis=-1) * sin  # the first half of sin is negated


def inverse_frequencies(dims: int, theta: float, scaling: Scaling | None) -> np.ndarray:
    """Radians per position, (dims / 2,) float32."""
    exponents = np.arange(0, dims, 2, dtype=np.float32) / np.float32(dims)
    # In float64, because NumPy's float32 power is off by one unit in the last place for a fifth of these values.
    periods = (theta ** exponents.astype(np.float64)).astype(np.float32)
    if isinstance(scaling, Linear):
        return 1 / periods / np.float32(scaling.factor)
    if isinstance(scaling, LongRope):
        return 1 / (np.array(scaling.short_factor, np.float32) * periods)
    if isinstance(scaling, Llama3):
        return _llama3(1 / periods, scaling)
    return _yarn(periods, theta, scaling) if isinstance(scaling, Yarn) else 1 / periods


def _llama3(plain: np.ndarray, scaling: Llama3) -> np.ndarray:
    """Pairs with a wavelength near the original context are stretched, fast ones are kept, others are mixed."""
    original, low, high = scaling.original_max_position_embeddings, scaling.low_freq_factor, scaling.high_freq_factor
    lengths = np.float32(2 * math.pi) / plain  # positions per turn
    stretched = plain / np.float32(scaling.factor)
    keep = (np.float32(original) / lengths - np.float32(low)) / np.float32(high - low)
    between = (1 - keep) * stretched + keep * plain
    return np.where(lengths > original / low, stretched, np.where(lengths < original / high, plain, between))


def _yarn(periods: np.ndarray, theta: float, yarn: Yarn) -> np.ndarray:
    """Pairs that turn often in the original context keep their frequency; that of slow ones is divided by `factor`."""
    dims = 2 * len(periods)
    low, high = _correction_range(dims, theta, yarn)
    ramp = np.clip((np.arange(dims // 2, dtype=np.float32) - np.float32(low)) / np.float32(high - low), 0, 1)
    keep = 1 - ramp
    return 1 / (np.float32(yarn.factor) * periods) * (1 - keep) + 1 / periods * keep


def _correction_range(dims: int, theta: float, yarn: Yarn) -> tuple[float, float]:
    def pair(turns: float) -> float:
        return dims * math.log(yarn.original_max_position_embeddings / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = pair(yarn.beta_fast), pair(yarn.beta_slow)
    if yarn.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dims - 1)
    return low, high if high != low else high + 0.001  # the ramp divides by high - low
