"""Two models side by side on the same tokens: the relative difference of every step, and the first past its bound.

Both sides compute layer by layer (see steps.py), so that only one layer of each is in memory besides the weights.
"""

import math
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from ..errors import UsageError
from ..files.config import Qwen3Config
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
    """||a - b|| / ||b|| of one step; None if one side has a NaN or infinite value that the other side lacks."""

    layer: int | None  # None after the layers
    step: str
    relative: float | None
    bound: float

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
    layer, and a correct layer after it is not reported.
    """
    incoming: float | None = 0.0
    for index, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        layer = None if "logits" in b.arrays else index
        allowed = bound + growth * (incoming if incoming is not None else math.inf) if growth else bound
        for name, value in _layer_differences(a, b, only):
            yield Difference(layer, name, value, allowed)
            incoming = value
        del a, b  # or two layers of each side would be in memory


def check_same_shape(config: Qwen3Config, other: Qwen3Config, source: str, against: str) -> None:
    """Raises UsageError if two models do not have the same steps."""
    for name in SHAPE:
        mine, theirs = getattr(config, name), getattr(other, name)
        if mine != theirs:
            raise UsageError(
                f"{name} is {mine} in {source} and {theirs} in {against}; compare two forms of the same model"
            )


def _layer_differences(a: LayerSteps, b: LayerSteps, only: Container[str]) -> Iterator[tuple[str, float | None]]:
    inside = SCORES.name in only or SOFTMAX.name in only
    attention = _attention_differences(a.blocks, b.blocks) if inside and a.blocks and b.blocks else {}
    for name in ALL:
        if name not in only:
            continue
        if name in a.arrays and name in b.arrays:
            yield name, _Sums().add(a.arrays[name], b.arrays[name]).relative
        elif name in attention:
            yield name, attention[name].relative


def _attention_differences(a: Blocks, b: Blocks) -> Mapping[str, "_Sums"]:
    """The differences of the scores and the weights, which exist only block by block."""
    scores, weights = _Sums(), _Sums()
    for (_, score_a, weight_a, visible), (_, score_b, weight_b, _) in zip(a(), b(), strict=True):
        seen = None if visible is None else np.broadcast_to(_numpy(visible) > 0, score_a.shape)
        scores.add(score_a, score_b, seen)
        weights.add(weight_a, weight_b)
    return {SCORES.name: scores, SOFTMAX.name: weights}


class _Sums:
    """Sums of squares, over several blocks: of the difference, and of the reference."""

    def __init__(self) -> None:
        self._difference = self._reference = 0.0

    def add(self, a: Any, b: Any, where: np.ndarray | None = None) -> "_Sums":
        a, b = _numpy(a), _numpy(b)
        if where is not None:
            a, b = np.where(where, a, 0), np.where(where, b, 0)
        with np.errstate(invalid="ignore", over="ignore"):
            same = (a == b) | (np.isnan(a) & np.isnan(b))  # a NaN or infinity on both sides is not a difference
            self._difference += float(np.square(np.where(same, 0, a - b), dtype=np.float64).sum())
            self._reference += float(np.square(np.where(np.isfinite(b), b, 0), dtype=np.float64).sum())
        return self

    @property
    def relative(self) -> float | None:
        if not math.isfinite(self._difference):
            return None
        if self._difference == 0:
            return 0.0
        return math.sqrt(self._difference / self._reference) if self._reference else None


def _numpy(x: Any) -> np.ndarray:
    return np.array(x.astype(mx.float32)) if isinstance(x, mx.array) else x.float().numpy()
