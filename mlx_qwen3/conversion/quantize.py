"""Packs weights into fewer bits: which tensors, in which mode, and the error of each of them.

Every matrix is packed, the embedding too, as in mlx-lm. Norms stay in float, and so does a matrix whose rows are not a
whole number of groups. The router of a layer with experts always has 8 bits, as in mlx-lm. Groups run along a row. So
the packed rows are the same if a matrix is packed in blocks, as a part of a fused matrix, or in a stack of experts.
"""

import heapq
import re
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import cycle
from math import prod
from typing import TypeVar

import mlx.core as mx
import numpy as np

from ..errors import UsageError
from ..files.headers import StoredTensor
from ..files.layout import Module, packed_leaves
from ..files.names import LEAVES, kind_of
from ..files.quantization import QUANTIZATION_MODES, Quantization
from ..files.values import bits_of, cast, dequantize_bits, float32_of, stored, to_float32
from ..progress import BYTES, Progress, Stage, silent
from .tally import Tally

NONE, MIXED = "none", "mixed"
AFFINE = re.compile(r"affine(\d+)(?:g(\d+))?")
LEVELS = tuple(Quantization("affine", bits, 64) for bits in QUANTIZATION_MODES["affine"]["bits"])  # of mixed
DEFAULT_BITS = 5.0  # of mixed
# A wrong choice of experts changes all that follows, and a router is a thousandth of the weights of its layer.
ROUTER, ROUTER_PACKINGS = "mlp.gate", tuple(Quantization("affine", 8, group_size) for group_size in (64, 32))
READ_BYTES = 1 << 23
BLOCK_VALUES = 1 << 18  # a block in float32 and its error stay in a processor's second-level cache
STREAMS = 2  # of a CPU, each a thread, on which blocks are packed
Item = TypeVar("Item")


def parse(spec: str | None) -> Quantization | str | None:
    """A packing for all matrices, MIXED, NONE (unpack) or None (keep). Raises UsageError for anything else."""
    if spec in (None, NONE, MIXED):
        return spec
    if spec != "affine" and spec in QUANTIZATION_MODES:
        ((bit_count,), (group_size,)) = QUANTIZATION_MODES[spec].values()
        return Quantization(spec, bit_count, group_size)
    known = QUANTIZATION_MODES["affine"]
    if match := AFFINE.fullmatch(spec):
        packing = Quantization("affine", int(match[1]), int(match[2] or 64))
        if packing.bits in known["bits"] and packing.group_size in known["group_size"]:
            return packing
    bits, groups = (",".join(map(str, known[key])) for key in ("bits", "group_size"))
    raise UsageError(
        f"quantize is {spec!r}; expected affine{{{bits}}} such as affine4, or with g{{{groups}}} such as affine4g32; "
        f"mxfp4, mxfp8, nvfp4, {MIXED}, or {NONE} to unpack"
    )


def fits(shape: Sequence[int], packing: Quantization) -> bool:
    """Whether a tensor is a matrix whose rows can be packed; mlx-lm leaves others in float."""
    return len(shape) == 2 and shape[1] % block_columns(packing) == 0


def packing_for(name: str, shape: Sequence[int], asked: Quantization) -> Quantization | None:
    """The packing of a part if `asked` is asked for; None if it stays in float."""
    if not fits(shape, asked):
        return None
    return next(packing for packing in ROUTER_PACKINGS if fits(shape, packing)) if kind_of(name) == ROUTER else asked


def block_columns(packing: Quantization) -> int:
    """The columns that are packed together: one group, but two of nvfp4, as MLX cannot pack an odd number of them."""
    return 32 if packing.mode == "nvfp4" else packing.group_size


def packed_blocks(
    runs: Sequence[StoredTensor], packing: Quantization, dtype: mx.Dtype, tally: Tally
) -> Iterator[tuple[str, bytes]]:
    """(leaf, bytes) of the packed form of float rows, which are cast to `dtype`: of all leaves, block by block."""
    for source, arrays in _ahead(_packing(runs, packing, dtype)):
        leaves = [bits_of(array) for array in arrays]
        yield from ((leaf, bits.tobytes()) for leaf, bits in zip(LEAVES, leaves, strict=False))
        _add_errors(tally, source, packing, leaves, dtype)


