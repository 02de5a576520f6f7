"""Projections: y = x @ weight.T, plain or packed, and with the residual added in the same call if MLX can.

T tokens
"""

from collections.abc import Callable, Sequence

import mlx.core as mx
import mlx.nn as nn


class Derived:
    """A value that is computed from weights: once, and again after one of them has been replaced.

    So that no graph holds the computation. Writing *into* a weight (`weight[0] = 1`) after the first pass is not
    noticed: assign a new array instead.
    """

    def __init__(self, make: Callable[..., mx.array]):
        self._make = make
        self._of: tuple[mx.array, ...] = ()
        self._value: mx.array

    def __call__(self, *weights: mx.array) -> mx.array:
        if tuple(map(id, weights)) != tuple(map(id, self._of)):  # == would compare their values
            self._value, self._of = self._make(*weights), weights
        return self._value


class Linear(nn.Linear):
    """(T, inputs) -> (T, outputs)"""

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs, bias=False)
        self._transposed = Derived(lambda weight: weight.T)

    def __call__(self, x: mx.array) -> mx.array:
        return x @ self._transposed(self["weight"])

    def add(self, residual: mx.array, x: mx.array) -> mx.array:
        """residual + self(x)"""
        return mx.addmm(residual, x, self._transposed(self["weight"]))

    def to_quantized(self, group_size: int, bits: int, mode: str) -> nn.Module:  # type: ignore[override]
        return QuantizedLinear.from_linear(self, group_size, bits, mode)


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
