"""What the two contestants on MLX have in common."""

from importlib.metadata import version
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten


class OnMlx:
    host_time = True
    blas = "of MLX"

    def __init__(self, *packages: str) -> None:
        self.versions = {package: version(package) for package in ("mlx", *packages)}

    def describe(self, model: nn.Module, dtype: mx.Dtype, tied: bool, cache_values: int) -> dict[str, Any]:
        """`cache_values` are the numbers that one token adds to the cache."""
        weights: list[tuple[str, mx.array]] = tree_flatten(model.parameters())  # type: ignore[assignment]
        return {
            "dtype": str(dtype).removeprefix("mlx.core."),
            "device": mx.default_device().type.name,
            "weight_bytes": sum(array.nbytes for name, array in weights if tied or "embed_tokens" not in name),
            "cache_bytes": cache_values * dtype.size,
        }

    def reset_peak(self) -> None:
        mx.clear_cache()
        mx.reset_peak_memory()

    def peak(self) -> int | None:
        return mx.get_peak_memory()


def as_numpy(logits: mx.array) -> np.ndarray:
    return np.array(logits.astype(mx.float32))
