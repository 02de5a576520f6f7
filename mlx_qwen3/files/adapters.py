"""Adapters of PEFT and mlx-lm: every tensor accounted for, as the low-rank change of one matrix or as a whole weight.

A part is named as in names.py. `embed_tokens` is the matrix that tokens are looked up in, and `lm_head` is the output
matrix, also of a model that uses one matrix for both: an adapter may change one of them alone.

r rank, V vocabulary
"""

import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path

import mlx.core as mx
import numpy as np

from ..errors import CheckpointError, UsageError
from . import adapter_config
from .adapter_config import AdapterConfig, read_config
from .adapter_reader import EMBEDDING, HEAD, LowRank, Reader
from .config import Qwen3Config
from .fingerprint import samples
from .headers import StoredTensor, TensorFile, tensors_of
from .hub import resolve_adapter
from .names import NAME_MAP, fusions, part_shapes
from .reading import exists, short
from .values import Floats, floats_of

PIECE, PIECE_ROWS = 1 << 18, 16  # of a product: multiplications, and rows. OpenBLAS takes more threads for more of them


@dataclass(frozen=True)
class Adapter:
    """The changes of one adapter, by part. Nothing but headers is read before it is asked for."""

    source: str
    config: AdapterConfig
    strength: float  # which its scale is multiplied by
    low_rank: Mapping[str, LowRank]
    whole: Mapping[str, StoredTensor]  # weights that take the place of the model's, before the low-rank changes
    file: TensorFile
    shapes: Mapping[str, tuple[int, ...]]  # of the model's parts

    @property
    def asked(self) -> str:
        """As a command names it."""
        return self.source if self.strength == 1 else f"{self.source}={self.strength:g}"

    @property
    def placed(self) -> str:
        """The same with its folder, for another process."""
        folder = str(self.file.path.parent.absolute())
        return folder if self.strength == 1 else f"{folder}={self.strength!r}"

    @cached_property
    def fingerprint(self) -> str:
        """Differs for another adapter or strength, or for a copy of the file."""
        digest = hashlib.sha256(f"{self.strength} {sorted(self.config.raw.items(), key=str)}".encode())
        digest.update(f"{self.file.size} {self.file.status.st_mtime_ns}".encode() + self.file.header)
        for tensor in self.tensors():
            for sample in samples(tensor):
                digest.update(sample)
        return digest.hexdigest()

    def tensors(self) -> Iterator[StoredTensor]:
        """Every tensor of the file, all of which are used."""
        return iter(tensors_of(self.file))

    def nbytes(self, config: Qwen3Config, dtype: mx.Dtype) -> int:
        """What its arrays take in memory in a dtype, beside the model's own."""
        heights = {name: shape[0] for name, shape in self.shapes.items()}
        inputs = {name: shape[-1] for name, shape in self.shapes.items()}
        fused = [fusion.parts for fusion in fusions(config, NAME_MAP).values()]
        fused += [(name,) for name in self.low_rank if not any(name in parts for parts in fused)]
        values = sum(math.prod(self.shapes[name]) for name in self.whole)
        for parts in fused:
            changes = [self.low_rank[name] for name in parts if name in self.low_rank]
            rows = sum(heights[name] for name in parts)
            if ".experts." in parts[0] and "down_proj" not in parts[0]:
                rows *= 2  # gate and up of an expert are one matrix
            values += sum(change.rank for change in changes) * (inputs[parts[0]] + rows)
            values += rows if any(change.magnitude for change in changes) else 0  # the gain
        return values * dtype.size


def open_adapter(adapter: "Adapter | str | Path", config: Qwen3Config) -> Adapter:
    """An adapter for a model of this config, from FOLDER|HUBID[=SCALE], or the adapter itself.

    Raises SourceError, ConfigError or CheckpointError that names what is missing, not expected or of another shape, and
    UsageError for a SCALE that cannot be.
    """
    if isinstance(adapter, Adapter):
        return adapter
    source, strength = _parse(str(adapter))
    folder = resolve_adapter(source)
    settings = read_config(folder)
    shapes = _shapes(config)
    file = TensorFile(_weights(folder, settings))
    low_rank, whole = Reader(source, settings, config, shapes, file).read()
    found = Adapter(source, settings, strength, low_rank, whole, file, shapes)
    return found if strength == 1 else _scaled(found)


