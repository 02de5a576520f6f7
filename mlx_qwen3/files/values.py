"""The float values of stored tensors, packed ones unpacked: for looking at weights, and for reference.py."""

from collections.abc import Mapping

import mlx.core as mx
import numpy as np

from .checkpoint import StoredTensor
from .config import Quantization


def to_mlx(array: np.ndarray) -> mx.array:
    """The same values in MLX. Use it instead of `mx.array(array)`, in which a Ctrl-C that has just come is lost."""
    return mx.array(memoryview(array))


def stored(tensor: StoredTensor) -> mx.array:
    """The tensor, or the run of its rows, in its own dtype. Lazy: nothing is read before the array is evaluated."""
    # The file is opened each time: arrays of a kept dict would stay evaluated in it, until all weights are there.
    file: dict[str, mx.array] = mx.load(str(tensor.path))  # type: ignore[assignment]
    return tensor.cut(file[tensor.name])


def unpacked(leaves: Mapping[str, StoredTensor], packing: Quantization | None) -> mx.array:
    """The weight that the leaves of a module (weight, and scales and biases where it is packed) stand for."""
    arrays = {leaf: stored(tensor) for leaf, tensor in leaves.items()}
    if packing is None:
        return arrays["weight"]
    return mx.dequantize(
        arrays["weight"],
        arrays["scales"],
        arrays.get("biases"),
        group_size=packing.group_size,
        bits=packing.bits,
        mode=packing.mode,
    )
