"""How each tensor of a conversion is made from the tensors of the source: as data, and as a stream of bytes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod

import mlx.core as mx
import numpy as np

from ..errors import UsageError
from ..files.config import Qwen3Config
from ..files.dtypes import FLOATS
from ..files.headers import Buffer, StoredTensor, stacked_shape
from ..files.layout import Module, Part, packed_leaves, stacked_modules
from ..files.names import NATIVE, SWITCH, Fusion, bare, fusions, hf_name
from ..files.quantization import Quantization
from ..files.values import rounded, to_float32
from .quantize import NONE, block_columns, fits, packed_blocks, unpacked_blocks
from .tally import Tally

COPY_BYTES = 1 << 23  # large enough to be fast, small enough to have several in memory
CAST_BYTES = 1 << 20


@dataclass(frozen=True)
class OutputTensor:
    """A tensor to write. For the certificate: `made` says how it was made, `note` why it was not packed."""

    name: str
    dtype: mx.Dtype
    shape: tuple[int, ...]
    sources: tuple[str, ...]  # names in the source's files
    made: str
    note: str = ""

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.dtype.size


@dataclass(frozen=True)
class Job:
    """The tensors of one module that are made in one pass, and how.

    They are quantized to `packing`, or unpacked from `packed`. With neither, they are copied, fused, split or cast.
    """

    tensors: tuple[OutputTensor, ...]
    runs: tuple[StoredTensor, ...]  # rows to stack
    packing: Quantization | None = None
    packed: tuple[Part, ...] = ()  # instead of runs
    dtype: mx.Dtype | None = None  # to cast to before packing

    def blocks(self, tally: Tally) -> Iterator[tuple[OutputTensor, Buffer]]:
        """The bytes of all tensors, each from its first to its last; `tally` gets the error if there can be one."""
        if self.packing is not None:
            by_leaf = {tensor.name.rsplit(".", 1)[1]: tensor for tensor in self.tensors}
            for leaf, raw in packed_blocks(self.runs, self.packing, self.dtype or self.runs[0].dtype, tally):
                yield by_leaf[leaf], raw
            return
        (tensor,) = self.tensors
        for part in self.packed:
            if part.quantization is None:
                yield from ((tensor, raw) for raw in _cast(part.leaves["weight"], tensor.dtype, tally))
            else:
                unpacked = unpacked_blocks(part.leaves, part.quantization, tensor.dtype, tally)
                yield from ((tensor, raw) for raw in unpacked)
        # If one run is cast, the error is that of the whole tensor: rows that do not change count too.
        exact = all(run.dtype == tensor.dtype for run in self.runs)
        for run in self.runs:
            blocks = run.chunks(COPY_BYTES) if exact else _cast(run, tensor.dtype, tally)
            yield from ((tensor, raw) for raw in blocks)


@dataclass(frozen=True)
class Recipe:
    """What to do with every part: the layout, the dtype of what is not packed, and a packing by part name."""

    layout: str
    dtype: mx.Dtype | None
    packings: Mapping[str, Quantization]
    unpack: bool
    repeats_head: bool
    asked: Quantization | None  # the packing that was asked for, to note the matrices that it does not fit


def jobs(made: Sequence[Module], parts: Mapping[str, Part], recipe: Recipe) -> list[Job]:
    """How the modules `layout_modules` are made, in the order of the forward pass."""
    if recipe.layout != "native":
        made = [replace(module, name=hf_name(module.name)) for module in made]
    if recipe.repeats_head:
        made = [*made, Module("lm_head", (parts["embed_tokens"],))]
    return [job for module in made for job in _jobs(module, recipe)]


def layout_modules(parts: Mapping[str, Part], config: Qwen3Config, recipe: Recipe) -> list[Module]:
    """Every module of the result: the parts as its layout stacks them."""
    if recipe.layout == "native":
        return modules(parts, config, recipe)
    # The parts of Hugging Face. But if any expert of a layer is packed, its experts are in the stacks of mlx-lm, which
    # reads all three matrices in this form or none.
    stacks = fusions(config, SWITCH)
    packed = {_owner(name) for name, stack in stacks.items() if any(packing_of(parts[p], recipe) for p in stack.parts)}
    return _stacked_parts(parts, recipe, {name: stack for name, stack in stacks.items() if _owner(name) in packed})


def _owner(name: str) -> str:
    """layers.0.mlp.switch_mlp.up_proj -> layers.0.mlp.switch_mlp"""
    return name.rpartition(".")[0]


def packing_of(part: Part, recipe: Recipe) -> Quantization | None:
    """The packing of a part of the result."""
    return recipe.packings.get(part.name) or (None if recipe.unpack else part.quantization)


def modules(parts: Mapping[str, Part], config: Qwen3Config, recipe: Recipe) -> list[Module]:
    """The parts as the native layout stacks them in this recipe."""
    return _stacked_parts(parts, recipe, fusions(config, *NATIVE))


def _stacked_parts(parts: Mapping[str, Part], recipe: Recipe, fused: Mapping[str, Fusion]) -> list[Module]:
    """The parts, stacked by the form that they have in the result."""
    if not recipe.unpack:
        return stacked_modules(parts, fused, recipe.dtype)
    unpacked = {name: _as_unpacked(part, recipe) for name, part in parts.items()}
    found = stacked_modules(unpacked, fused, recipe.dtype)
    return [replace(module, parts=tuple(parts[part.name] for part in module.parts)) for module in found]


def float_dtype(part: Part, dtype: mx.Dtype | None) -> mx.Dtype:
    """The dtype of a part that is not packed or is to be unpacked: `dtype`, or by default its own."""
    return part.float_dtype if dtype is None else dtype


def refuse_packed(parts: Mapping[str, Part], wanted: str) -> None:
    """Refuse packed parts: a second quantization would add its error to the first one and hide it."""
    for part in parts.values():
        if packing := part.quantization:
            had = f"{packing.mode}, {packing.bits} bits, groups of {packing.group_size}"
            raise UsageError(
                f"quantize is {wanted!r}, but {part.name} of the source is packed already ({had}); start from the "
                f"original checkpoint, or unpack this one first with --quantize {NONE}"
            )


def _jobs(module: Module, recipe: Recipe) -> list[Job]:
    part = module.parts[0]
    if recipe.unpack and any(member.quantization for member in module.parts):
        return [_unpacked(module, recipe)]
    if part.quantization is None and (packing := recipe.packings.get(part.name)):
        return [_quantized(module, packing, recipe)]
    return [_kept(leaf, runs, recipe, module) for leaf, runs in module.tensors()]


def _kept(name: str, runs: tuple[StoredTensor, ...], recipe: Recipe, module: Module) -> Job:
    dtype = recipe.dtype if recipe.dtype and runs[0].dtype in FLOATS else runs[0].kept
    rows = stacked_shape(runs)
    cast = ["cast"] if any(dtype not in (run.dtype, run.kept) for run in runs) else []
    made = _steps(module, runs, *cast)
    note = runs[0].note
    if recipe.asked and len(rows) == 2 and not fits(rows, recipe.asked):
        note = f"not quantized: {rows[1]} columns are not a multiple of {block_columns(recipe.asked)}"
    return Job((OutputTensor(name, dtype, module.shape(rows), _names(runs), made, note),), runs)


def _quantized(module: Module, packing: Quantization, recipe: Recipe) -> Job:
    ((_, runs),) = module.tensors()
    dtype = float_dtype(module.parts[0], recipe.dtype)
    made = _steps(module, runs, f"quantized {packing.mode} {packing.bits} bits, groups of {packing.group_size}")
    leaves = packed_leaves(module.shape(stacked_shape(runs)), packing)
    tensors = tuple(
        OutputTensor(f"{module.name}.{leaf}", dtype if dtype in dtypes else dtypes[0], shape, _names(runs), made)
        for leaf, (shape, dtypes) in leaves.items()
    )
    return Job(tensors, runs, packing, dtype=dtype)


def _unpacked(module: Module, recipe: Recipe) -> Job:
    parts = module.parts
    shape = (sum(part.leaves["weight"].shape[0] for part in parts), _columns(parts[0]))
    sources = tuple(name for part in parts for leaf in part.leaves.values() for name in leaf.sources)
    made = _steps(module, tuple(part.leaves["weight"] for part in parts), "dequantized")
    dtype = float_dtype(parts[0], recipe.dtype)
    tensor = OutputTensor(f"{module.name}.weight", dtype, module.shape(shape), tuple(dict.fromkeys(sources)), made)
    return Job((tensor,), (), None, parts)


def _columns(part: Part) -> int:
    groups = part.leaves["scales"].shape[1] * part.quantization.group_size if part.quantization else 0
    return groups or part.leaves["weight"].shape[1]


def _as_unpacked(part: Part, recipe: Recipe) -> Part:
    """The part with the leaves that it has after unpacking. They decide which parts can be stacked."""
    if part.quantization is None:
        return part
    weight = part.leaves["weight"]
    return Part(part.name, {"weight": StoredTensor(weight.name, part.float_dtype, (), weight.file, 0)}, None)


def _arrangement(module: Module, runs: Sequence[StoredTensor]) -> str:
    """fused: stacked from several tensors; split: rows of a fused one; copied: all of one."""
    if len(runs) > 1:
        return "fused"
    stored = bare(runs[0].name).rsplit(".", 1)[0]
    whole = (module.parts[0].name, "lm_head")  # an embedding may be stored under the name of the head it is tied to
    return "split" if len(module.parts) == 1 and stored not in whole else "copied"


def _names(runs: Sequence[StoredTensor]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for run in runs for name in run.sources))


def _steps(module: Module, runs: Sequence[StoredTensor], *last: str) -> str:
    """How a tensor is made, in words: `copied` only if there is nothing else to say."""
    origins = dict.fromkeys(run.made for run in runs if run.made)
    arrangement = _arrangement(module, runs)
    steps = [*([] if arrangement == "copied" else [arrangement]), *origins, *last]
    return ", ".join(steps) or arrangement


def _cast(tensor: StoredTensor, dtype: mx.Dtype, tally: Tally) -> Iterator[Buffer]:
    """By NumPy: for blocks this small, MLX's thread takes longer to begin than to cast."""
    for block in tensor.row_blocks(CAST_BYTES):
        rows = (block.shape[0], -1) if len(block.shape) > 1 else (1, -1)
        source = to_float32(block.read(), block.dtype).reshape(rows)
        bits = rounded(source, dtype, block.name)
        tally.add(source, to_float32(bits, dtype).reshape(rows).copy())
        yield bits.reshape(-1).view(np.uint8).data