def unpacked_blocks(
    leaves: Mapping[str, StoredTensor], packing: Quantization, dtype: mx.Dtype, tally: Tally
) -> Iterator[bytes]:
    """The rows of a packed matrix in `dtype`: as MLX unpacks them if the scales have that dtype, else rounded once."""
    scales = leaves["scales"].dtype
    exact = dtype if dtype == scales or packing.mode != "affine" else mx.float32
    rows = leaves["weight"].shape[0]
    columns = leaves["scales"].shape[1] * packing.group_size
    step = max(1, BLOCK_VALUES // columns)
    for first in range(0, rows, step):
        count = min(step, rows - first)
        arrays = [stored(leaf.rows(first, count)) for leaf in leaves.values()]
        inputs = [array if array.dtype in (mx.uint32, mx.uint8) else array.astype(exact) for array in arrays]
        biases = inputs[2] if len(inputs) > 2 else None
        how = (packing.group_size, packing.bits, packing.mode)
        values = cast(mx.dequantize(inputs[0], inputs[1], biases, *how, dtype=exact), dtype, leaves["weight"].name)
        tally.add(dequantize_bits(packing, [bits_of(array) for array in arrays], scales), float32_of(values).copy())
        yield bits_of(values).tobytes()


def mixed(
    modules: Sequence[Module],
    dtype_of: Callable[[Module], mx.Dtype],
    budget: float,
    progress: Progress = silent,
) -> dict[str, Quantization]:
    """A packing by part name for all modules, with at most `budget` bits per weight over the whole checkpoint.

    All modules start one level below the highest level that fits for all of them. Then the module with the largest
    measured relative error gets the next level, until the budget is used up. Fused parts are one module: q, k and v
    share a packing, and so do gate and up of all experts of a layer. Routers keep theirs. Raises UsageError if even 2
    bits for all modules exceed the budget.
    """
    # sizes[module][level] in bits
    routers = _routers(modules)
    sizes = [[_module_bits(m, routers.get(m.name, packing), dtype_of(m)) for packing in LEVELS] for m in modules]
    weights = sum(prod(part.leaves["weight"].shape) for module in modules for part in module.parts)
    totals = [sum(column) for column in zip(*sizes, strict=True)]
    if totals[0] > budget * weights:
        raise UsageError(f"bits is {budget:g}; this model needs {totals[0] / weights:.3f} bits a weight at the least")
    start = max(0, sum(total <= budget * weights for total in totals) - 2)
    left = budget * weights - totals[start]
    levels = {i: start for i, m in enumerate(modules) if m.name not in routers and fits(_shape(m), LEVELS[0])}

    # An estimate: some modules are measured again at their next level, and only the end shows how many.
    stage = Stage("measuring", sum(_stored_bytes(modules[index]) for index in levels), BYTES)

    def entry(index: int) -> tuple[float, int]:  # the largest error first, then the order of the forward pass
        module = modules[index]
        error = _relative_error(module, LEVELS[levels[index]], dtype_of(module))
        progress(stage, _stored_bytes(module))
        return -error, index

    worst = [entry(index) for index in levels]
    heapq.heapify(worst)
    while worst:
        _, index = heapq.heappop(worst)
        level = levels[index]
        if level + 1 < len(LEVELS) and (price := sizes[index][level + 1] - sizes[index][level]) <= left:
            left -= price
            levels[index] += 1
            heapq.heappush(worst, entry(index))
    return routers | {part.name: LEVELS[level] for index, level in levels.items() for part in modules[index].parts}


def _routers(modules: Sequence[Module]) -> dict[str, Quantization]:
    """The packings of the routers, whose bits are not a matter of the budget."""
    routers = (module for module in modules if kind_of(module.name) == ROUTER)
    return {m.name: packing for m in routers if (packing := packing_for(m.name, _shape(m), LEVELS[0]))}


def _shape(module: Module) -> tuple[int, ...]:
    return module.parts[0].leaves["weight"].shape


def _module_bits(module: Module, packing: Quantization, dtype: mx.Dtype) -> int:
    return sum(packed_bits(part.leaves["weight"].shape, packing, dtype) for part in module.parts)


def _stored_bytes(module: Module) -> int:
    return sum(part.leaves["weight"].nbytes for part in module.parts)


def _relative_error(module: Module, packing: Quantization, dtype: mx.Dtype) -> float:
    """The error of the part that loses most, since the outputs of q, k and v are used apart."""
    errors = []
    for part in module.parts:
        tally = Tally(module.name)
        for _ in packed_blocks((part.leaves["weight"],), packing, dtype, tally):
            pass
        errors.append(tally.error.relative)
    return max(errors)


def packed_bits(shape: tuple[int, ...], packing: Quantization, dtype: mx.Dtype) -> int:
    """Bits that a tensor of `shape` takes in the files: packed if it can be, else in `dtype`."""
    if not fits(shape, packing):
        return prod(shape) * dtype.size * 8
    leaves = packed_leaves(shape, packing).values()
    return sum(prod(leaf) * (dtype if dtype in dtypes else dtypes[0]).size * 8 for leaf, dtypes in leaves)


def _packing(
    runs: Sequence[StoredTensor], packing: Quantization, dtype: mx.Dtype
) -> Iterator[tuple[mx.array, list[mx.array]]]:
    """(stored rows, the packed arrays that MLX is computing from them) for each block of rows."""
    blocks = (block for run in runs for block in run.row_blocks(READ_BYTES))
    for block, stream in zip(blocks, cycle(_streams()), strict=False):
        source = stored(block)
        rows = cast(source, dtype, block.name)
        arrays = list(mx.quantize(rows, packing.group_size, packing.bits, packing.mode, stream=stream))
        mx.async_eval(arrays)
        yield source, arrays


def _add_errors(
    tally: Tally, source: mx.array, packing: Quantization, leaves: Sequence[np.ndarray], dtype: mx.Dtype
) -> None:
    """Add the errors of a block in steps that fit the processor's cache: the block itself does not fit."""
    columns = source.shape[1]
    step = max(1, BLOCK_VALUES // columns)
    before = bits_of(source)
    for first in range(0, source.shape[0], step):
        part = slice(first, first + step)
        rows = to_float32(before[part], source.dtype).reshape(-1, columns)
        tally.add(rows, dequantize_bits(packing, [leaf[part] for leaf in leaves], dtype))


def _ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The same items, but the next are started before each is given out: MLX packs them while NumPy measures this one.

    So many are in memory, beside the one that was given out.
    """
    started: deque[Item] = deque()
    for item in items:
        started.append(item)
        if len(started) > STREAMS:
            yield started.popleft()
    while started:
        yield started.popleft()


class _OfThread(threading.local):
    streams: tuple[mx.Stream, ...] = ()


_of_thread = _OfThread()


def _streams() -> tuple[mx.Stream, ...]:
    """Where to pack, in turns: a GPU's stream; on a CPU streams of this thread that do not wait for its other work."""
    if mx.default_device().type == mx.gpu:
        return (mx.default_stream(mx.gpu),)
    if not _of_thread.streams:
        _of_thread.streams = tuple(mx.new_stream(mx.cpu) for _ in range(STREAMS))
    return _of_thread.streams
