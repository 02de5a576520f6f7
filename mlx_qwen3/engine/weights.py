"""Whether packed weights stay packed in memory or are unpacked, and what they take: known before any is read."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import mlx.core as mx

from .. import blas
from ..errors import MemoryBudgetError, UsageError
from ..files.adapters import Adapter
from ..files.checkpoint import Checkpoint
from ..files.dtypes import FLOATS, dtype_name
from ..files.layout import Part
from ..files.sizes import gigabytes
from ..files.unpacked import is_packed
from ..model import kernels
from ..model.load import compute_dtype

PACKED, UNPACKED = "packed", "unpacked"
ROOM = 0.25  # of the budget: what weights that are unpacked by default leave at least to caches and activations


@dataclass(frozen=True)
class Weights:
    """The weights of a checkpoint in memory. Sizes are in bytes; both are equal if no matrix is packed."""

    packed: int
    unpacked: int
    quantized: bool  # whether any matrix of the checkpoint is packed
    dtype: mx.Dtype  # of the computation
    unpack: bool = False

    @property
    def nbytes(self) -> int:
        return self.unpacked if self.unpack else self.packed

    @property
    def name(self) -> str | None:
        """The choice as an option has it; None if there is nothing to choose."""
        return (UNPACKED if self.unpack else PACKED) if self.quantized else None

    @property
    def note(self) -> str | None:
        """One line on what becomes of packed weights; None if that is as anybody expects it."""
        if self.unpack:
            sizes = f"{gigabytes(self.unpacked)} instead of {gigabytes(self.packed)}"
            return f"the packed weights are unpacked to {dtype_name(self.dtype)}, {sizes}, to be multiplied faster"
        if not self.quantized or kernels.on_gpu():
            return None
        if blas.lacking():
            return "the weights stay packed: without a fast BLAS this CPU multiplies unpacked ones no faster"
        return (
            f"the weights stay packed, {gigabytes(self.packed)}; unpacked they would take {gigabytes(self.unpacked)} "
            "and be multiplied several times faster"
        )


def weights_of(
    checkpoint: Checkpoint, dtype: str | mx.Dtype | None = None, adapters: Sequence[Adapter] = ()
) -> Weights:
    """What the weights of a checkpoint take, from the headers of its files. Raises UsageError for an unknown dtype."""
    compute = compute_dtype(checkpoint, dtype)
    parts = checkpoint.parts.values()
    more = sum(adapter.nbytes(checkpoint.config, compute) for adapter in adapters)
    packed = more + sum(_loaded_bytes(part, compute) for part in parts)
    unpacked = more + sum(_unpacked_bytes(part, compute) for part in parts)
    return Weights(packed, unpacked, is_packed(checkpoint.parts), compute)


def _loaded_bytes(part: Part, dtype: mx.Dtype) -> int:
    return sum(
        leaf.nbytes // leaf.dtype.size * dtype.size if leaf.dtype in FLOATS else leaf.nbytes
        for leaf in part.leaves.values()
    )


def _unpacked_bytes(part: Part, dtype: mx.Dtype) -> int:
    if part.quantization is None:
        return _loaded_bytes(part, dtype)
    return part.leaves["weight"].nbytes * 8 // part.quantization.bits * dtype.size


def choose(
    checkpoints: Sequence[Checkpoint],
    dtype: str | mx.Dtype | None,
    weights: str | None,
    budget: int,
    room: int = 0,
    adapters: Sequence[Adapter] = (),
) -> list[Weights]:
    """What to do with the weights of models that share a budget; `check` says whether they fit.

    weights: packed, unpacked, or None for what serves: packed on a GPU, and on a CPU without a fast BLAS; else unpacked
    as far as the budget allows, the smallest model first. room: what the request needs beside the weights.
    adapters: of the first model.
    Raises UsageError for another word, or if all are to be packed and none is.
    """
    chosen = [weights_of(one, dtype, () if index else adapters) for index, one in enumerate(checkpoints)]
    if weights not in (None, PACKED, UNPACKED):
        raise UsageError(f"weights is {weights!r}; expected {PACKED} or {UNPACKED}")
    if weights == PACKED and not any(one.quantized for one in chosen):
        raise UsageError(
            "weights is packed, but the checkpoint is not quantized; leave it out, or convert with --quantize"
        )
    if weights is not None:
        return [replace(one, unpack=one.quantized and weights == UNPACKED) for one in chosen]
    if kernels.on_gpu() or blas.lacking():
        return chosen
    free = budget - max(room, int(ROOM * budget)) - sum(one.packed for one in chosen)
    for index in sorted(range(len(chosen)), key=lambda index: chosen[index].unpacked):
        one = chosen[index]
        if one.quantized and one.unpacked - one.packed <= free:
            chosen[index] = replace(one, unpack=True)
            free -= one.unpacked - one.packed
    return chosen


def check(chosen: Sequence[Weights], budget: int, subject: str = "the weights") -> None:
    """Raises MemoryBudgetError if the weights do not fit the budget together. `subject` begins the message."""
    need = sum(one.nbytes for one in chosen)
    if need <= budget:
        return
    packed, remedy = sum(one.packed for one in chosen), "use fewer bits (convert --quantize affine4)"
    if any(one.unpack for one in chosen):
        subject, remedy = f"{subject}, unpacked,", f"leave them packed, which takes {gigabytes(packed)},"
    raise MemoryBudgetError(
        f"{subject} take {gigabytes(need)} and the memory budget is {gigabytes(budget)}; {remedy} or a larger --memory"
    )
