"""Stored bytes as values, for MLX and for NumPy: the only place where one becomes the other.

The NumPy functions unpack weights without MLX. That is faster on a CPU, and it is a second implementation of the packed
formats, to compare MLX's with.
"""

import math
from collections.abc import Mapping, Sequence
from functools import cache, partial
from typing import Any

import mlx.core as mx
import numpy as np

from ..errors import CheckpointError
from .blank import blank
from .dtypes import FLOATS
from .filling import KINDS, Filling, Range, fill
from .headers import Buffer, StoredTensor, stacked_shape
from .jobs import Job
from .quantization import Quantization

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float32]]
Codes = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]

COMPARED_BYTES = 1 << 22  # at a time
CAST_BYTES = 1 << 22  # at a time, by MLX
WIDENED_BYTES = 1 << 19  # at a time, by NumPy: a block and its float32 values stay in the second-level cache
# Unsigned integers of the size of a dtype, for its bits: NumPy has no bfloat16.
CARRIERS: dict[int, tuple[mx.Dtype, type[np.unsignedinteger[Any]]]] = {
    1: (mx.uint8, np.uint8),
    2: (mx.uint16, np.uint16),
    4: (mx.uint32, np.uint32),
}
# OCP Microscaling Formats 1.0, section 5.3: sign, exponent and mantissa of the small floats
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)
E4M3 = np.array(
    [
        (-1 if code > 127 else 1)
        * (math.ldexp(code % 8, -9) if code % 128 < 8 else math.ldexp(8 + code % 8, code // 8 % 16 - 10))
        for code in range(256)
    ],
    np.float32,
)
E8M0 = np.array([*(math.ldexp(1, code - 127) for code in range(255)), math.nan], np.float32)
# mode -> (values of the codes, values of the scales)
TABLES = {"mxfp4": (E2M1, E8M0), "mxfp8": (E4M3, E8M0), "nvfp4": (E2M1, E4M3)}
WORDS: dict[int, type[np.unsignedinteger[Any]]] = {2: np.uint16, 4: np.uint32}  # if 8 codes are one machine word


# --- MLX


def placed(runs: Sequence[StoredTensor], dtype: mx.Dtype) -> tuple[mx.array, list[Filling]]:
    """Memory for the rows of several tensors, stacked, floats in `dtype`; and what fills it.

    Bytes are read directly into that memory, and floats of another dtype are cast block by block: they are never all in
    memory twice. What only this thread may do is done at once.
    Here or while it is filled, raises CheckpointError if a file has become shorter, or float16 cannot hold a value.
    """
    kept = dtype if runs[0].dtype in FLOATS else runs[0].dtype
    raw = blank(sum(math.prod(run.shape) for run in runs) * kept.size)
    target, done = np.array(raw, copy=False).data, 0
    fillings: list[Filling] = []
    for tensor in runs:
        size = math.prod(tensor.shape) * kept.size
        part = target[done : done + size]
        if tensor.dtype == kept:
            fillings.append(tensor.filling(part))
        elif kept == mx.float32 and not tensor.made:  # from files
            values = Range(tensor.start, tensor.dtype.size, tensor.file.descriptor, KINDS[tensor.dtype])
            fillings.append(Filling(part, partial(_widen, tensor, part), math.prod(tensor.shape), (values,)))
        else:
            _cast_into(tensor, kept, part)
        done += size
    return raw.view(kept).reshape(stacked_shape(runs)), fillings


def stacked(runs: Sequence[StoredTensor]) -> mx.array:
    """Rows of one dtype from several tensors, stacked. Raises CheckpointError if a file has become shorter."""
    array, fillings = placed(runs, runs[0].dtype)
    fill(fillings)
    return array


def _widen(tensor: StoredTensor, target: memoryview) -> list[Job]:
    """The jobs that fill `target` with the float32 values of a tensor."""

    def convert(block: StoredTensor, part: Floats) -> None:
        to_float32(block.read(), block.dtype, part)

    values, done = np.frombuffer(target, np.float32), 0
    jobs: list[Job] = []
    for block in tensor.row_blocks(WIDENED_BYTES):
        size = math.prod(block.shape)
        jobs.append(partial(convert, block, values[done : done + size]))
        done += size
    return jobs


def _cast_into(tensor: StoredTensor, dtype: mx.Dtype, target: memoryview) -> None:
    """Fill `target` with the values of a tensor in `dtype`; only the thread that uses MLX may do it."""
    done = 0
    for block in tensor.row_blocks(CAST_BYTES):
        content = bits_of(cast(stored(block), dtype, block.name)).reshape(-1).view(np.uint8)
        target[done : done + content.size] = content.data
        done += content.size


def stored(tensor: StoredTensor) -> mx.array:
    """A tensor, or some rows of it, in its own dtype."""
    return stacked((tensor,))


def unpacked(leaves: Mapping[str, StoredTensor], packing: Quantization | None) -> mx.array:
    """The weight that the leaves of a module stand for: `weight`, with `scales` and `biases` if it is packed."""
    arrays = {leaf: stored(tensor) for leaf, tensor in leaves.items()}
    if packing is None:
        return arrays["weight"]
    how = (packing.group_size, packing.bits, packing.mode)
    return mx.dequantize(arrays["weight"], arrays["scales"], arrays.get("biases"), *how)


def cast(array: mx.array, dtype: mx.Dtype, name: str) -> mx.array:
    """To another float dtype; packed integers stay. Raises CheckpointError if float16 cannot hold a value."""
    if array.dtype not in FLOATS or array.dtype == dtype:
        return array
    result = array.astype(dtype)
    if dtype == mx.float16 and mx.any(mx.isinf(result) & ~mx.isinf(array)).item():
        raise _too_large(mx.max(mx.abs(array)).item(), name)
    return result


def _too_large(value: Any, name: str) -> CheckpointError:
    return CheckpointError(f"{name} reaches {value:g}, past float16's 65504; use bf16 or fp32")


def to_mlx(array: np.ndarray) -> mx.array:
    """The same values for MLX. `mx.array(ndarray)` would lose a Ctrl-C that arrives while it runs."""
    return mx.array(array.data)  # type: ignore[arg-type]


# --- NumPy


def bits_of(array: mx.array) -> np.ndarray:
    """The bits of every value, as unsigned integers of its size; shares the memory of `array`."""
    return np.array(array.view(CARRIERS[array.dtype.size][0]), copy=False)


def float32_of(array: mx.array) -> Floats:
    """Float values as float32."""
    return to_float32(bits_of(array), array.dtype).reshape(array.shape)


def to_float32(raw: Buffer | np.ndarray, dtype: mx.Dtype, out: Floats | None = None) -> Floats:
    """The values of stored floats, one after another, written to `out` if it is given."""
    if out is not None and dtype != mx.bfloat16:
        out[:] = to_float32(raw, dtype)
        return out
    if dtype == mx.bfloat16:
        found = np.frombuffer(raw, np.uint16)
        codes = np.empty(found.size, np.uint32) if out is None else out.view(np.uint32)
        codes[:] = found  # apart from the shift, which would cast in small parts
        codes <<= 16
        return codes.view(np.float32)
    if dtype == mx.float16:
        return np.frombuffer(raw, np.float16).astype(np.float32)
    return np.frombuffer(raw, np.float32)


def rounded(values: Floats, dtype: mx.Dtype, name: str) -> np.ndarray:
    """The bits of float32 values in another float dtype: those of `cast`, but NaN may become any value.

    Raises CheckpointError if float16 cannot hold a value.
    """
    if dtype == mx.float32:
        return values.view(np.uint32)
    if dtype == mx.float16:
        with np.errstate(over="ignore"):
            halves = values.astype(np.float16)
        if (np.isinf(halves) & ~np.isinf(values)).any():
            raise _too_large(np.abs(values).max(), name)
        return halves.view(np.uint16)
    codes = values.view(np.uint32)
    result = (codes >> 16) & 1  # of two that are equally near, the even one
    result += 0x7FFF
    result += codes
    result >>= 16
    return result.astype(np.uint16)


def unpack(packed: Codes, bits: int) -> Codes:
    """(rows, bytes) -> (rows, codes): code i lies at bits [i * bits, (i + 1) * bits) of its row, lowest first."""
    if bits == 8:
        return packed
    words: np.ndarray
    if bits in WORDS:
        words = packed.reshape(-1).view(WORDS[bits])
    else:  # 8 codes in `bits` bytes
        octets = packed.reshape(-1, bits)
        words = octets[:, 0].astype(np.uint64)
        for index in range(1, bits):
            words |= octets[:, index].astype(np.uint64) << np.uint64(8 * index)
    codes = np.empty((words.size, 8), np.uint8)
    mask = words.dtype.type(2**bits - 1)
    for index in range(8):
        codes[:, index] = (words >> words.dtype.type(bits * index)) & mask
    return codes.reshape(len(packed), -1)


def dequantize(
    packing: Quantization, weight: Codes, scales: Codes | Floats, biases: Floats | None, out: Floats | None = None
) -> Floats:
    """float32 (rows, inputs) of the bytes of a packed weight, with scales and biases (rows, groups).

    Affine scales and biases are float32, those of the other modes the bytes that are stored. The result is `out` if it
    is given.
    """
    bits = packing.bits
    result = np.empty((len(weight), weight.shape[1] * 8 // bits), np.float32) if out is None else out
    if 8 % bits:
        np.take(code_values(packing.mode, bits), unpack(weight, bits), out=result, mode="clip")
    else:  # a byte holds whole codes
        table = _values_of_bytes(packing.mode, bits)
        np.take(table, weight, out=result.view(table.dtype), mode="clip")  # to clip needs no copy of `out`
    groups = result.reshape(len(result), -1, packing.group_size)
    groups *= (scales if packing.mode == "affine" else TABLES[packing.mode][1][scales])[..., None]
    if biases is not None:
        groups += biases[..., None]
    return result


def code_values(mode: str, bits: int) -> Floats:
    """The value of every code, before scale and bias."""
    return TABLES[mode][0] if mode in TABLES else np.arange(2**bits, dtype=np.float32)


@cache
def _values_of_bytes(mode: str, bits: int) -> np.ndarray:
    """The values of all codes in a byte, as one item, for every byte."""
    codes = unpack(np.arange(256, dtype=np.uint8)[None], bits).reshape(256, -1)
    values = code_values(mode, bits)[codes]
    return values.view(f"V{values[0].nbytes}")[:, 0]


def dequantize_bits(
    packing: Quantization, leaves: Sequence[np.ndarray], dtype: mx.Dtype, out: Floats | None = None
) -> Floats:
    """`dequantize` for stored bits: those of weight, scales and, in affine mode, biases; floats have dtype `dtype`."""
    weight, *others = leaves
    if len(others) == 1:
        return dequantize(packing, weight.view(np.uint8), others[0], None, out)
    scales, biases = (to_float32(leaf, dtype).reshape(leaf.shape) for leaf in others)
    return dequantize(packing, weight.view(np.uint8), scales, biases, out)


def read_rows(
    leaves: Mapping[str, StoredTensor],
    packing: Quantization | None,
    first: int,
    count: int,
    out: Floats | None = None,
) -> Floats:
    """float32 (count, inputs) of rows of a stored matrix, or `count` values of a vector.

    Those of a packed matrix are written to `out` if it is given. It uses no MLX, so any thread may call it.
    """
    rows = {name: leaf.rows(first, count) for name, leaf in leaves.items()}
    if packing is None:
        return floats_of(rows["weight"])
    return dequantize_bits(packing, [_bits(leaf) for leaf in rows.values()], rows["scales"].dtype, out)


def _bits(tensor: StoredTensor) -> np.ndarray:
    """`bits_of` a stored tensor, without MLX, which only the main thread may use."""
    return np.frombuffer(tensor.read(), CARRIERS[tensor.dtype.size][1]).reshape(tensor.shape)


def same_values(a: StoredTensor, b: StoredTensor) -> bool:
    """Whether two tensors of one shape hold equal values; those of two float dtypes can be equal. NaN equals NaN."""
    if a.dtype == b.dtype:
        return all(x == y for x, y in zip(a.chunks(), b.chunks(), strict=True))
    if a.dtype not in FLOATS or b.dtype not in FLOATS:
        return False
    blocks = zip(a.row_blocks(COMPARED_BYTES * a.dtype.size), b.row_blocks(COMPARED_BYTES * b.dtype.size), strict=True)
    return all(np.array_equal(floats_of(x), floats_of(y), equal_nan=True) for x, y in blocks)


def floats_of(tensor: StoredTensor) -> Floats:
    """All values of a tensor, float32."""
    return to_float32(tensor.read(), tensor.dtype).reshape(tensor.shape)
