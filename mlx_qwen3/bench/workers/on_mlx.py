"""What the two contestants on MLX have in common."""

from importlib.metadata import version
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from .serve import step_bytes


class OnMlx:
    host_time = True
    blas = "of MLX"

    def __init__(self, *packages: str) -> None:
        self.versions = {package: version(package) for package in ("mlx", *packages)}

    def describe(
        self, model: nn.Module, dtype: mx.Dtype, tied: bool, settings: Any, cache_values: int
    ) -> dict[str, Any]:
        """`settings` are those of the experts, and `cache_values` the numbers that one token adds to the cache."""
        weights: list[tuple[str, mx.array]] = tree_flatten(model.parameters())  # type: ignore[assignment]
        return {
            "dtype": str(dtype).removeprefix("mlx.core."),
            "device": mx.default_device().type.name,
            "weight_bytes": step_bytes(((name, array.nbytes) for name, array in weights), tied, settings),
            "cache_bytes": cache_values * dtype.size,
        }

    def reset_peak(self) -> None:
        mx.clear_cache()
        mx.reset_peak_memory()

    def peak(self) -> int | None:
        return mx.get_peak_memory()


def as_numpy(logits: mx.array) -> np.ndarray:
    return np.array(logits.astype(mx.float32))
