"""Projections: y = x @ weight.T, plain or packed, and with the residual added in the same call if MLX can.

T tokens
"""

from collections.abc import Sequence

import mlx.core as mx
import mlx.nn as nn

from . import kernels


class Linear(nn.Linear):
    """(T, inputs) -> (T, outputs)

    The weight is transposed once, so that no graph holds the transposition. A weight that is replaced is transposed
    again; one that is written into (`weight[0] = 1`) after the first pass is not.
    """

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs, bias=False)
        self._columns = None, None  # a weight and its transpose

    def __call__(self, x: mx.array) -> mx.array:
        return kernels.product(x, self["weight"], self._transposed())

    def add(self, residual: mx.array, x: mx.array) -> mx.array:
        """residual + self(x)"""
        return kernels.add_product(residual, x, self["weight"], self._transposed())

    def _transposed(self) -> mx.array:
        weight, (of, columns) = self["weight"], self["_columns"]
        if of is not weight:
            columns = weight.T
            self["_columns"] = weight, columns
        return columns

    def to_quantized(self, group_size: int, bits: int, mode: str) -> nn.Module:  # type: ignore[override]
        return QuantizedLinear.from_linear(self, group_size, bits, mode)


class Embedding(nn.Embedding):
    """Rows of a matrix by token ids, and the projection onto them where the output is tied to the input."""

    def as_linear(self, x: mx.array) -> mx.array:
        weight = self["weight"]
        return kernels.product(x, weight, weight.T)


class QuantizedLinear(nn.QuantizedLinear):
    """The same with a packed weight."""

    def add(self, residual: mx.array, x: mx.array) -> mx.array:
        """residual + self(x)"""
        return residual + self(x)


class ConcatLinear(nn.Module):
    """Projections of one input side by side, for parts that cannot share a matrix: other bits, other group size."""

    def __init__(self, parts: Sequence[nn.Module]):
        super().__init__()
        self.parts = list(parts)

    def __call__(self, x: mx.array) -> mx.array:
        return mx.concatenate([part(x) for part in self.parts], axis=-1)
