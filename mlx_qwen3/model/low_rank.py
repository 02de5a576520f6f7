"""Modules whose matrix W has a low-rank change: y = gain * (W x) + b (a x). They share the arrays of W's module.

T tokens, r rank, E experts, V vocabulary
"""

from collections.abc import Callable

import mlx.core as mx
import mlx.nn as nn

from .linear import ExpertLinear


class _Adapted(nn.Module):
    def __init__(self, base: nn.Module, a: mx.array, b: mx.array, gain: mx.array | None):
        super().__init__()
        self.base, self.a, self.b = base, a, b
        if gain is not None:
            self.gain = gain


class AdaptedLinear(_Adapted):
    """A projection (T, inputs) -> (T, outputs), with a (inputs, r), b (r, outputs), gain (outputs,) or None."""

    def __call__(self, x: mx.array) -> mx.array:
        y = self["base"](x)
        if "gain" in self:
            y = y * self["gain"]
        return mx.addmm(y, x @ self["a"], self["b"])

    def add(self, residual: mx.array, x: mx.array) -> mx.array:
        """residual + self(x)"""
        if "gain" in self:
            return residual + self(x)
        return mx.addmm(self["base"].add(residual, x), x @ self["a"], self["b"])


class AdaptedExpertLinear(nn.Module):
    """A projection of each expert, with a (E, r, inputs) and b (E, outputs, r)."""

    def __init__(self, base: nn.Module, a: mx.array, b: mx.array):
        super().__init__()
        self.base = base
        self.a, self.b = _expert_linear(a), _expert_linear(b)

    def __call__(self, x: mx.array, experts: mx.array, rows: mx.array | None = None) -> mx.array:
        """As `ExpertLinear`."""
        inner = self["a"](x, experts, rows)
        own = None if rows is None else mx.arange(len(experts), dtype=mx.uint32)  # inner has a row for each pair
        return self["base"](x, experts, rows) + self["b"](inner, experts, own)

    def of(self, expert: int) -> Callable[[mx.array], mx.array]:
        """As `ExpertLinear`."""
        base, a, b = self["base"].of(expert), self["a"].of(expert), self["b"].of(expert)
        return lambda x: base(x) + b(a(x))


class AdaptedEmbedding(_Adapted):
    """Rows of a matrix by token ids, with a (r, hidden), b (V, r), gain (V,) or None."""

    def __call__(self, ids: mx.array) -> mx.array:
        x = self["base"](ids)
        if "gain" in self:
            x = x * self["gain"][ids][..., None]
        return x + self["b"][ids] @ self["a"]


class InputAndOutput(nn.Module):
    """In place of an embedding that the output is tied to, for a change of one of the two."""

    def __init__(self, embedding: nn.Module, head: nn.Module):
        super().__init__()
        self.embedding, self.head = embedding, head

    def __call__(self, ids: mx.array) -> mx.array:
        return self["embedding"](ids)

    def as_linear(self, x: mx.array) -> mx.array:
        return self["head"](x)


class TiedOutput(nn.Module):
    """The output projection of an embedding."""

    def __init__(self, embedding: nn.Module):
        super().__init__()
        self.embedding = embedding

    def __call__(self, x: mx.array) -> mx.array:
        return self["embedding"].as_linear(x)


def _expert_linear(weight: mx.array) -> ExpertLinear:
    made = ExpertLinear(1, 1, 1)
    made.weight = weight
    return made
