"""transformers' Qwen3 as a source of steps: its own forward pass, one layer at a time, every step by its name.

It imports torch and transformers, which only tests, `bench` and comparisons need: import this module only when needed.

B batch, L tokens, H query heads, K key/value heads, D head_dim
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from warnings import catch_warnings, simplefilter

import numpy as np
import torch
from torch import nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)
from transformers.utils import logging

from ..files.adapters import Adapter
from ..files.checkpoint import Checkpoint
from ..files.names import part_shapes
from ..files.values import read_rows
from .layer_steps import LayerSteps, score_maker

OURS = ("mlx_qwen3", "quantization", "quantization_config")  # in config.json, but not for transformers
WATCHED = "mlx_qwen3_watched"  # our attention function's name in transformers' registry
MODELS: dict[str, tuple[Any, Any]] = {
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "qwen3_moe": (Qwen3MoeConfig, Qwen3MoeForCausalLM),
}
# step -> (submodule of a layer, whether the step is its input or its output)
HOOKS = {
    "input_norm": ("input_layernorm", "output"),
    "q_split": ("self_attn.q_proj", "output"),
    "k_split": ("self_attn.k_proj", "output"),
    "v_split": ("self_attn.v_proj", "output"),
    "q_heads": ("self_attn.q_norm", "input"),
    "k_heads": ("self_attn.k_norm", "input"),
    "q_norm": ("self_attn.q_norm", "output"),
    "k_norm": ("self_attn.k_norm", "output"),
    "merged_heads": ("self_attn.o_proj", "input"),
    "o_proj": ("self_attn.o_proj", "output"),
    "residual": ("post_attention_layernorm", "input"),
    "post_norm": ("post_attention_layernorm", "output"),
    "down": ("mlp", "output"),
}
DENSE = {
    "gate": ("mlp.gate_proj", "output"),
    "up": ("mlp.up_proj", "output"),
    "activation": ("mlp.down_proj", "input"),
}
SPARSE = {"router": ("mlp.gate", "output")}


def load(checkpoint: Checkpoint) -> Any:
    """transformers' model of a checkpoint in any layout, in float32; packed weights are unpacked."""
    logging.disable_progress_bar()
    settings = {key: value for key, value in checkpoint.raw_config.items() if key not in OURS}
    weights = {name: torch.tensor(values) for name, values in _float_weights(checkpoint)}
    config, model = MODELS[settings["model_type"]]
    options = {"config": config(**settings), "state_dict": weights, "dtype": torch.float32}
    return model.from_pretrained(None, **options, attn_implementation=WATCHED).eval()


def with_peft(model: Any, adapters: Sequence[Adapter]) -> Any:
    """The model with adapters, which PEFT reads from their folders and applies beside the weights."""
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

    names = [f"adapter_{index}" for index in range(len(adapters))]
    folders = [str(adapter.file.path.parent) for adapter in adapters]
    with catch_warnings():
        simplefilter("ignore")  # of what it names in its own way
        wrapped: Any = PeftModel.from_pretrained(model, folders[0], adapter_name=names[0])
        for name, folder in zip(names[1:], folders[1:], strict=True):
            wrapped.load_adapter(folder, adapter_name=name)
        wrapped.base_model.set_adapter(names)
    for module in model.modules():
        if isinstance(module, LoraLayer):
            for name, adapter in zip(names, adapters, strict=True):
                if name in module.scaling:
                    module.scaling[name] *= adapter.strength
    return model.eval()


@torch.no_grad()
def steps(model: Any, ids: np.ndarray) -> Iterator[LayerSteps]:
    """The steps of transformers for token ids (B, L): a LayerSteps per layer, then one with final_norm and logits.

    The pass is that of transformers' Qwen3Model, run with one layer at a time on the state before that layer.
    """
    body, config = model.model, model.config
    layers, norm = body.layers, body.norm
    body.norm = nn.Identity()
    x = body.embed_tokens(torch.from_numpy(ids))  # (B, L, hidden)
    for layer in layers:
        body.layers = nn.ModuleList([layer])
        with _watched(layer) as found:
            y = body(inputs_embeds=x, use_cache=False).last_hidden_state
        layer_steps = _named(found, x, y, body.rotary_emb.attention_scaling, config)
        if hasattr(layer.mlp, "experts"):
            layer_steps.arrays["expert_down"] = _expert_outputs(layer.mlp.experts, layer_steps.arrays)
        yield layer_steps
        x = y
    hidden = norm(x)
    yield LayerSteps({"final_norm": hidden, "logits": model.lm_head(hidden)})


