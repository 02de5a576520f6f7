"""`verify --transformers`: compares the states of this package with those of transformers, layer by layer."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import mlx.core as mx

from ..compare.bounds import ROUNDED, SAME_WEIGHTS
from ..compare.comparison import STATES, Difference, differences
from ..compare.divergence import fixed_ids
from ..compare.layer_steps import LayerSteps
from ..compare.steps import TRANSFORMERS, check_installed, model_steps, transformers_steps
from ..errors import VerificationError
from ..files.adapted import AdaptedCheckpoint
from ..files.adapters import Adapter
from ..files.checkpoint import Checkpoint
from ..files.dtypes import FLOATS, dtype_name
from ..files.layout import Part
from ..model.load import load_model
from ..model.qwen3 import Qwen3
from ..progress import Progress, Stage, silent

OPTION = "--transformers"


@dataclass(frozen=True)
class StateDifference:
    """The difference of a state from transformers': norm of the difference over the norm, and the bound."""

    place: str
    relative: float
    bound: float


def check_transformers() -> None:
    """Raises UsageError if torch or transformers is not installed."""
    check_installed(TRANSFORMERS, OPTION)


def compare_with_transformers(
    result: Checkpoint,
    source: Checkpoint | None = None,
    progress: Progress = silent,
    adapters: Sequence[Adapter] = (),
) -> Iterator[StateDifference]:
    """Compare the embedding, every layer and the logits, in this order, both sides in float32.

    transformers gets the weights of `source` if it is given, `result` is not packed, and rounding cannot change which
    experts are chosen; else the unpacked weights of `result`. Both sides have the adapters. Raises UsageError if
    transformers is not installed, and VerificationError that names the first state past its bound.
    """
    check_transformers()
    theirs, bound = AdaptedCheckpoint(result, adapters) if adapters else result, SAME_WEIGHTS.limit
    if source is not None and not any(part.quantization for part in result.parts.values()):
        rounded = _bound(result.parts, source.parts)
        if not (result.config.moe and rounded > bound):
            theirs, bound = source, rounded
    ids = mx.array([fixed_ids(result.config)])
    ours = load_model(result, "fp32", adapters)
    yield from _compared(ours, transformers_steps(theirs, ids), ids, bound, TRANSFORMERS, progress)


def compare_with_merged(
    base: Checkpoint, adapters: Sequence[Adapter], progress: Progress = silent
) -> Iterator[StateDifference]:
    """The same, of the model with adapters beside its weights, with one that has them merged into its weights."""
    ids = mx.array([fixed_ids(base.config)])
    merged = model_steps(load_model(AdaptedCheckpoint(base, adapters), "fp32"), ids)
    ours = load_model(base, "fp32", adapters)
    yield from _compared(ours, merged, ids, SAME_WEIGHTS.limit, "the model with merged weights", progress)


def _compared(
    ours: Qwen3, theirs: Iterator[LayerSteps], ids: mx.array, bound: float, name: str, progress: Progress
) -> Iterator[StateDifference]:
    stage = Stage(f"comparing with {name}", len(ours.layers) + 2, "states")
    for difference in differences(model_steps(ours, ids), theirs, bound, only=STATES):
        if difference.step == "input" and difference.layer:  # the same as the output of the layer before
            continue
        yield _checked(difference, name)
        progress(stage, 1)


def _checked(difference: Difference, name: str) -> StateDifference:
    place = _place(difference)
    relative, bound = difference.relative, difference.bound
    if relative is None:
        raise VerificationError(
            f"{place} has NaN or infinite values where {name} has none, or none where it has some; all before it agrees"
        )
    if difference.outside:
        raise VerificationError(
            f"{place} differs from {name} by {relative:.3g} (relative norm), past {bound:g}; all before it agrees"
        )
    return StateDifference(place, relative, bound)


def _place(difference: Difference) -> str:
    if difference.layer is None:
        return "the logits (final norm, output matrix)"
    return "the embedding" if difference.step == "input" else f"layer {difference.layer}"


def _bound(result: Mapping[str, Part], source: Mapping[str, Part]) -> float:
    """The bound for the dtype with the fewest digits that a weight was rounded to."""
    rounded = [
        leaf.dtype
        for name, part in result.items()
        for leaf in part.leaves.values()
        if leaf.dtype in FLOATS and leaf.dtype != source[name].leaves["weight"].dtype
    ]
    return max((ROUNDED[dtype_name(dtype)].limit for dtype in rounded), default=SAME_WEIGHTS.limit)
