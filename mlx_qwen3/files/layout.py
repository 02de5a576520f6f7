"""Which tensor of a checkpoint is which parameter: names and shapes as data, every tensor accounted for.

A checkpoint holds a part (see names.py) by itself, or as rows of a fused matrix or of a stack of experts' matrices.
`locate_parts` finds it either way.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path

import mlx.core as mx

from ..errors import CheckpointError, ConfigError
from .config import Qwen3Config
from .dtypes import FLOATS, NAMES, prevailing
from .headers import StoredTensor, join
from .names import LEAVES, NATIVE, OUTSIDE, SHAPES, SWITCH, Fusion, bare, fusions, kind_of, part_shapes
from .packed import unpacked_names
from .quantization import Quantization, inferred
from .reading import short, some
from .surplus import is_ignored, refuse_added

OTHER_MODEL = "config.json and weights are of different models"


@dataclass(frozen=True)
class Part:
    """One Hugging Face module: its tensors by leaf name, and how they are packed."""

    name: str
    leaves: Mapping[str, StoredTensor]
    quantization: Quantization | None

    @property
    def float_dtype(self) -> mx.Dtype:
        """The dtype of its values once they are unpacked."""
        if self.quantization is None:
            return self.leaves["weight"].kept
        return self.leaves["scales"].kept if self.quantization.mode == "affine" else mx.bfloat16


@dataclass(frozen=True)
class Module:
    """One module of a layout: a single part, or the parts whose rows it stacks; `experts` as in Fusion."""

    name: str
    parts: tuple[Part, ...]
    experts: int | None = None

    @property
    def quantization(self) -> Quantization | None:
        return self.parts[0].quantization

    def tensors(self) -> Iterator[tuple[str, tuple[StoredTensor, ...]]]:
        """(parameter name, the tensors to stack along the rows)."""
        for leaf in self.parts[0].leaves:
            yield f"{self.name}.{leaf}", join([part.leaves[leaf] for part in self.parts])

    def shape(self, rows: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of a tensor of this module, from its shape with the rows of all experts in one matrix."""
        return rows if self.experts is None else (self.experts, rows[0] // self.experts, *rows[1:])


def locate_parts(folder: Path, tensors: Mapping[str, StoredTensor], config: Qwen3Config) -> dict[str, Part]:
    """Every part of the model among the tensors of the checkpoint in `folder`, checked against the config.

    Raises CheckpointError for a tensor that is missing, not expected, or of another shape or dtype, and ConfigError
    if head_dim contradicts the tensors.
    """
    tensors = _without_prefix({name: tensor for name, tensor in tensors.items() if not is_ignored(name)})
    refuse_added(folder, tensors)
    tensors = _with_embedding(tensors, config)
    _check_head_dim(tensors, config)
    shapes = part_shapes(config)
    tensors, packings = unpacked_names(tensors, shapes, config.form)
    located, claimed = _locate(tensors, shapes, fusions(config, *NATIVE, SWITCH))
    claimed |= repeated_head(tensors, config).keys()
    if missing := [f"{name}.weight" for name, leaves in located.items() if "weight" not in leaves]:
        raise CheckpointError(f"{folder} lacks {some(missing)}; {_remedy(missing, config)}")
    if extra := sorted(tensors.keys() - claimed):
        raise CheckpointError(
            f"{folder} holds {some(extra)}, which a Qwen3 with this config.json does not have; {OTHER_MODEL}"
        )
    parts = {}
    for name, leaves in located.items():
        packing = packings.get(name) or _packing(name, leaves, shapes[name][-1], config)
        parts[name] = Part(name, leaves, packing)
        _check_leaves(parts[name], shapes[name])
    return parts


def native_modules(parts: Mapping[str, Part], config: Qwen3Config, dtype: mx.Dtype | None = None) -> list[Module]:
    """The parts as the native layout stacks them, for tensors kept in their dtypes or cast to `dtype`.

    Parts that cannot share one matrix, because packing or dtype differ, stay by themselves.
    """
    return stacked_modules(parts, fusions(config, *NATIVE), dtype)


def stacked_modules(
    parts: Mapping[str, Part], fused: Mapping[str, Fusion], dtype: mx.Dtype | None = None
) -> list[Module]:
    """The parts, those of each fused module stacked if they can share one matrix; the first that is possible."""
    by_part: dict[str, list[Fusion]] = {}
    for fusion in fused.values():
        by_part.setdefault(fusion.parts[0], []).append(fusion)
    modules: list[Module] = []
    done: set[str] = set()
    for name, part in parts.items():
        if name in done:
            continue
        module = Module(name, (part,))
        for fusion in by_part.get(name, ()):
            members = tuple(parts[member] for member in fusion.parts)
            if len({_stacking_key(member, dtype) for member in members}) == 1:
                module = Module(fusion.name, members, fusion.experts)
                break
        modules.append(module)
        done |= {member.name for member in module.parts}
    return modules


def packed_leaves(
    shape: tuple[int, ...], packing: Quantization
) -> dict[str, tuple[tuple[int, ...], tuple[mx.Dtype, ...]]]:
    """(shape, possible dtypes) of what a packed matrix of `shape` is stored as, by leaf name."""
    groups = (*shape[:-1], shape[-1] // packing.group_size)
    weight = ((*shape[:-1], shape[-1] * packing.bits // 32), (mx.uint32,))
    if packing.mode == "affine":
        return {"weight": weight, "scales": (groups, FLOATS), "biases": (groups, FLOATS)}
    return {"weight": weight, "scales": (groups, (mx.uint8,))}


def checkpoint_dtype(parts: Mapping[str, Part]) -> mx.Dtype:
    """The float dtype of most values. In a quantized checkpoint it is that of the original weights."""
    leaves = [leaf for part in parts.values() for leaf in part.leaves.values()]
    return prevailing((leaf.kept, leaf.shape) for leaf in leaves)


def repeated_head(
    tensors: Mapping[str, StoredTensor], config: Qwen3Config
) -> dict[str, tuple[StoredTensor, StoredTensor]]:
    """(head, embedding) of an lm_head that repeats the embedding it is tied to, by name, as 0.6B and 1.7B ship it.

    Its values are not read here: `Checkpoint.check_repeated_head` compares them. The dtype may be another float.
    """
    plain = _with_embedding(_without_prefix(tensors), config)
    names = sorted({f"lm_head.{leaf}" for leaf in LEAVES} & plain.keys()) if config.tie_word_embeddings else []
    pairs = {}
    for name in names:
        head, embedding = plain[name], plain.get(name.replace("lm_head", "embed_tokens"))
        if embedding is None or head.shape != embedding.shape or not _comparable(head.dtype, embedding.dtype):
            raise head_differs(name)
        pairs[name] = (head, embedding)
    return pairs


def _with_embedding(tensors: Mapping[str, StoredTensor], config: Qwen3Config) -> Mapping[str, StoredTensor]:
    """safetensors' own `save_model` stores the matrix of a tied model once, as lm_head: it is the embedding."""
    names = {f"lm_head.{leaf}" for leaf in LEAVES} if config.tie_word_embeddings else set()
    if any(name.startswith("embed_tokens.") for name in tensors):
        return tensors
    return {name.replace("lm_head", "embed_tokens") if name in names else name: t for name, t in tensors.items()}


def _comparable(a: mx.Dtype, b: mx.Dtype) -> bool:
    return a == b or (a in FLOATS and b in FLOATS)


def head_differs(name: str) -> CheckpointError:
    return CheckpointError(
        f"tie_word_embeddings is true, but {name} differs from the embedding; "
        "set it to false in config.json to use lm_head, or remove lm_head"
    )


def _without_prefix(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    plain: dict[str, StoredTensor] = {}
    for name, tensor in tensors.items():
        if (known := bare(name)) in plain:
            raise CheckpointError(f"{short(known)} is stored with and without the prefix 'model.'; remove one of them")
        plain[known] = tensor
    return plain


def _locate(
    tensors: Mapping[str, StoredTensor], shapes: Mapping[str, tuple[int, ...]], fused: Mapping[str, Fusion]
) -> tuple[dict[str, dict[str, StoredTensor]], set[str]]:
    """(the leaves found for every part, the names of the tensors they lie in)."""
    located: dict[str, dict[str, StoredTensor]] = {
        name: {leaf: tensors[f"{name}.{leaf}"] for leaf in LEAVES if f"{name}.{leaf}" in tensors} for name in shapes
    }
    claimed = {f"{name}.{leaf}" for name, leaves in located.items() for leaf in leaves}
    for whole, fusion in fused.items():
        if not any(f"{whole}.{leaf}" in tensors for leaf in LEAVES) or any(located[name] for name in fusion.parts):
            continue
        heights = [shapes[name][0] for name in fusion.parts]
        for leaf in LEAVES:
            if (tensor := tensors.get(f"{whole}.{leaf}")) is None:
                continue
            rows = _as_rows(tensor, sum(heights), fusion.experts)
            claimed.add(f"{whole}.{leaf}")
            for name, first, height in zip(fusion.parts, accumulate(heights, initial=0), heights, strict=False):
                located[name][leaf] = rows.rows(first, height)
    return located, claimed


def _as_rows(tensor: StoredTensor, rows: int, experts: int | None) -> StoredTensor:
    """A fused tensor with all its rows in one matrix. Raises CheckpointError if it has another number of them."""
    if experts is None:
        if tensor.shape[:1] != (rows,):
            raise CheckpointError(f"{tensor.name} has shape {list(tensor.shape)}, but config.json gives {rows} rows")
        return tensor
    if len(tensor.shape) != 3 or tensor.shape[:2] != (experts, rows // experts):
        raise CheckpointError(
            f"{tensor.name} has shape {list(tensor.shape)}, but config.json gives {experts} experts of "
            f"{rows // experts} rows"
        )
    return replace(tensor, shape=(rows, tensor.shape[2]))


def _packing(name: str, leaves: Mapping[str, StoredTensor], columns: int, config: Qwen3Config) -> Quantization | None:
    """The packing of a part: from config.json if it names the part or what it is stored in, else from the shapes."""
    if "scales" not in leaves:
        return None
    stored = bare(leaves["scales"].name).removesuffix(".scales")
    named = next((known for known in (name, stored) if known in config.quantization_overrides), None)
    packing = config.quantization if named is None else config.quantization_overrides[named]
    if packing is None:
        raise ConfigError(f"{name}.scales is stored, but config.json has no quantization for {name}")
    if named is not None:
        return packing
    weight, scales = leaves["weight"], leaves["scales"]
    if not weight.shape or not scales.shape:  # scalars, which _check_leaves refuses
        return packing
    return inferred(columns, weight.shape[-1], scales.shape[-1], scales.dtype == mx.uint8) or packing


def _check_leaves(part: Part, shape: tuple[int, ...]) -> None:
    """Every leaf that the packing asks for, with its shape and dtype, and no other."""
    expected = packed_leaves(shape, part.quantization) if part.quantization else {"weight": (shape, FLOATS)}
    if part.leaves.keys() != expected.keys():
        raise CheckpointError(f"{part.name} has {sorted(part.leaves)}, expected {sorted(expected)} by its quantization")
    for leaf, (wanted, dtypes) in expected.items():
        tensor = part.leaves[leaf]
        if tensor.shape != wanted:
            resized = len(wanted) == 2 and part.name in OUTSIDE and tensor.shape[1:] == wanted[1:]
            remedy = f"if the embedding was resized, set vocab_size to {tensor.shape[0]}" if resized else OTHER_MODEL
            raise CheckpointError(
                f"{tensor.name} has shape {list(tensor.shape)}, but config.json gives {list(wanted)} "
                f"by [{', '.join(SHAPES[kind_of(part.name)])}]; {remedy}"
            )
        if tensor.dtype not in dtypes:
            names = ", ".join(NAMES[dtype] for dtype in dtypes)
            raise CheckpointError(f"{tensor.name} has dtype {tensor.dtype_name}; expected {names}")


def _check_head_dim(tensors: Mapping[str, StoredTensor], config: Qwen3Config) -> None:
    for name, tensor in tensors.items():
        if name.endswith(("q_norm.weight", "k_norm.weight")) and tensor.shape != (config.head_dim,):
            raise ConfigError(
                f"head_dim is {config.head_dim} in config.json, but {short(tensor.name)} has shape "
                f"{list(tensor.shape)}; set head_dim to what the weights say"
            )


def _stacking_key(part: Part, dtype: mx.Dtype | None) -> tuple[object, ...]:
    dtypes = {leaf: dtype if dtype and tensor.dtype in FLOATS else tensor.kept for leaf, tensor in part.leaves.items()}
    return part.quantization, *sorted((leaf, NAMES[value]) for leaf, value in dtypes.items())


def _remedy(missing: list[str], config: Qwen3Config) -> str:
    if missing == ["lm_head.weight"]:
        return "tie_word_embeddings is false, so the output needs a matrix of its own; the checkpoint is incomplete"
    return f"config.json gives {config.num_hidden_layers} layers; the checkpoint is incomplete or of another model"
