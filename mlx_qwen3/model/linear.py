"""Projections: y = x @ weight.T, plain or packed, and with the residual added in the same call if MLX can.

T tokens, E experts, P pairs of a token and one of its experts
"""

from collections.abc import Callable, Sequence
from typing import Any

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

    def __call__(self, x: mx.array) -> mx.array:
        return kernels.product(x, self["weight"], _transposed(self))

    def add(self, residual: mx.array, x: mx.array) -> mx.array:
        """residual + self(x)"""
        return kernels.add_product(residual, x, self["weight"], _transposed(self))

    def to_quantized(self, group_size: int, bits: int, mode: str) -> nn.Module:  # type: ignore[override]
        return QuantizedLinear.from_linear(self, group_size, bits, mode)


class Embedding(nn.Embedding):
    """Rows of a matrix by token ids, and the projection onto them where the output is tied to the input."""

    def as_linear(self, x: mx.array) -> mx.array:
        return kernels.product(x, self["weight"], _transposed(self))


def _transposed(module: nn.Module) -> mx.array:
    """The transpose of the weight, kept as long as the module has this weight."""
    weight, (of, columns) = module["weight"], module.get("_columns", (None, None))
    if of is not weight:
        columns = weight.T
        module["_columns"] = weight, columns
    return columns


class QuantizedLinear(nn.QuantizedLinear):
    """The same with a packed weight."""

    def add(self, residual: mx.array, x: mx.array) -> mx.array:
        """residual + self(x)"""
        return residual + self(x)


class ExpertLinear(nn.Module):
    """A projection of each expert: the weight is (E, outputs, inputs)."""

    def __init__(self, experts: int, inputs: int, outputs: int):
        super().__init__()
        self.weight = mx.zeros((experts, outputs, inputs))

    def __call__(self, x: mx.array, experts: mx.array, rows: mx.array | None = None) -> mx.array:
        """(P, outputs) of these rows (P,) of x (T, inputs), each through its expert (P,).

        Without `rows`, pair i has row i and the experts ascend: a GPU reads the weights of each once.
        """
        weight = mx.swapaxes(self["weight"], 1, 2)
        if x.dtype != mx.float32 and not kernels.on_gpu():  # its gather_mm has float32 only, so matrices are copied
            return ((x if rows is None else x[rows])[:, None] @ weight[experts])[:, 0]
        return mx.gather_mm(x[:, None], weight, rows, experts, sorted_indices=rows is None)[:, 0]

    def of(self, expert: int) -> Callable[[mx.array], mx.array]:
        """The projection (T, inputs) -> (T, outputs) of one expert."""
        weight = _matrix(self["weight"], expert)
        return lambda x: kernels.product(x, weight, weight.T)

    def to_quantized(self, group_size: int, bits: int, mode: str) -> nn.Module:
        return QuantizedExpertLinear(self, group_size, bits, mode)


class QuantizedExpertLinear(nn.Module):
    """The same with packed weights."""

    def __init__(self, plain: ExpertLinear, group_size: int, bits: int, mode: str):
        super().__init__()
        self.group_size, self.bits, self.mode = group_size, bits, mode
        self.weight, self.scales, *biases = mx.quantize(plain.weight, group_size, bits, mode)
        if biases:
            (self.biases,) = biases
        self.freeze()

    def __call__(self, x: mx.array, experts: mx.array, rows: mx.array | None = None) -> mx.array:
        """As `ExpertLinear`."""
        weight, scales, biases = self["weight"], self["scales"], self.get("biases")
        ascending, how = rows is None, self._how()
        return mx.gather_qmm(x[:, None], weight, scales, biases, rows, experts, sorted_indices=ascending, **how)[:, 0]

    def of(self, expert: int) -> Callable[[mx.array], mx.array]:
        """As `ExpertLinear`."""
        weight, scales = _matrix(self["weight"], expert), _matrix(self["scales"], expert)
        biases, how = _matrix(self["biases"], expert) if "biases" in self else None, self._how()
        return lambda x: mx.quantized_matmul(x, weight, scales, biases, **how)

    def _how(self) -> dict[str, Any]:
        return {"group_size": self.group_size, "bits": self.bits, "mode": self.mode}


class ConcatLinear(nn.Module):
    """Projections of one input side by side, for parts that cannot share a matrix: other bits, other group size."""

    def __init__(self, parts: Sequence[nn.Module]):
        super().__init__()
        self.parts = list(parts)

    def __call__(self, x: mx.array, *choice: Any) -> mx.array:
        return mx.concatenate([part(x, *choice) for part in self.parts], axis=-1)

    def of(self, expert: int) -> Callable[[mx.array], mx.array]:
        """As `ExpertLinear`, if the parts are such."""
        parts = [part.of(expert) for part in self.parts]
        return lambda x: mx.concatenate([part(x) for part in parts], axis=-1)


def _matrix(stack: mx.array, expert: int) -> mx.array:
    """One matrix of a stack, as a view: stack[expert] would be a gather, which copies."""
    return stack[expert : expert + 1].reshape(stack.shape[1:])