def merged(weight: Floats, part: str, adapters: Sequence[Adapter], first: int = 0) -> Floats:
    """Rows of a part's weight, from row `first` on, with the adapters merged into it one after the other, float32.

    The norms of DoRA are those of the base with its own change alone, as in PEFT.
    """
    rows, base = slice(first, first + len(weight)), weight
    for adapter in adapters:
        if part in adapter.whole:
            base = weight = floats_of(adapter.whole[part].rows(first, len(weight)))
        if part in adapter.low_rank:
            a, b, magnitude = _arrays(adapter.low_rank[part])
            delta = _product(b[rows], a)
            weight = weight + delta
            if magnitude is not None:
                weight *= (magnitude[rows] / np.linalg.norm(base + delta, axis=1))[:, None]
    return weight


def _product(b: Floats, a: Floats) -> Floats:
    """b @ a, in pieces so small that a BLAS gives each to one thread. In a merge two threads compute digests meanwhile;
    those of a BLAS would wait for a processor, and for each other, many times longer than the product takes.
    """
    result = np.empty((len(b), a.shape[1]), np.float32)
    width = max(1, PIECE // (PIECE_ROWS * len(a)))
    for row in range(0, len(b), PIECE_ROWS):
        rows = slice(row, row + PIECE_ROWS)
        for column in range(0, a.shape[1], width):
            columns = slice(column, column + width)
            np.matmul(b[rows], a[:, columns], out=result[rows, columns])
    return result


@lru_cache(maxsize=2)
def _arrays(change: LowRank) -> tuple[Floats, Floats, Floats | None]:
    """Kept for the rows that come next: a matrix is merged block by block."""
    return change.arrays()


def unties(config: Qwen3Config, adapters: Sequence[Adapter]) -> bool:
    """Whether a model with one matrix for input and output has two of them with these adapters."""
    return config.tie_word_embeddings and any(
        changes.get(EMBEDDING) != changes.get(HEAD) for a in adapters for changes in (a.low_rank, a.whole)
    )


def check_beside(folder: Path, adapters: Sequence[Adapter]) -> None:
    """Raises CheckpointError if the folder of a model also holds an adapter that is not one of `adapters`."""
    own = [adapter for adapter in adapters if adapter.file.path.parent.resolve() == folder.resolve()]
    if adapter_config.has_adapter(folder) and not own:
        raise CheckpointError(
            f"{folder} holds a model and an adapter, which transformers would apply; give the folder as --adapter too, "
            f"or remove its {adapter_config.FILE}"
        )


def _parse(text: str) -> tuple[str, float]:
    """(source, scale) of FOLDER|HUBID[=SCALE]. A folder may have an = in its name."""
    source, equals, scale = text.rpartition("=")
    if not equals or exists(Path(text).expanduser()):
        return text, 1.0
    try:
        number = float(scale)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UsageError(
            f"the adapter {short(text)} has the scale {scale[:40]!r}; expected a number, as in {source}=0.5"
        )
    return source, number


def _weights(folder: Path, settings: AdapterConfig) -> Path:
    if exists(path := folder / settings.weights_file):
        return path
    if exists(folder / "adapter_model.bin"):
        raise CheckpointError(
            f"{folder} has its adapter in adapter_model.bin, a pickle file, which can run code when it is opened; "
            "save it with PEFT's save_pretrained, which writes safetensors"
        )
    raise CheckpointError(f"{folder} has no {settings.weights_file}, which its {adapter_config.FILE} goes with")


def _scaled(adapter: Adapter) -> Adapter:
    """With its strength. Raises UsageError if it has no meaning."""
    name = f"{short(adapter.source)}={adapter.strength:g}"
    if any(change.magnitude for change in adapter.low_rank.values()):
        raise UsageError(f"{name}: a DoRA adapter sets the norm of every row, which a scale does not fit; leave it out")
    if replaced := [part for part, tensor in adapter.whole.items() if not tensor.name.endswith("base_layer.weight")]:
        raise UsageError(f"{name}: this adapter replaces {replaced[0]}, which a scale does not fit; leave it out")
    scaled = {part: replace(c, scale=c.scale * adapter.strength) for part, c in adapter.low_rank.items()}
    return replace(adapter, low_rank=scaled)


def _shapes(config: Qwen3Config) -> dict[str, tuple[int, ...]]:
    shapes = part_shapes(config)
    return {**shapes, HEAD: shapes[EMBEDDING]}
