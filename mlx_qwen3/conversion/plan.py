"""A conversion before it is run: every tensor, every file, and the sizes before and after."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import isfinite, prod
from typing import Any

import mlx.core as mx

from ..errors import CheckpointError, UsageError
from ..files.checkpoint import Checkpoint
from ..files.config import Qwen3Config
from ..files.config_keys import FORMAT
from ..files.dtypes import NAMES, dtype_name, parse_dtype, prevailing
from ..files.layout import Module, Part
from ..files.moe import spelled_out
from ..files.names import part_shapes
from ..files.packed import why_left_out
from ..files.quantization import Quantization
from ..files.surplus import is_ignored
from ..progress import Progress, silent
from .quantize import DEFAULT_BITS, LEVELS, MIXED, NONE, block_columns, fits, mixed, packing_for, parse
from .shards import Shard, plan_shards
from .transform import Recipe, float_dtype, jobs, layout_modules, modules, packing_of, refuse_packed

LAYOUTS = ("native", "hf")
SHARD_BYTES = 5 * 10**9
NO_PACKING = "this model cannot be quantized, leave quantize out"


@dataclass(frozen=True)
class Options:
    """How to convert a checkpoint. `quantize` is None to keep the packing, a mode, mixed, or none to unpack."""

    dtype: str | None = None
    layout: str = "native"
    quantize: str | None = None
    bits: float | None = None  # budget of mixed, in bits per weight over the whole checkpoint
    shard_bytes: int = SHARD_BYTES
    adapters: tuple[str, ...] = ()  # merged into the weights first, each FOLDER|HUBID[=SCALE]

    def __post_init__(self) -> None:
        """Raises UsageError for a value that is unknown or contradicts another."""
        parse_dtype(self.dtype)
        parse(self.quantize)
        if self.layout not in LAYOUTS:
            raise UsageError(f"layout is {self.layout!r}; expected {' or '.join(LAYOUTS)}")
        if self.bits is not None and self.quantize != MIXED:
            raise UsageError(f"bits is {self.bits:g}, but quantize is {self.quantize!r}; a budget needs {MIXED!r}")
        if self.bits is not None and not isfinite(self.bits):
            raise UsageError(f"bits is {self.bits:g}; expected bits per weight, such as {DEFAULT_BITS:g}")
        if self.shard_bytes < 1:
            raise UsageError(f"shard_bytes is {self.shard_bytes}; expected 1 or more")


@dataclass(frozen=True)
class Plan:
    """What a conversion will do; `summary` is what --dry-run prints."""

    source: Checkpoint
    options: Options
    config: Qwen3Config
    config_json: Mapping[str, Any]  # of the result
    dtype: str
    shards: tuple[Shard, ...]
    dropped: Mapping[str, str]  # tensors of the source that are left out of the result -> why
    source_bytes: int

    @property
    def bytes(self) -> int:
        return sum(shard.nbytes for shard in self.shards)

    @property
    def bits_per_weight(self) -> float:
        return self.bytes * 8 / sum(prod(shape) for shape in part_shapes(self.config).values())

    def summary(self) -> dict[str, Any]:
        tensors = [
            {"name": t.name, "from": t.sources, "shape": t.shape, "dtype": NAMES[t.dtype], "made": t.made}
            | ({"note": t.note} if t.note else {})
            for shard in self.shards
            for t in shard.tensors
        ]
        return {
            "source": str(self.source.folder),
            **asdict(self.options),
            "dtype": self.dtype,
            "source_bytes": self.source_bytes,
            "bytes": self.bytes,
            "bits_per_weight": self.bits_per_weight,
            "files": {shard.file: shard.nbytes for shard in self.shards},
            "tensors": tensors,
            "dropped": dict(self.dropped),
        }


def make_plan(source: Checkpoint, options: Options, progress: Progress = silent) -> Plan:
    """Decide from the headers of a checkpoint how every tensor is converted.

    Weights are read in two cases: to compare a repeated lm_head with the embedding, and to measure the error of fewer
    bits for `mixed`. Raises UsageError, ConfigError or CheckpointError.
    """
    raw, config, parts, stored = source.raw_config, source.config, source.parts, source.tensors
    source.check_repeated_head()
    repeats_head = _repeats_head(stored, raw, config)
    recipe = _recipe(parts, options, repeats_head)
    recipe = replace(recipe, packings=_packings(parts, config, options, recipe, progress))
    result = layout_modules(parts, config, recipe)
    made = jobs(result, parts, recipe)
    tensors = [tensor for job in made for tensor in job.tensors]
    dtype = prevailing((tensor.dtype, tensor.shape) for tensor in tensors)
    used = {name for tensor in tensors for name in tensor.sources}
    if recipe.repeats_head:
        used |= {name for name in stored if name.startswith("lm_head.")}
    return Plan(
        source=source,
        options=options,
        config=config,
        config_json=_config(raw, config, options.layout, dtype, _packings_by_name(result, recipe), repeats_head),
        dtype=dtype_name(dtype),
        shards=tuple(plan_shards(made, options.shard_bytes)),
        dropped={name: _why_dropped(name) for name in sorted(stored.keys() - used)},
        source_bytes=sum(tensor.nbytes for tensor in stored.values()),
    )


def _why_dropped(name: str) -> str:
    computed = "computed from config.json instead" if is_ignored(name) else ""
    return computed or why_left_out(name) or "repeats the embedding that it is tied to"


def default_layout(quantize: str | None) -> str:
    """hf if the result is quantized, since mlx-lm cannot read native; native otherwise."""
    return "native" if quantize is None else "hf"


def _recipe(parts: Mapping[str, Part], options: Options, repeats_head: bool) -> Recipe:
    packing = parse(options.quantize)
    if packing is not None and packing != NONE:
        refuse_packed(parts, str(options.quantize))
        _check_fit(parts, options, packing if isinstance(packing, Quantization) else LEVELS[0])
        repeats_head = False  # mlx-lm refuses the scales of a repeated lm_head
    return Recipe(
        layout=options.layout,
        dtype=parse_dtype(options.dtype),
        packings={},
        unpack=packing == NONE,
        repeats_head=repeats_head and options.layout == "hf",
        asked=packing if isinstance(packing, Quantization) else None,
    )


def _check_fit(parts: Mapping[str, Part], options: Options, packing: Quantization) -> None:
    """Raises CheckpointError if no matrix can be packed, because then the result would not be quantized at all."""
    shapes = [part.leaves["weight"].shape for part in parts.values()]
    if any(fits(shape, packing) for shape in shapes):
        return
    widths, block = sorted({shape[1] for shape in shapes if len(shape) == 2}), block_columns(packing)
    smaller = any(width % 32 == 0 for width in widths)
    raise CheckpointError(
        f"quantize is {options.quantize!r}, which packs {block} columns at a time, but no width is a multiple of that: "
        f"they are {', '.join(map(str, widths))}; {'use groups of 32, affine4g32' if smaller else NO_PACKING}"
    )


def _packings(
    parts: Mapping[str, Part], config: Qwen3Config, options: Options, recipe: Recipe, progress: Progress
) -> dict[str, Quantization]:
    if recipe.asked:
        shapes = {name: part.leaves["weight"].shape for name, part in parts.items()}
        found = {name: packing_for(name, shape, recipe.asked) for name, shape in shapes.items()}
        return {name: packing for name, packing in found.items() if packing}
    if options.quantize != MIXED:
        return {}
    return mixed(
        modules(parts, config, recipe),
        lambda module: float_dtype(module.parts[0], recipe.dtype),
        DEFAULT_BITS if options.bits is None else options.bits,
        progress,
    )


def _packings_by_name(result: Sequence[Module], recipe: Recipe) -> dict[str, Quantization]:
    """The packings of the result as config.json names them: by part, or by the name of a stack of experts."""
    return {
        name: packing
        for module in result
        if (packing := packing_of(module.parts[0], recipe))
        for name in ([module.name] if module.experts else [part.name for part in module.parts])
    }


def _repeats_head(stored: Mapping[str, Any], raw: Mapping[str, Any], config: Qwen3Config) -> bool:
    """Whether the original checkpoint repeats the tied embedding as lm_head. The native layout only records this."""
    noted = (raw.get("mlx_qwen3") or {}).get("repeats_lm_head", False)
    present = {name.rsplit(".", 2)[-2] for name in stored if name.endswith(".weight")}
    return config.tie_word_embeddings and (noted or {"embed_tokens", "lm_head"} <= present)


def _config(
    raw: Mapping[str, Any],
    config: Qwen3Config,
    layout: str,
    dtype: mx.Dtype,
    packings: Mapping[str, Quantization],
    repeats_head: bool,
) -> dict[str, Any]:
    """config.json of the result: the keys of the source, with dtype and quantization where this layout has them."""
    ours = ("mlx_qwen3", "quantization", "quantization_config")
    result = {key: value for key, value in raw.items() if key not in ours}
    for key in {"dtype", "torch_dtype"} & result.keys() or {"torch_dtype"}:  # transformers 5 and 4
        result[key] = dtype_name(dtype)
    if layout == "hf" and config.moe:
        result |= spelled_out(raw, config.moe, config.rope_theta)
    if layout == "native":
        quantization = _quantization(packings, "")
        note = {"format": FORMAT, "layout": layout, "dtype": dtype_name(dtype), "quantization": quantization}
        return result | {"mlx_qwen3": note | ({"repeats_lm_head": True} if repeats_head else {})}
    if quantization := _quantization(packings, "model."):
        result |= {"quantization": quantization, "quantization_config": quantization}  # mlx-lm writes both
    return result


def _quantization(packings: Mapping[str, Quantization], prefix: str) -> dict[str, Any] | None:
    """The most common packing as the default, and the other modules by name, as mlx-lm writes it."""
    if not packings:
        return None
    kinds = list(packings.values())
    default = max(kinds, key=kinds.count)
    others = {name: asdict(packing) for name, packing in packings.items() if packing != default}
    return asdict(default) | {name if name == "lm_head" else prefix + name: value for name, value in others.items()}
