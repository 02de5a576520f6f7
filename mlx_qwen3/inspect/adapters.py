"""What adapters change: ranks, scales, and how large the change of each matrix is beside the matrix."""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np

from ..files.adapted import AdaptedCheckpoint
from ..files.adapter_reader import EMBEDDING, HEAD
from ..files.adapters import Adapter
from ..files.checkpoint import Checkpoint
from ..files.layout import Part
from ..files.names import kind_of
from ..files.values import read_rows
from ..table import Table, in_one_notation

BLOCK_BYTES = 1 << 24  # of a matrix, float32, that are compared at a time


@dataclass(frozen=True)
class AdapterRow:
    """What one adapter does to one kind of part. A change is its norm over that of the weight."""

    adapter: str  # as it was asked for
    form: str
    part: str  # a kind: self_attn.q_proj
    parts: int
    ranks: tuple[int, ...]  # different ones, ascending; empty if the weights are replaced
    scales: tuple[float, ...]
    change: float | None  # the median; None if one is not finite
    largest: float | None
    largest_in: str


def adapter_rows(base: Checkpoint, adapters: Sequence[Adapter]) -> list[AdapterRow]:
    """A row for each adapter and kind of part. Each adapter is compared with the base alone."""
    return [row for adapter in adapters for row in _rows(base, adapter)]


def adapter_table(rows: Sequence[AdapterRow]) -> Table:
    changes = in_one_notation([value for row in rows for value in (row.change, row.largest)])
    cells = [
        [row.adapter, row.form, row.part, str(row.parts), _span(row.ranks), _span(row.scales), *own, row.largest_in]
        for row, own in zip(rows, zip(changes[::2], changes[1::2], strict=True), strict=True)
    ]
    columns = ("adapter", "kind", "part", "matrices", "rank", "scale", "change", "largest", "in")
    note = "change: norm of what is added to a weight, over the norm of the weight; the median of the matrices"
    return Table("Adapters", columns, cells, "lllrrr..l", notes=(note,), drop=("kind", "scale", "adapter"))


def _rows(base: Checkpoint, adapter: Adapter) -> Iterator[AdapterRow]:
    parts = AdaptedCheckpoint(base, [adapter]).parts
    kinds: dict[str, list[str]] = defaultdict(list)
    for part in parts:  # in the order of the forward pass
        if part in adapter.low_rank or part in adapter.whole:
            kinds[kind_of(part)].append(part)
    for kind, names in kinds.items():
        changes = {name: _change(base.parts, parts[name]) for name in names}
        low_rank = [adapter.low_rank[name] for name in names if name in adapter.low_rank]
        finite = all(map(math.isfinite, changes.values()))
        worst = max(names, key=lambda name: changes[name] if math.isfinite(changes[name]) else math.inf)
        yield AdapterRow(
            adapter=adapter.asked,
            form=f"{adapter.config.form} {adapter.config.method}",
            part=kind,
            parts=len(names),
            ranks=tuple(sorted({change.rank for change in low_rank})),
            scales=tuple(sorted({change.scale for change in low_rank})),
            change=median(changes.values()) if finite else None,
            largest=changes[worst] if finite else None,
            largest_in=worst,
        )


def _change(base: Mapping[str, Part], merged: Part) -> float:
    """|merged - base| / |base|"""
    plain = base[EMBEDDING if merged.name == HEAD and HEAD not in base else merged.name]
    added = total = 0.0
    shape = merged.leaves["weight"].shape
    step = max(1, BLOCK_BYTES // (4 * math.prod(shape[1:])))
    for first in range(0, shape[0], step):
        count = min(step, shape[0] - first)
        weight = read_rows(plain.leaves, plain.quantization, first, count).astype(np.float64)
        added += float(np.square(read_rows(merged.leaves, None, first, count) - weight).sum())
        total += float(np.square(weight).sum())
    return math.sqrt(added / total) if total else math.inf if added else 0.0


def _span(values: Sequence[float]) -> str:
    if not values:
        return "-"
    return f"{values[0]:.4g}" if len(values) == 1 else f"{values[0]:.4g} to {values[-1]:.4g}"
