"""Two models side by side on the same tokens: the relative difference of every step, and the first past its bound.

Both sides compute layer by layer (see steps.py), so that only one layer of each is in memory besides the weights.
"""

import math
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import UsageError
from ..files.config import Qwen3Config
from .bounds import GROWTH
from .experts import AFTER, CHOSEN, PAIRED, Choice, Choices, as_numpy, choices_of, relative_norm, squares
from .flow import FLOW, SCORES, SOFTMAX
from .layer_steps import Blocks, LayerSteps

STATES = ("input", "output", "logits")  # the residual stream and the logits
ALL = tuple(step.name for step in FLOW)
SHAPE = (
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
    "moe",
)


@dataclass(frozen=True)
class Difference:
    """||a - b|| / ||b|| of one step; None if one side has a NaN or infinite value that the other side lacks.

    Steps inside experts are compared where both sides chose the same expert; `expert` is the first one past the bound,
    and then `relative` is its own. Of `chosen_experts`, `relative` is the share of the choices that differ, `bound` of
    those that near ties explain, and `choice` the first that differs.
    """

    layer: int | None  # None after the layers
    step: str
    relative: float | None
    bound: float
    expert: int | None = None
    choice: Choice | None = None

    @property
    def outside(self) -> bool:
        return self.relative is None or self.relative > self.bound


@dataclass(frozen=True)
class Comparison:
    """What `differences` found, and what the model was compared with."""

    against: str
    differences: tuple[Difference, ...]  # in the order of the forward pass

    @property
    def first_outside(self) -> Difference | None:
        return next((difference for difference in self.differences if difference.outside), None)


def differences(
    ours: Iterator[LayerSteps],
    theirs: Iterator[LayerSteps],
    bound: float,
    growth: float = 0.0,
    only: Container[str] = ALL,
) -> Iterator[Difference]:
    """Compare two sides step by step, in the order of the forward pass; `only` names the steps to compare.

    A step may differ by `bound`, plus `growth` times the difference of its layer's input. So a mistake shows in its own
    layer, and a correct layer after it is not reported. If the sides decide a near tie of a router differently, the
    states of that token are not compared in that layer; the layers after it have at least the growth of correct models.
    """
    incoming: float | None = 0.0
    for index, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        layer = None if "logits" in b.arrays else index
        allowed = bound + growth * (incoming if incoming is not None else math.inf) if growth else bound
        choices = choices_of(a.arrays, b.arrays, allowed)
        for difference in _layer_differences(layer, a, b, only, allowed, choices):
            yield difference
            incoming = difference.relative
        if choices and choices.explained.any():
            incoming = _Sums().add(a.arrays["output"], b.arrays["output"]).relative
            growth = growth or GROWTH.limit
        del a, b  # or two layers of each side would be in memory


def check_same_shape(config: Qwen3Config, other: Qwen3Config, source: str, against: str) -> None:
    """Raises UsageError if two models do not have the same steps."""
    for name in SHAPE:
        mine, theirs = getattr(config, name), getattr(other, name)
        if mine != theirs:
            raise UsageError(
                f"{name} is {mine} in {source} and {theirs} in {against}; compare two forms of the same model"
            )


def _layer_differences(
    layer: int | None, a: LayerSteps, b: LayerSteps, only: Container[str], bound: float, choices: Choices | None
) -> Iterator[Difference]:
    inside = SCORES.name in only or SOFTMAX.name in only
    attention = _attention_differences(a.blocks, b.blocks) if inside and a.blocks and b.blocks else {}
    for name in (name for name in ALL if name in only):
        if name in attention:
            yield Difference(layer, name, attention[name].relative, bound)
        if name not in a.arrays or name not in b.arrays:
            continue
        if choices and name == CHOSEN:
            yield Difference(layer, name, *choices.shares, choice=choices.first)
        elif choices and name in PAIRED:
            relative, expert = choices.difference(a.arrays[name], b.arrays[name])
            yield Difference(layer, name, relative, bound, expert)
        else:
            where = ~choices.explained[..., None] if choices and name in AFTER else None
            yield Difference(layer, name, _Sums().add(a.arrays[name], b.arrays[name], where).relative, bound)


def _attention_differences(a: Blocks, b: Blocks) -> Mapping[str, "_Sums"]:
    """The differences of the scores and the weights, which exist only block by block."""
    scores, weights = _Sums(), _Sums()
    for (_, score_a, weight_a, visible), (_, score_b, weight_b, _) in zip(a(), b(), strict=True):
        seen = None if visible is None else np.broadcast_to(as_numpy(visible) > 0, score_a.shape)
        scores.add(score_a, score_b, seen)
        weights.add(weight_a, weight_b)
    return {SCORES.name: scores, SOFTMAX.name: weights}


class _Sums:
    """Sums of squares, over several blocks: of the difference, and of the reference."""

    def __init__(self) -> None:
        self._difference = self._reference = 0.0

    def add(self, a: Any, b: Any, where: np.ndarray | None = None) -> "_Sums":
        a, b = as_numpy(a), as_numpy(b)
        if where is not None:
            a, b = np.where(where, a, 0), np.where(where, b, 0)
        difference, reference = squares(a, b)
        self._difference += float(difference.sum())
        self._reference += float(reference.sum())
        return self

    @property
    def relative(self) -> float | None:
        return relative_norm(self._difference, self._reference)