def _named(found: dict[str, Any], x: Any, y: Any, factor: float, config: Any) -> LayerSteps:
    """The steps with the names and shapes that this package's model gives them.

    `factor` is YaRN's attention factor: transformers multiplies q and k by it, and this package scales their product.
    """
    B, L = x.shape[:2]
    q, k, v, scale = (found.pop(name) for name in ("query", "key", "value", "scaling"))
    if "router" in found:
        logits, weights, chosen = (array.unflatten(0, (B, L)) for array in found.pop("router"))
        order = chosen.argsort()  # transformers has the expert with the largest weight first
        mlp = {"router_logits": logits, "chosen_experts": chosen.gather(-1, order)}
        mlp["expert_weights"] = weights.gather(-1, order)
    else:
        mlp = {"gate_up": torch.cat([found.pop("gate"), found.pop("up")], dim=-1)}
    heads = found["v_split"].reshape(B, L, config.num_key_value_heads, config.head_dim)
    arrays = {
        "input": x,
        **found,
        "qkv": torch.cat([found[f"{name}_split"] for name in "qkv"], dim=-1),
        "v_heads": heads,
        "q_heads_transposed": found["q_norm"].transpose(1, 2),  # (B, H, L, D)
        "k_heads_transposed": found["k_norm"].transpose(1, 2),  # (B, K, L, D)
        "v_heads_transposed": heads.transpose(1, 2),
        "q_rope": q / factor,
        "k_rope": k / factor,
        "k_cache": k / factor,
        "v_cache": v,
        **mlp,
        "output": y,
    }
    return LayerSteps(arrays, score_maker(arrays["q_rope"], arrays["k_cache"], scale * factor**2))


def _expert_outputs(experts: Any, arrays: dict[str, Any]) -> Any:
    """The output of each chosen expert, (B, L, k, hidden): transformers adds them up, so each is computed alone."""
    x, chosen = (arrays[name].flatten(0, 1) for name in ("post_norm", "chosen_experts"))
    ones = torch.ones(len(x), 1)
    outputs = [experts(x, chosen[:, [slot]], ones) for slot in range(chosen.shape[-1])]
    return torch.stack(outputs, dim=1).reshape(*arrays["chosen_experts"].shape, -1)


@contextmanager
def _watched(layer: Any) -> Iterator[dict[str, Any]]:
    """Collects the steps of one pass through a layer."""
    found: dict[str, Any] = {}

    def keep(name: str, side: str) -> Any:
        def hook(_module: Any, inputs: Any, output: Any) -> None:
            found[name] = inputs[0] if side == "input" else output

        return hook

    places = HOOKS | (SPARSE if hasattr(layer.mlp, "experts") else DENSE)
    hooks = [layer.get_submodule(path).register_forward_hook(keep(name, side)) for name, (path, side) in places.items()]
    layer.self_attn.found = found  # for `_attention`
    try:
        yield found
    finally:
        del layer.self_attn.found
        for hook in hooks:
            hook.remove()


def _attention(module: Any, query: Any, key: Any, value: Any, mask: Any, **options: Any) -> Any:
    """transformers' default attention function, which also keeps its inputs and its output (B, L, H, D)."""
    output, weights = AttentionInterface()["sdpa"](module, query, key, value, mask, **options)
    if (found := getattr(module, "found", None)) is not None:
        found |= {"query": query, "key": key, "value": value, "scaling": options["scaling"]}
        found["attention"] = output.transpose(1, 2)
    return output, weights


AttentionInterface.register(WATCHED, _attention)
AttentionMaskInterface.register(WATCHED, AttentionMaskInterface()["sdpa"])


def _float_weights(checkpoint: Checkpoint) -> Iterator[tuple[str, np.ndarray]]:
    """Every weight as float32, by transformers' name."""
    parts = checkpoint.parts
    for name in part_shapes(checkpoint.config):
        leaves = parts[name].leaves
        prefix = "" if name == "lm_head" else "model."
        yield f"{prefix}{name}.weight", read_rows(leaves, parts[name].quantization, 0, leaves["weight"].shape[0]).copy()
