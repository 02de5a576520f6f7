"""MLX arrays as NumPy's, and the distance of two."""

from typing import Any

import mlx.core as mx
import numpy as np


def as_numpy(array: mx.array) -> np.ndarray:
    return np.array(array.astype(mx.float32))


def relative(ours: Any, theirs: np.ndarray) -> float:
    """Norm of the difference over the norm of the reference."""
    ours = as_numpy(ours) if isinstance(ours, mx.array) else ours
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))
