"""Two models side by side on the same tokens: the relative difference of every step, and the first that leaves its
bound. Both go forward layer by layer, so that only one layer of each is in memory besides the weights.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from ..errors import UsageError
from ..files.checkpoint import dtype_name
from ..files.config import Qwen3Config
from ..model.qwen3 import Qwen3
from ..model.watch import watching
from .attention import score_blocks, softmax
from .flow import FLOW, SCORES, SOFTMAX, Step
from .probe import Probe, ScoreBlock

Blocks = Callable[[], Iterator[Any]]


@dataclass
class LayerSteps:
    """The arrays of one layer, MLX or torch, and a way to make its blocks of scores."""

    arrays: dict[str, Any] = field(default_factory=dict)
    blocks: Blocks | None = None


@dataclass(frozen=True)
class Difference:
    """||a - b|| / ||b|| of one step; None where either has a NaN or infinite value that the other lacks."""

    layer: int | None
    step: str
    relative: float | None
    bound: float

    @property
    def outside(self) -> bool:
        return self.relative is None or self.relative > self.bound


@dataclass(frozen=True)
class Comparison:
    against: str
    differences: tuple[Difference, ...]  # in the order of the forward pass

    @property
    def first_outside(self) -> Difference | None:
        return next((difference for difference in self.differences if difference.outside), None)


def compare(
    ours: Iterator[LayerSteps], theirs: Iterator[LayerSteps], layers: int, against: str, tolerance: float, growth: float
) -> Comparison:
    """The differences of `ours` to `theirs` (see `steps_of`), step by step.

    The bound of a step is `tolerance` for what its layer may add, and `growth` times the difference that came in with
    the layer's input: a fault shows in its own layer, and a sound layer behind it is not blamed.
    """
    found: list[Difference] = []
    for index, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        layer = index if index < layers else None
        incoming = found[-1].relative if found else 0.0
        bound = tolerance + growth * (incoming if incoming is not None else math.inf)
        found += [Difference(layer, name, value, bound) for name, value in _differences(a, b)]
        del a, b
    return Comparison(against, tuple(found))


def tolerance(bounds: Mapping[str, float], *models: Qwen3, same_weights: bool = False) -> float:
    """The largest of the `bounds`, by dtype or packing, that a model asks for."""
    found = []
    for model in models:
        found.append(bounds[dtype_name(model.norm.weight.dtype)])
        if not same_weights:
            found += [bounds[packing] for packing in _packings(model)]
    return max(found)


def check_same_shape(config: Qwen3Config, other: Qwen3Config, source: str, against: str) -> None:
    """Raises UsageError where two models do not have the same steps."""
    for name in (
        "num_hidden_layers",
        "hidden_size",
        "intermediate_size",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "vocab_size",
    ):
        mine, theirs = getattr(config, name), getattr(other, name)
        if mine != theirs:
            raise UsageError(
                f"{name} is {mine} in {source} and {theirs} in {against}; compare two forms of the same model"
            )


def steps_of(model: Qwen3, ids: mx.array) -> Iterator[LayerSteps]:
    """Layer by layer what the model's own forward pass of ids (B, L) shows, then final_norm and logits."""
    cache = model.make_cache(ids.shape[0])
    residuals = model.residuals(ids, cache)
    x = next(residuals)
    probe = Probe(model, cache, _Keeper())
    for _ in model.layers:
        probe.visitor = keeper = _Keeper()
        with watching(probe):
            x = next(residuals)
        mx.eval(x)
        yield keeper.kept
    hidden = model.norm(x)
    yield LayerSteps({"final_norm": hidden, "logits": model.logits(hidden)})


def reference_steps(folder: Path, ids: mx.array) -> Iterator[LayerSteps]:
    """The same of the plain torch reference. Raises UsageError where torch is not installed."""
    try:
        import torch

        from . import reference
    except ImportError:
        raise UsageError("--against torch needs torch; `pip install torch`, or compare with another SOURCE") from None
    model = reference.load_reference(folder)
    scale = reference.attention_scale(model.config)
    for steps in model.steps(torch.from_numpy(np.array(ids, dtype=np.int64))):
        yield LayerSteps(dict(steps), _blocks(steps["q_rope"], steps["k_cache"], scale) if "q_rope" in steps else None)


class _Keeper:
    """A visitor of the probe that keeps the arrays of one layer."""

    def __init__(self) -> None:
        self.kept = LayerSteps()

    def step(self, layer: int | None, step: Step, array: mx.array) -> None:
        self.kept.arrays[step.name] = array

    def scores(self, layer: int, q: mx.array, blocks: Callable[[], Iterator[ScoreBlock]], keys: int) -> None:
        self.kept.blocks = blocks


def _blocks(q: Any, k: Any, scale: float) -> Blocks:
    def blocks() -> Iterator[ScoreBlock]:
        for start, scores, visible in score_blocks(q, k, scale=scale):
            yield start, scores, softmax(scores), visible

    return blocks


def _differences(a: LayerSteps, b: LayerSteps) -> Iterator[tuple[str, float | None]]:
    hidden = _score_differences(a.blocks, b.blocks) if a.blocks and b.blocks else {}
    for step in FLOW:
        if step.name in a.arrays and step.name in b.arrays:
            yield step.name, _Sums().add(a.arrays[step.name], b.arrays[step.name]).relative
        elif step.name in hidden:
            yield step.name, hidden[step.name].relative


def _score_differences(a: Blocks, b: Blocks) -> Mapping[str, "_Sums"]:
    scores, weights = _Sums(), _Sums()
    for (_, score_a, weight_a, visible), (_, score_b, weight_b, _) in zip(a(), b(), strict=True):
        seen = None if visible is None else np.broadcast_to(_numpy(visible) > 0, score_a.shape)
        scores.add(score_a, score_b, seen)
        weights.add(weight_a, weight_b)
    return {SCORES.name: scores, SOFTMAX.name: weights}


class _Sums:
    """Squares of a difference and of what it is relative to, over several blocks."""

    def __init__(self) -> None:
        self._difference = self._reference = 0.0

    def add(self, a: Any, b: Any, where: np.ndarray | None = None) -> "_Sums":
        a, b = _numpy(a), _numpy(b)
        if where is not None:
            a, b = np.where(where, a, 0), np.where(where, b, 0)
        with np.errstate(invalid="ignore", over="ignore"):
            same = (a == b) | (np.isnan(a) & np.isnan(b))  # a NaN or infinity on both sides is no difference
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


def _packings(model: Qwen3) -> set[str]:
    """How modules are packed, as the rules name it: the bits of affine packings, else the mode."""
    packed = [module for _, module in model.named_modules() if hasattr(module, "bits")]
    return {str(module.bits) if module.mode == "affine" else module.mode for module in packed}
