"""From the tensors of a packed release to those that the rest of the package knows: `weight`, `scales`, `biases`.

Integers in groups become MLX's affine form, bit by bit. FP8, and integers whose groups do not fit, become float32
values that are computed when they are read. transformers is the authority for FP8: a code times the scale of its block.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import mlx.core as mx
import numpy as np

from ..errors import CheckpointError, ConfigError, warn
from .derived import Derivation, DerivedTensor, Latest, Rows
from .dtypes import FLOATS, NAMES, prevailing
from .forms import AWQ, COMPRESSED, FP8, GPTQ, KEY, Form
from .headers import StoredTensor
from .integers import WORD, Columns, Integers, awq, compressed, gptq, integers_of
from .quantization import Quantization
from .reading import short
from .values import E4M3, Floats, floats_of

Tensors = dict[str, StoredTensor]
Leaves = Mapping[str, StoredTensor]
Packings = dict[str, Quantization]

MARK = {FP8: "weight_scale_inv", AWQ: "qweight", GPTQ: "qweight", COMPRESSED: "weight_packed"}  # of a packed module
NEEDED = {
    FP8: ("weight", "weight_scale_inv"),
    AWQ: ("qweight", "qzeros", "scales"),
    GPTQ: ("qweight", "qzeros", "scales"),
    COMPRESSED: ("weight_packed", "weight_scale", "weight_shape"),
}
OPTIONAL = {FP8: (), AWQ: (), GPTQ: ("g_idx",), COMPRESSED: ("weight_zero_point", "weight_g_idx")}
ACTIVATIONS = ("activation_scale", "input_scale")  # of FP8: their rounding is left out
USUAL_GROUPS = (128, 64, 32, 256, 512, 1024)  # sizes
FP8_CODE = "F8_E4M3"  # in safetensors
FP8_VALUES = E4M3.copy()
FP8_VALUES[[127, 255]] = np.nan  # E4M3 without infinities has two codes that are no number


@dataclass(frozen=True)
class Matrix:
    """A packed module: its tensors by leaf, and the shape of its weight."""

    name: str
    shape: tuple[int, int]
    leaves: Leaves

    def check(self, leaf: str, shape: tuple[int, ...], *dtypes: mx.Dtype, code: str = "") -> StoredTensor:
        """The tensor of a leaf. Raises CheckpointError if it has another shape or dtype."""
        tensor = self.leaves[leaf]
        if tensor.shape != shape:
            raise CheckpointError(
                f"{short(tensor.name)} has shape {list(tensor.shape)}, but config.json gives {list(shape)}; "
                "config.json and weights are of different models"
            )
        if tensor.dtype not in dtypes or tensor.code != code:
            expected = code or ", ".join(NAMES[dtype] for dtype in dtypes)
            raise CheckpointError(f"{short(tensor.name)} has dtype {tensor.dtype_name}; expected {expected}")
        return tensor

    def derive(
        self,
        leaf: str,
        dtype: mx.Dtype,
        shape: tuple[int, ...],
        rows: Rows,
        kept: mx.Dtype,
        made: str,
        sources: Sequence[str] = (),
        note: str = "",
    ) -> StoredTensor:
        """A tensor of the module that is computed from the leaves `sources`, or from all of them."""
        first = next(iter(self.leaves.values()))
        names = tuple(self.leaves[name].name for name in sources or self.leaves)
        name = f"{first.name.rpartition('.')[0]}.{leaf}"
        how = Derivation(rows, names, kept, made, note)
        return DerivedTensor(name, dtype, shape, first.file, 0, first.code, derivation=how)


def unpacked_names(
    tensors: Mapping[str, StoredTensor], shapes: Mapping[str, tuple[int, ...]], form: Form | None
) -> tuple[Tensors, Packings]:
    """(the tensors with those of packed modules replaced, the packing of the modules that MLX can hold packed).

    Names are those of layout.py. Reads lists of groups and biases, no weights. Raises ConfigError or CheckpointError if
    tensors and config.json disagree.
    """
    result = dict(tensors)
    if form is None:
        return result, {}
    packings: Packings = {}
    latest, unpacked = Latest(), []
    kept = _float_dtype(tensors)
    for name, shape in shapes.items():
        if len(shape) != 2 or not _is_packed(tensors, name, form):
            continue
        matrix = _take(result, name, shape, form)
        if form.method == FP8:
            made = _fp8(matrix, form, kept)
        else:
            made, packing = _integers(matrix, form, latest)
            if packing:
                packings[name] = packing
            else:
                unpacked.append(name)
        result |= {f"{name}.{leaf}": tensor for leaf, tensor in made.items()}
    if unpacked:
        warn(
            f"{len(unpacked)} of the {len(unpacked) + len(packings)} {form.method} matrices are unpacked, "
            f"because MLX has no groups like theirs (the first is {unpacked[0]}); they take as much memory as an "
            "unpacked model"
        )
    return result, packings


def _is_packed(tensors: Mapping[str, StoredTensor], name: str, form: Form) -> bool:
    weight = tensors.get(f"{name}.weight")
    return f"{name}.{MARK[form.method]}" in tensors or (weight is not None and weight.code == FP8_CODE)


def why_left_out(name: str) -> str:
    """Why a tensor of a packed release is not used; empty if it is."""
    if name.endswith(ACTIVATIONS):
        return "activations are not rounded here"
    return "zero everywhere" if name.endswith(".bias") else ""


def _take(tensors: Tensors, name: str, shape: tuple[int, ...], form: Form) -> Matrix:
    """Removes the tensors of a module. A bias of zeros is removed too: GPTQ programs write one for every module."""
    method = form.method
    if method == FP8:
        _rename_scale(tensors, name)
    if missing := [leaf for leaf in NEEDED[method] if f"{name}.{leaf}" not in tensors]:
        raise CheckpointError(f"{name} is packed, but {name}.{missing[0]} is missing; the checkpoint is incomplete")
    names = (*NEEDED[method], *OPTIONAL[method])
    leaves = {leaf: tensors.pop(f"{name}.{leaf}") for leaf in names if f"{name}.{leaf}" in tensors}
    if any(not tensor.shape for tensor in leaves.values()):
        raise CheckpointError(f"{name} has a tensor without rows; the checkpoint is broken")
    matrix = Matrix(name, (shape[0], shape[1]), leaves)
    for leaf in ACTIVATIONS if method == FP8 else ():
        tensors.pop(f"{name}.{leaf}", None)
    if (bias := tensors.get(f"{name}.bias")) and bias.dtype in FLOATS and not floats_of(bias).any():
        del tensors[f"{name}.bias"]
    return matrix


def _rename_scale(tensors: Tensors, name: str) -> None:
    """Gives the scale of an FP8 matrix Qwen's name; compressed-tensors has another. A scalar becomes a vector."""
    for leaf in ("weight_scale_inv", "weight_scale"):
        if scale := tensors.pop(f"{name}.{leaf}", None):
            tensors[f"{name}.weight_scale_inv"] = replace(scale, shape=scale.shape or (1,))
            return


