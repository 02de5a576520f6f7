"""Checkpoints for the tests, every weight random: Hugging Face initialises norms to 1, which hides swapped norms."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import tokenizers
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

# head_dim != hidden / heads, fewer kv heads, a prime vocabulary, and no two sizes alike
TINY: dict[str, Any] = {
    "model_type": "qwen3",
    "architectures": ["Qwen3ForCausalLM"],
    "vocab_size": 151,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 20,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "max_position_embeddings": 40960,
    "tie_word_embeddings": True,
    "attention_bias": False,
    "use_sliding_window": False,
    "torch_dtype": "float32",
    "eos_token_id": 3,
}
# A dense layer between two sparse ones; no two sizes alike, and no size of TINY that they could be taken for
TINY_MOE: dict[str, Any] = {
    **TINY,
    "model_type": "qwen3_moe",
    "architectures": ["Qwen3MoeForCausalLM"],
    "num_hidden_layers": 3,
    "num_experts": 7,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 28,
    "norm_topk_prob": True,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [1],
}
# The sizes of a layer of Qwen3-30B-A3B
FULL_MOE: dict[str, Any] = {
    **TINY_MOE,
    "hidden_size": 2048,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 768,
    "mlp_only_layers": [],
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 10240}


def shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Hugging Face names and shapes, written out by hand and not taken from the package."""
    hidden, inner, D = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    H, K = config["num_attention_heads"], config["num_key_value_heads"]
    result: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], hidden)}
    for i in range(config["num_hidden_layers"]):
        result |= {
            f"model.layers.{i}.input_layernorm.weight": (hidden,),
            f"model.layers.{i}.self_attn.q_proj.weight": (H * D, hidden),
            f"model.layers.{i}.self_attn.k_proj.weight": (K * D, hidden),
            f"model.layers.{i}.self_attn.v_proj.weight": (K * D, hidden),
            f"model.layers.{i}.self_attn.q_norm.weight": (D,),
            f"model.layers.{i}.self_attn.k_norm.weight": (D,),
            f"model.layers.{i}.self_attn.o_proj.weight": (hidden, H * D),
            f"model.layers.{i}.post_attention_layernorm.weight": (hidden,),
        }
        if is_sparse(config, i):
            result[f"model.layers.{i}.mlp.gate.weight"] = (config["num_experts"], hidden)
            for expert in range(config["num_experts"]):
                result |= mlp_shapes(f"model.layers.{i}.mlp.experts.{expert}", hidden, config["moe_intermediate_size"])
        else:
            result |= mlp_shapes(f"model.layers.{i}.mlp", hidden, inner)
    result["model.norm.weight"] = (hidden,)
    if not config["tie_word_embeddings"]:
        result["lm_head.weight"] = (config["vocab_size"], hidden)
    return result


def mlp_shapes(prefix: str, hidden: int, inner: int) -> dict[str, tuple[int, ...]]:
    return {
        f"{prefix}.gate_proj.weight": (inner, hidden),
        f"{prefix}.up_proj.weight": (inner, hidden),
        f"{prefix}.down_proj.weight": (hidden, inner),
    }


def is_sparse(config: dict[str, Any], layer: int) -> bool:
    """Whether a layer has experts, as transformers decides it."""
    sparse = config.get("model_type") == "qwen3_moe" and (layer + 1) % config.get("decoder_sparse_step", 1) == 0
    return sparse and layer not in config.get("mlp_only_layers", [])


def random_weights(config: dict[str, Any], seed: int = 0) -> dict[str, np.ndarray]:
    """float32 tensors by Hugging Face name; the logits have magnitudes near 6."""
    rng = np.random.default_rng(seed)
    weights = {}
    for name, shape in shapes(config).items():
        if len(shape) == 1:
            value = rng.uniform(0.5, 1.5, shape)
        else:
            value = rng.normal(0, 1.0 if "embed" in name else shape[1] ** -0.5, shape)
        weights[name] = value.astype(np.float32)
    weights["model.norm.weight"] *= np.float32(1.0 / np.sqrt(config["hidden_size"]))
    if "lm_head.weight" in weights:
        weights["lm_head.weight"] *= np.float32(np.sqrt(config["hidden_size"]))
    return weights


