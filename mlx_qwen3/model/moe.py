"""Mixture of experts: a router chooses a few experts for each token, and their outputs are added by weight.

T tokens, E experts, k of them for each token, P = T * k pairs of a token and one of its experts
"""

from collections.abc import Callable, Sequence
from functools import lru_cache

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..files.moe import MoE as Settings
from ..files.values import to_mlx
from . import kernels
from .linear import ExpertLinear, Linear
from .view import View

# Pairs for each expert of the model from which the pairs are sorted by expert, so that the weights of an expert are
# read once: on Metal by its kernel for sorted pairs, on a CPU by one product for each expert. dev/LOG.md has the times.
PAIRS_TO_SORT = {mx.gpu: 4, mx.cpu: 1}
Projection = Callable[[mx.array], mx.array]
Steps = tuple[mx.array, mx.array, mx.array]  # of P pairs: gate and up (P, 2 inner), activation (P, inner), (P, hidden)


class Experts(nn.Module):
    """The MLPs of all experts, each matrix a stack."""

    def __init__(self, settings: Settings, hidden: int):
        super().__init__()
        self.count, inner = settings.num_experts, settings.moe_intermediate_size
        self.gate_up_proj = ExpertLinear(self.count, hidden, 2 * inner)
        self.down_proj = ExpertLinear(self.count, inner, hidden)

    def __call__(self, x: mx.array, chosen: mx.array, traced: bool) -> tuple[Steps, mx.array | None]:
        """The steps of all pairs, and in which row each pair is. None: pair i is in row i, the k of a token together.

        x (T, hidden) and chosen (T, k). traced: no value can be read now, because the graph may be compiled.
        """
        T, k = chosen.shape
        pairs = chosen.reshape(-1)
        few = T * k < PAIRS_TO_SORT[mx.default_device().type] * self.count
        if few or (traced and not kernels.on_gpu()):
            tokens, every = _rows(T, k)
            gate_up = self["gate_up_proj"](x, pairs, tokens)
            inner = kernels.swiglu(gate_up)
            return (gate_up, inner, self["down_proj"](inner, pairs, every)), None
        if not kernels.on_gpu():
            return expert_by_expert(x, chosen, self["gate_up_proj"].of, self["down_proj"].of), None
        order = mx.argsort(pairs)
        ascending = pairs[order]
        gate_up = self["gate_up_proj"](x[order // k], ascending)
        inner = kernels.swiglu(gate_up)
        return (gate_up, inner, self["down_proj"](inner, ascending)), mx.argsort(order)


def expert_by_expert(
    x: mx.array, chosen: mx.array, gate_up_of: Callable[[int], Projection], down_of: Callable[[int], Projection]
) -> Steps:
    """The steps of all pairs in their order, with one product for all tokens of an expert.

    A CPU's gather_mm has one for each pair.
    """
    pairs, k = np.array(chosen).reshape(-1), chosen.shape[1]
    order = np.argsort(pairs, kind="stable")
    experts, counts = np.unique(pairs, return_counts=True)
    places, found = np.split(order, np.cumsum(counts)[:-1]), []
    for expert, own in zip(experts.tolist(), places, strict=True):
        gate_up = gate_up_of(expert)(x[to_mlx(own // k)])
        inner = kernels.swiglu(gate_up)
        found.append((gate_up, inner, down_of(expert)(inner)))
    gate_up, inner, y = (_whole(parts, places) for parts in zip(*found, strict=True))
    return gate_up, inner, y


def _whole(parts: Sequence[mx.array], places: Sequence[np.ndarray]) -> mx.array:
    """One array with the rows of `parts` in these places. Joined first and then sorted, they would be there thrice."""
    whole = mx.zeros((sum(map(len, places)), parts[0].shape[1]), parts[0].dtype)
    for part, own in zip(parts, places, strict=True):
        whole[to_mlx(own)] = part
    return whole


class MoE(nn.Module):
    """In place of the MLP of a layer."""

    def __init__(self, settings: Settings, hidden: int):
        super().__init__()
        self.settings = settings
        self.gate = Linear(hidden, settings.num_experts)
        self.experts = Experts(settings, hidden)

    def __call__(self, x: mx.array, residual: mx.array, view: View) -> mx.array:
        """residual + moe(x), all (T, hidden)."""
        scores = self["gate"](x)  # (T, E)
        chosen, weights = self.route(scores)  # (T, k) each
        steps, places = self["experts"](x, chosen, view.traced)
        y = steps[-1] if places is None else steps[-1][places]
        y = y.reshape(*chosen.shape, -1)  # (T, k, hidden)
        if view.watch is not None:
            self._show(scores, chosen, weights, [s if places is None else s[places] for s in steps], view)
        return mx.addmm(residual[:, None], weights[:, None], y)[:, 0]

    def route(self, scores: mx.array) -> tuple[mx.array, mx.array]:
        """The chosen experts (T, k) and their weights, in the dtype of the router's scores (T, E).

        Of experts that tie, those with the higher number are chosen.
        """
        k = self.settings.num_experts_per_tok
        chosen = mx.argpartition(scores, -k, axis=-1)[:, -k:]
        if self.settings.norm_topk_prob:
            # The same as the softmax over all experts, divided by the sum of the chosen: it has the same numerators.
            best = mx.take_along_axis(scores, chosen, axis=-1)
            return chosen, mx.softmax(best.astype(mx.float32), axis=-1).astype(scores.dtype)
        weights = mx.softmax(scores.astype(mx.float32), axis=-1)  # transformers rounds only the chosen weights
        return chosen, mx.take_along_axis(weights, chosen, axis=-1).astype(scores.dtype)

    def _show(self, scores: mx.array, chosen: mx.array, weights: mx.array, steps: list[mx.array], view: View) -> None:
        """Show the steps to the listener, the k experts of a token in the order of their numbers."""
        T, k = chosen.shape
        order = mx.argsort(chosen, axis=-1)
        pairs = (order + k * mx.arange(T)[:, None]).reshape(-1)
        weights = mx.take_along_axis(weights, order, axis=-1)
        gate_up, inner, y = (step[pairs].reshape(T, k, -1) for step in steps)
        view.show("router", scores)
        view.show("experts", mx.take_along_axis(chosen, order, axis=-1), weights)
        view.show("expert_gate_up", gate_up)
        view.show("expert_activation", inner)
        view.show("expert_down", y)
        view.show("down", (weights[:, None] @ y)[:, 0])


@lru_cache(maxsize=16)
def _rows(T: int, k: int) -> tuple[mx.array, mx.array]:
    """Of every pair: its token, and its own number. As constants, so that no graph computes them."""
    pairs = np.arange(T * k, dtype=np.uint32)
    return to_mlx(pairs // np.uint32(k)), to_mlx(pairs)
