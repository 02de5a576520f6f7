"""A checkpoint with adapters merged into its weights: to the rest of the package it is one like any other.

A merged weight is computed in float32, for the rows that are read. So nothing is ever in memory as a whole, and what
follows - rounding to another dtype, packing - starts from the exact sum.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from .adapter_config import FILE
from .adapter_reader import EMBEDDING, HEAD
from .adapters import Adapter, merged, unties
from .checkpoint import Checkpoint, Stamp, stamp_of, unchanged
from .config import Qwen3Config
from .derived import Derivation, DerivedTensor
from .headers import StoredTensor, TensorFile
from .layout import Part
from .values import read_rows


class AdaptedCheckpoint(Checkpoint):
    """The checkpoint `base` with adapters, merged one after the other."""

    def __init__(self, base: Checkpoint, adapters: Sequence[Adapter]):
        super().__init__(base.folder)
        self.base, self.adapters = base, tuple(adapters)

    @property
    def raw_config(self) -> Mapping[str, Any]:
        return {**self.base.raw_config, "tie_word_embeddings": self.config.tie_word_embeddings}

    @cached_property
    def config(self) -> Qwen3Config:
        """That of the base. If only one of two tied matrices is adapted, they are tied no longer."""
        config = self.base.config
        return replace(config, tie_word_embeddings=False) if unties(config, self.adapters) else config

    @property
    def files(self) -> tuple[TensorFile, ...]:
        return self.base.files

    @property
    def tensors(self) -> dict[str, StoredTensor]:
        """Those of the base: what the adapters have is in `parts`."""
        return self.base.tensors

    @cached_property
    def parts(self) -> dict[str, Part]:
        parts = dict(self.base.parts)
        if self.base.config.tie_word_embeddings and not self.config.tie_word_embeddings:
            parts[HEAD] = replace(parts[EMBEDDING], name=HEAD)
        changed = {part for adapter in self.adapters for part in (*adapter.low_rank, *adapter.whole)}
        return {name: self._merged(part) if name in changed else part for name, part in parts.items()}

    def check_repeated_head(self) -> None:
        self.base.check_repeated_head()

    def stamps(self) -> dict[str, Stamp]:
        """Those of the base by name, and those of the adapters' files by path."""
        return self.base.stamps() | {str(path): stamp_of(path) for path in self.adapter_files()}

    def changed(self, before: Mapping[str, Stamp]) -> str | None:
        adapters = {str(path): path for path in self.adapter_files()}
        of_base = self.base.changed({name: stamp for name, stamp in before.items() if name not in adapters})
        again = (name for name, path in adapters.items() if not unchanged(path, before[name]))
        return of_base or next(again, None)

    def adapter_files(self) -> list[Path]:
        return [path for adapter in self.adapters for path in files_of(adapter)]

    def _merged(self, part: Part) -> Part:
        changes = [a for a in self.adapters if part.name in a.low_rank or part.name in a.whole]
        stored = part.leaves["weight"]
        sources = (*(name for leaf in part.leaves.values() for name in leaf.sources), *_names(changes, part.name))
        names = " and ".join(f"{adapter.source} (times {adapter.strength:g})" for adapter in changes)
        rows = partial(_rows, part, changes)
        kept = part.float_dtype
        how = Derivation(rows, tuple(dict.fromkeys(sources)), kept, f"merged in float32 with adapter {names}")
        shape = changes[0].shapes[part.name]
        weight = DerivedTensor(stored.name, mx.float32, shape, stored.file, 0, derivation=how)
        return Part(part.name, {"weight": weight}, None)


def files_of(adapter: Adapter) -> list[Path]:
    """The absolute paths of its files."""
    weights = adapter.file.path.absolute()
    return [weights.parent / FILE, weights]


def _rows(part: Part, adapters: Sequence[Adapter], first: int, count: int) -> np.ndarray:
    return merged(read_rows(part.leaves, part.quantization, first, count), part.name, adapters, first)


def _names(adapters: Sequence[Adapter], part: str) -> Iterator[str]:
    """The names of the adapters' tensors that a part is made of."""
    for adapter in adapters:
        if part in adapter.whole:
            yield adapter.whole[part].name
        if change := adapter.low_rank.get(part):
            yield from (tensor.name for tensor in (change.a, change.b, change.magnitude) if tensor)
