"""Packed matrices as the values that they stand for: tensors that are computed when they are read."""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import mlx.core as mx
import numpy as np

from .derived import Derivation, DerivedTensor
from .filling import BYTES, KINDS, Packed, Range
from .headers import StoredTensor
from .layout import Part
from .quantization import Quantization
from .values import TABLES, bits_of, cast, read_rows, stored


def is_packed(parts: Mapping[str, Part]) -> bool:
    """Whether any matrix is packed."""
    return any(part.quantization for part in parts.values())


def unpacked_parts(parts: Mapping[str, Part], dtype: mx.Dtype) -> dict[str, Part]:
    """The parts, and in place of those that are packed their values in `dtype`, bit for bit as MLX dequantizes them.

    Scales and biases are cast to `dtype` first, as they are if the matrix stays packed.
    """
    return {name: _unpacked(part, part.quantization, dtype) for name, part in parts.items()}


def _unpacked(part: Part, packing: Quantization | None, dtype: mx.Dtype) -> Part:
    if packing is None:
        return part
    weight, sources = part.leaves["weight"], tuple(leaf.name for leaf in part.leaves.values())
    if dtype == mx.float32:
        how = Derivation(partial(read_rows, part.leaves, packing), sources, dtype, "unpacked")
        # Leaves that are computed themselves may share what they have read last, so one thread reads them.
        if not any(leaf.made for leaf in part.leaves.values()):
            fill, ranges = partial(_fill, part.leaves, packing), partial(_ranges, part.leaves)
            how = replace(how, fill=fill, ranges=ranges, packed=_packed(packing))
    else:
        how = Derivation(partial(_rows_by_mlx, part.leaves, packing, dtype), sources, dtype, "unpacked")
    shape = (weight.shape[0], weight.shape[1] * 32 // packing.bits)
    return replace(
        part,
        leaves={"weight": DerivedTensor(weight.name, dtype, shape, weight.file, 0, derivation=how)},
        quantization=None,
    )


def _fill(leaves: Mapping[str, StoredTensor], packing: Quantization, first: int, count: int, out: memoryview) -> None:
    read_rows(leaves, packing, first, count, np.frombuffer(out, np.float32).reshape(count, -1))


def _ranges(leaves: Mapping[str, StoredTensor], first: int) -> list[Range]:
    """Where the rows from `first` on lie."""
    widths = ((leaf, leaf.nbytes // leaf.shape[0]) for leaf in leaves.values())
    return [
        Range(leaf.start + first * width, width, leaf.file.descriptor, KINDS.get(leaf.dtype, BYTES))
        for leaf, width in widths
    ]


def _packed(packing: Quantization) -> Packed:
    codes, scales = (table.ctypes.data for table in TABLES[packing.mode]) if packing.mode in TABLES else (0, 0)
    return Packed(packing.bits, packing.group_size, codes, scales)


def _rows_by_mlx(
    leaves: Mapping[str, StoredTensor], packing: Quantization, dtype: mx.Dtype, first: int, count: int
) -> np.ndarray:
    """The bits of rows in a dtype that NumPy does not have, or in which it would round in another way."""
    weight, scales, *biases = (cast(stored(leaf.rows(first, count)), dtype, leaf.name) for leaf in leaves.values())
    how = (packing.group_size, packing.bits, packing.mode)
    values = mx.dequantize(weight, scales, biases[0] if biases else None, *how)
    return bits_of(cast(values, dtype, leaves["weight"].name)).copy()