def write_checkpoint(
    folder: Path, config: dict[str, Any] | None = None, weights: dict[str, np.ndarray] | None = None, **changes: Any
) -> Path:
    """A Hugging Face folder; `changes` to the config, where None removes a key."""
    config = {key: value for key, value in {**TINY, **(config or {}), **changes}.items() if value is not None}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file(random_weights(config) if weights is None else weights, folder / "model.safetensors", {"format": "pt"})
    return folder


def write_shards(folder: Path, count: int, seed: int = 0) -> Path:
    """The tensors of a checkpoint over `count` files in random order, with an index, in place of its one file."""
    weights = load_file(folder / "model.safetensors")
    names = list(np.random.default_rng(seed).permutation(list(weights)))
    places: dict[str, str] = {}
    for number in range(count):
        file = f"model-{number + 1:05}-of-{count:05}.safetensors"
        mine = names[number::count]
        save_file({name: weights[name] for name in mine}, folder / file)
        places |= dict.fromkeys(mine, file)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


PACKABLE = {"hidden_size": 128, "head_dim": 32, "intermediate_size": 192}  # row lengths that groups of 64 divide
AFFINE_4 = {"mode": "affine", "bits": 4, "group_size": 64}
PACKINGS: dict[str, dict[str, Any]] = {
    "affine 2": {"mode": "affine", "bits": 2, "group_size": 64},
    "affine 3": {"mode": "affine", "bits": 3, "group_size": 32},
    "affine 4": AFFINE_4,
    "affine 6": {"mode": "affine", "bits": 6, "group_size": 64},
    "affine 8": {"mode": "affine", "bits": 8, "group_size": 32},
    "mxfp4": {"mode": "mxfp4", "bits": 4, "group_size": 32},
    "mxfp8": {"mode": "mxfp8", "bits": 8, "group_size": 32},
    "nvfp4": {"mode": "nvfp4", "bits": 4, "group_size": 16},
}


def write_packed(folder: Path, packing: dict[str, Any], changes: dict[str, Any] | None = None, **config: Any) -> Path:
    """A checkpoint quantized in the layout of mlx-lm; `changes` gives parts of a name their own packing."""
    config = {**TINY, **PACKABLE, **config}
    settings: dict[str, Any] = dict(packing)
    stored: dict[str, mx.array] = {}
    for name, value in random_weights(config).items():
        module = name.removesuffix(".weight")
        own = next((p for part, p in (changes or {}).items() if part in name), packing)
        if value.ndim == 1:
            stored[name] = mx.array(value)
            continue
        if own != packing:
            settings[module] = own
        leaves = ("weight", "scales", "biases")
        arrays = mx.quantize(mx.array(value), **own)
        stored |= {f"{module}.{leaf}": array for leaf, array in zip(leaves, arrays, strict=False)}
    write_checkpoint(folder, {**config, "quantization": settings})
    mx.save_safetensors(str(folder / "model.safetensors"), stored)
    return folder


# Qwen's tokens that matter here: (text, whether the tokenizer calls it special)
ADDED = (
    ("<|endoftext|>", True),
    ("<|im_start|>", True),
    ("<|im_end|>", True),
    ("<think>", False),
    ("</think>", False),
)
VOCABULARY = 307  # prime; 256 bytes and the added tokens fill the first 261 rows, the rest is padding
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)


def write_tokenizer(folder: Path, template: str = TEMPLATE, **generation_config: Any) -> Path:
    """A byte-level tokenizer without merges, one token a byte, with a ChatML template."""
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(dict(zip(byte_letters(), range(256), strict=True)), []))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    for text, special in ADDED:
        backend.add_tokens([tokenizers.AddedToken(text, special=special, normalized=False)])
    backend.save(str(folder / "tokenizer.json"))
    settings = {"chat_template": template, "eos_token": "<|im_end|>", "tokenizer_class": "Qwen2Tokenizer"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    defaults = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "eos_token_id": [258, 256]}
    (folder / "generation_config.json").write_text(json.dumps(defaults | generation_config))
    return folder


def byte_letters() -> list[str]:
    """The letters that byte-level tokenizers write for the bytes 0 to 255."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]


def stored(folder: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Every tensor of a folder as the safetensors library reads it: dtype, shape, bytes."""
    result = {}
    for path in folder.glob("*.safetensors"):
        arrays = mx.load(str(path))
        with safe_open(path, framework="numpy") as file:
            for name in arrays:
                part = file.get_slice(name)
                raw = np.array(arrays[name].view(mx.uint8)).tobytes()
                result[name] = (part.get_dtype(), tuple(part.get_shape()), raw)
    return result
