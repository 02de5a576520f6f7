"""Names and shapes of the parts of a model as data: what Hugging Face calls them, and what a layout stacks.

A part is a module of Hugging Face without `model.`: `layers.0.self_attn.q_proj`, `layers.0.mlp.experts.7.up_proj`.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from .config import Qwen3Config

# part -> shape of its weight, in the settings of config.json; * stands for the number of an expert
SHAPES: dict[str, tuple[str, ...]] = {
    "embed_tokens": ("vocab_size", "hidden_size"),
    "input_layernorm": ("hidden_size",),
    "self_attn.q_proj": ("num_attention_heads * head_dim", "hidden_size"),
    "self_attn.k_proj": ("num_key_value_heads * head_dim", "hidden_size"),
    "self_attn.v_proj": ("num_key_value_heads * head_dim", "hidden_size"),
    "self_attn.q_norm": ("head_dim",),
    "self_attn.k_norm": ("head_dim",),
    "self_attn.o_proj": ("hidden_size", "num_attention_heads * head_dim"),
    "post_attention_layernorm": ("hidden_size",),
    "mlp.gate_proj": ("intermediate_size", "hidden_size"),
    "mlp.up_proj": ("intermediate_size", "hidden_size"),
    "mlp.down_proj": ("hidden_size", "intermediate_size"),
    "mlp.gate": ("num_experts", "hidden_size"),  # the router
    "mlp.experts.*.gate_proj": ("moe_intermediate_size", "hidden_size"),
    "mlp.experts.*.up_proj": ("moe_intermediate_size", "hidden_size"),
    "mlp.experts.*.down_proj": ("hidden_size", "moe_intermediate_size"),
    "norm": ("hidden_size",),
    "lm_head": ("vocab_size", "hidden_size"),
}
OUTSIDE = ("embed_tokens", "norm", "lm_head")  # of the layers
DENSE = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")  # in layers without experts only
SPARSE = ("mlp.gate", *(f"mlp.experts.*.{name}" for name in ("gate_proj", "up_proj", "down_proj")))  # with experts only
LEAVES = ("weight", "scales", "biases")

Table = Mapping[str, tuple[str, ...]]
# fused module -> the parts whose rows it stacks, in this order. With a * it stacks those of every expert, first all of
# expert 0.
NAME_MAP: Table = {
    "self_attn.qkv_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "mlp.gate_up_proj": ("mlp.gate_proj", "mlp.up_proj"),
}
# The native layout; transformers 5 can write the same, as tensors without `.weight`.
EXPERT_MAP: Table = {
    "mlp.experts.gate_up_proj": ("mlp.experts.*.gate_proj", "mlp.experts.*.up_proj"),
    "mlp.experts.down_proj": ("mlp.experts.*.down_proj",),
}
# The native layout, if gate and up are packed differently
APART: Table = {f"mlp.experts.{name}": (f"mlp.experts.*.{name}",) for name in ("gate_proj", "up_proj")}
NATIVE = (NAME_MAP, EXPERT_MAP, APART)  # the first that is possible
# The layout of mlx-lm
SWITCH: Table = {f"mlp.switch_mlp.{name}": (f"mlp.experts.*.{name}",) for name in ("gate_proj", "up_proj", "down_proj")}
WITHOUT_LEAF = re.compile(r"\.mlp\.experts\.(gate_up|down)_proj$")


@dataclass(frozen=True)
class Fusion:
    """A fused module: one matrix of the rows of its parts, or a stack of a matrix for each of `experts` experts."""

    name: str
    parts: tuple[str, ...]
    experts: int | None = None


def part_shapes(config: Qwen3Config) -> dict[str, tuple[int, ...]]:
    """Weight shape of every part, in the order of the forward pass."""
    settings = {**vars(config), **(vars(config.moe) if config.moe else {})}

    def shape(kind: str) -> tuple[int, ...]:
        return tuple(math.prod(settings[key] for key in size.split(" * ")) for size in SHAPES[kind])

    shapes = {"embed_tokens": shape("embed_tokens")}
    for layer in range(config.num_hidden_layers):
        for kind in SHAPES:
            if _in_layer(kind, layer, config):
                shapes |= dict.fromkeys((f"layers.{layer}.{name}" for name in _numbered((kind,), config)), shape(kind))
    shapes["norm"] = shape("norm")
    return shapes if config.tie_word_embeddings else {**shapes, "lm_head": shape("lm_head")}


def fusions(config: Qwen3Config, *tables: Table) -> dict[str, Fusion]:
    """The fused modules of every layer in these tables, by full name."""
    found = {}
    for layer in range(config.num_hidden_layers):
        for fused, kinds in (item for table in tables for item in table.items()):
            if _in_layer(kinds[0], layer, config):
                name = f"layers.{layer}.{fused}"
                parts = tuple(f"layers.{layer}.{part}" for part in _numbered(kinds, config))
                found[name] = Fusion(name, parts, _experts(config) if "*" in kinds[0] else None)
    return found


def kind_of(name: str) -> str:
    """The key of SHAPES of a part: layers.3.mlp.experts.7.up_proj -> mlp.experts.*.up_proj"""
    inside = name.split(".", 2)[-1] if name.startswith("layers.") else name
    return re.sub(r"experts\.\d+\.", "experts.*.", inside)


def bare(name: str) -> str:
    """The name of a tensor, without `model.` and always with its leaf."""
    name = name.removeprefix("model.")
    return f"{name}.weight" if WITHOUT_LEAF.search(name) else name


def hf_name(name: str) -> str:
    """The name of a module in a Hugging Face file."""
    return name if name == "lm_head" else f"model.{name}"


def _in_layer(kind: str, layer: int, config: Qwen3Config) -> bool:
    sparse = config.moe is not None and layer in config.moe.layers
    return kind not in OUTSIDE and kind not in (DENSE if sparse else SPARSE)


def _numbered(kinds: Iterable[str], config: Qwen3Config) -> Iterator[str]:
    """The names of these parts, with the number of every expert in place of a *."""
    experts = range(_experts(config)) if any("*" in kind for kind in kinds) else ("",)
    return (kind.replace("*", str(expert)) for expert in experts for kind in kinds)


def _experts(config: Qwen3Config) -> int:
    return config.moe.num_experts if config.moe else 0