def _float_dtype(tensors: Mapping[str, StoredTensor]) -> mx.Dtype:
    """The dtype of most values that are not packed: the embedding, or whatever is left of it."""
    return prevailing((tensor.dtype, tensor.shape) for tensor in tensors.values())


# --- FP8


def _fp8(matrix: Matrix, form: Form, kept: mx.Dtype) -> Tensors:
    weight = matrix.check("weight", matrix.shape, mx.uint8, code=FP8_CODE)
    rows, columns = matrix.shape
    whole, row = (rows, columns), (1, columns)
    alone = {(1,): whole, (1, 1): whole, (rows,): row, (rows, 1): row}  # what a scale is for, if there are no blocks
    shape = matrix.leaves["weight_scale_inv"].shape
    block = alone.get(shape, form.block)
    grid = (-(-rows // block[0]), -(-columns // block[1]))
    scales = matrix.check("weight_scale_inv", shape if shape in alone else grid, *FLOATS)
    read = partial(fp8_rows, weight, replace(scales, shape=grid), block)
    return {"weight": matrix.derive("weight", mx.float32, matrix.shape, read, kept, "unpacked from fp8")}


def fp8_rows(weight: StoredTensor, scales: StoredTensor, block: tuple[int, int], first: int, count: int) -> Floats:
    """float32 rows of an FP8 matrix: each code times the scale of its block, which is (rows, columns)."""
    high, wide = block
    run = weight.rows(first, count)
    values = FP8_VALUES.take(np.frombuffer(run.read(), np.uint8)).reshape(run.shape)  # faster than an index
    top, bottom = first // high, -(-(first + count) // high)
    wider = np.repeat(floats_of(scales.rows(top, bottom - top)), wide, axis=1)[:, : run.shape[1]]
    if high == 1:
        return values * wider
    for index, row in enumerate(wider, top):
        values[max(index * high - first, 0) : (index + 1) * high - first] *= row
    return values


# --- integers in groups


def _integers(matrix: Matrix, form: Form, latest: Latest) -> tuple[Tensors, Quantization | None]:
    """In MLX's affine form if it has such groups, else as float32 values."""
    integers = OF_COLUMNS.get(form.method, _compressed)(matrix, form, latest)
    scales = next(leaf for leaf in ("scales", "weight_scale") if leaf in matrix.leaves)
    kept, derive = matrix.leaves[scales].dtype, matrix.derive
    rows, columns = matrix.shape
    if (size := integers.group_size) is None:
        made, note = f"unpacked from {form.method}", "not packed: no 32 neighbouring columns share a group"
        return {"weight": derive("weight", mx.float32, matrix.shape, integers.values, kept, made, note=note)}, None
    made, words, groups = f"repacked from {form.method}", columns * integers.bits // WORD, columns // size
    zeros = [leaf for leaf in ("qzeros", "weight_zero_point") if leaf in matrix.leaves]
    others = [leaf for leaf in matrix.leaves if leaf not in (scales, *zeros)]
    return {
        "weight": derive("weight", mx.uint32, (rows, words), integers.words, mx.uint32, made, others),
        "scales": derive("scales", mx.float32, (rows, groups), integers.affine_scales, kept, made, [scales]),
        "biases": derive("biases", mx.float32, (rows, groups), integers.affine_biases, kept, made, [*zeros, scales]),
    }, Quantization("affine", integers.bits, size)


def _gptq(matrix: Matrix, form: Form, latest: Latest) -> Integers:
    rows, columns = matrix.shape
    bits = _bits(matrix, "qweight", matrix.leaves["qweight"].shape[0], columns, form)
    codes = matrix.check("qweight", (columns * bits // WORD, rows), mx.int32)
    groups_of, groups = _groups(matrix, "scales", matrix.leaves["scales"].shape[0], "g_idx", form)
    scales = matrix.check("scales", (groups, rows), *FLOATS)
    zeros = matrix.check("qzeros", (groups, rows * bits // WORD), mx.int32)
    return gptq(Columns(codes, scales, zeros, latest), bits, groups_of, form.zero_offset)


def _awq(matrix: Matrix, form: Form, latest: Latest) -> Integers:
    rows, columns = matrix.shape
    codes = matrix.check("qweight", (columns, rows * 4 // WORD), mx.int32)
    groups_of, groups = _groups(matrix, "scales", matrix.leaves["scales"].shape[0], "g_idx", form)
    scales = matrix.check("scales", (groups, rows), *FLOATS)
    zeros = matrix.check("qzeros", (groups, rows * 4 // WORD), mx.int32)
    return awq(Columns(codes, scales, zeros, latest), groups_of)


def _compressed(matrix: Matrix, form: Form, latest: Latest) -> Integers:
    rows, columns = matrix.shape
    bits = _bits(matrix, "weight_packed", matrix.leaves["weight_packed"].shape[-1], columns, form)
    words = matrix.check("weight_packed", (rows, columns * bits // WORD), mx.int32)
    shape = tuple(integers_of(matrix.check("weight_shape", (2,), mx.int32, mx.int64)).tolist())
    if shape != matrix.shape:
        raise CheckpointError(f"{matrix.name}.weight_shape holds {list(shape)}, config.json gives {list(matrix.shape)}")
    groups_of, groups = _groups(matrix, "weight_scale", matrix.leaves["weight_scale"].shape[-1], "weight_g_idx", form)
    scales = matrix.check("weight_scale", (rows, groups), *FLOATS)
    zeros = None
    if form.symmetric is (zero := "weight_zero_point" in matrix.leaves):
        raise CheckpointError(
            f"symmetric is {form.symmetric} in {KEY}, but {matrix.name} has {'' if zero else 'no '}zero points"
        )
    if zero:
        zeros = matrix.check("weight_zero_point", (-(-rows * bits // WORD), groups), mx.int32)
    return compressed(words, scales, zeros, bits, groups_of, latest)


OF_COLUMNS = {AWQ: _awq, GPTQ: _gptq}


def _bits(matrix: Matrix, leaf: str, words: int, columns: int, form: Form) -> int:
    """Bits of a code, from the number of words that hold a row."""
    bits = words * WORD // columns
    if bits not in (4, 8) or words * WORD != bits * columns:
        raise CheckpointError(
            f"{matrix.name}.{leaf} has {words} words for {columns} columns, which are {words * WORD / columns:g} bits "
            "a column; supported: 4 and 8"
        )
    if form.bits not in (None, bits):
        raise ConfigError(f"bits is {form.bits} in {KEY}, but {matrix.name}.{leaf} has {bits}")
    return bits


def _groups(matrix: Matrix, leaf: str, groups: int, order: str, form: Form) -> tuple[np.ndarray, int]:
    """(the group of every column, their number), from the list of groups or from the size of a group."""
    columns = matrix.shape[1]
    size = form.group_size
    if size is None:  # the usual one that makes so many groups, the last of which may be short
        size = next((s for s in USUAL_GROUPS if -(-columns // s) == groups), -(-columns // max(groups, 1)))
    size = columns if size == -1 else size
    if groups != -(-columns // size):
        raise ConfigError(
            f"group_size is {size} in {KEY}, which makes {-(-columns // size)} groups of {columns} columns, but "
            f"{matrix.name}.{leaf} has {groups}"
        )
    if order not in matrix.leaves:
        if form.ordered:
            raise CheckpointError(f"desc_act is true in {KEY}, but {matrix.name}.{order} is missing; download it again")
        return np.arange(columns) // size, groups
    found = integers_of(matrix.check(order, (columns,), mx.int32, mx.int64))
    if found.min() < 0 or found.max() >= groups:
        raise CheckpointError(f"{matrix.name}.{order} names group {found.max()} or {found.min()}, of {groups}")
    return found, groups
