"""quantization_config of packed releases: what is read, and what is refused by its name."""

from typing import Any

import pytest
from checkpoints import TINY

from mlx_qwen3.errors import ConfigError, Qwen3Warning
from mlx_qwen3.files.config import Qwen3Config
from mlx_qwen3.files.forms import Form


def read(settings: Any, **others: Any) -> Form | None:
    return Qwen3Config.from_hf({**TINY, "quantization_config": settings, **others}).form


# As Qwen's and others' releases have them
FP8 = {
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "quant_method": "fp8",
    "weight_block_size": [128, 128],
    "modules_to_not_convert": ["lm_head", "model.layers.0.input_layernorm"],
}
AWQ = {
    "bits": 4,
    "group_size": 128,
    "modules_to_not_convert": None,
    "quant_method": "awq",
    "version": "gemm",
    "zero_point": True,
    "backend": "autoawq",
}
GPTQ = {
    "bits": 8,
    "checkpoint_format": "gptq",
    "desc_act": False,
    "group_size": 128,
    "hyb_act": False,
    "lm_head": False,
    "meta": {"quantizer": ["gptqmodel:2.2.0"], "damp_percent": 0.01, "static_groups": False, "true_sequential": True},
    "pack_dtype": "int32",
    "quant_method": "gptq",
    "sym": True,
}
WEIGHTS = {
    "actorder": "weight",
    "block_structure": None,
    "dynamic": False,
    "group_size": 128,
    "num_bits": 4,
    "observer": "minmax",
    "observer_kwargs": {},
    "strategy": "group",
    "symmetric": True,
    "type": "int",
}
GROUP = {"input_activations": None, "output_activations": None, "targets": ["Linear"], "weights": WEIGHTS}
COMPRESSED = {
    "config_groups": {"group_0": GROUP},
    "format": "pack-quantized",
    "global_compression_ratio": 1.46,
    "ignore": ["lm_head"],
    "kv_cache_scheme": None,
    "quant_method": "compressed-tensors",
    "quantization_status": "compressed",
    "sparsity_config": {},
    "transform_config": {},
    "version": "0.10.2",
}


def compressed(**weights: Any) -> dict[str, Any]:
    return {**COMPRESSED, "config_groups": {"group_0": {**GROUP, "weights": {**WEIGHTS, **weights}}}}


def floats(**weights: Any) -> dict[str, Any]:
    """As llm-compressor writes FP8_DYNAMIC."""
    fp8 = {**WEIGHTS, "num_bits": 8, "type": "float", "strategy": "channel", "group_size": None, **weights}
    group = {**GROUP, "input_activations": {"num_bits": 8, "type": "float", "dynamic": True}, "weights": fp8}
    return {**COMPRESSED, "format": "float-quantized", "config_groups": {"group_0": group}}


READ: dict[str, tuple[dict[str, Any], Form]] = {
    "fp8": (FP8, Form("fp8", 8)),
    "fp8 without a block": ({"quant_method": "fp8"}, Form("fp8", 8)),
    "fp8 static": ({**FP8, "activation_scheme": "static"}, Form("fp8", 8)),
    "fp8 of other blocks": ({**FP8, "weight_block_size": [64, 32]}, Form("fp8", 8, block=(64, 32))),
    "fp8 with one scale": ({**FP8, "weight_block_size": None}, Form("fp8", 8)),
    "awq": (AWQ, Form("awq", 4, 128, symmetric=False)),
    "awq in capitals": ({**AWQ, "version": "GEMM"}, Form("awq", 4, 128, symmetric=False)),
    "awq as AutoAWQ's own file": (
        {"quant_method": "awq", "zero_point": True, "q_group_size": 64, "w_bit": 4, "version": "GEMM"},
        Form("awq", 4, 64, symmetric=False),
    ),
    "gptq without bits and groups": ({"quant_method": "gptq"}, Form("gptq", zero_offset=1, symmetric=False)),
    "gptq": (GPTQ, Form("gptq", 8, 128, zero_offset=1, symmetric=False)),
    "gptq by rows": ({**GPTQ, "group_size": -1}, Form("gptq", 8, -1, zero_offset=1, symmetric=False)),
    "gptq_v2": ({**GPTQ, "checkpoint_format": "gptq_v2"}, Form("gptq", 8, 128, symmetric=False)),
    "gptq_v2 of transformers": (
        {"quant_method": "gptq", "bits": 4, "format": "gptq_v2", "desc_act": True},
        Form("gptq", 4, ordered=True, symmetric=False),
    ),
    "gptq by module": (
        {**GPTQ, "dynamic": {"-:lm_head": {}}},
        Form("gptq", None, None, zero_offset=1, symmetric=False),
    ),
    "compressed": (COMPRESSED, Form("compressed-tensors", 4, 128, symmetric=True)),
    "compressed by rows": (
        compressed(strategy="channel", group_size=None, num_bits=8, symmetric=False),
        Form("compressed-tensors", 8, -1, symmetric=False),
    ),
    "compressed fp8 by rows": (floats(), Form("fp8", 8)),
    "compressed fp8 by matrices": (floats(strategy="tensor"), Form("fp8", 8)),
    "compressed fp8 by blocks": (floats(strategy="block", block_structure=[64, 32]), Form("fp8", 8, block=(64, 32))),
    "compressed in two ways": (
        {
            **COMPRESSED,
            "config_groups": {"group_0": GROUP, "group_1": {**GROUP, "weights": {**WEIGHTS, "num_bits": 8}}},
        },
        Form("compressed-tensors"),
    ),
}


@pytest.mark.parametrize(("settings", "expected"), READ.values(), ids=READ.keys())
def test_the_form_of_a_release(settings, expected):
    assert read(settings) == expected


REFUSED: dict[str, tuple[Any, str]] = {
    "bitsandbytes": ({"quant_method": "bitsandbytes"}, "quant_method is 'bitsandbytes', .* take the bf16 release"),
    "hqq": ({"quant_method": "hqq"}, "quant_method is 'hqq'"),
    "gguf": ({"quant_method": "gguf"}, "quant_method is 'gguf'"),
    "auto-round": ({"quant_method": "auto-round"}, "quant_method is 'auto-round'"),
    "a list": ({"quant_method": ["awq"]}, r"quant_method is \['awq'\]"),
    "e5m2": ({**FP8, "fmt": "e5m2"}, "fmt of fp8 is 'e5m2'"),
    "scales of ue8m0": ({**FP8, "scale_fmt": "ue8m0"}, "scale_fmt of fp8 is 'ue8m0'"),
    "block of 0": ({**FP8, "weight_block_size": [0, 128]}, r"weight_block_size of fp8 is \[0, 128\]"),
    "block of true": ({**FP8, "weight_block_size": [True, 128]}, "weight_block_size of fp8"),
    "other activations": ({**FP8, "activation_scheme": "block"}, "activation_scheme of fp8 is 'block'"),
    "awq 8": ({**AWQ, "bits": 8}, "bits of awq is 8 in quantization_config; supported: 4; else take"),
    "gemv": ({**AWQ, "version": "gemv"}, "version of awq is 'gemv'"),
    "no zero points": ({**AWQ, "zero_point": False}, "zero_point of awq is False"),
    "gptq 3": ({**GPTQ, "bits": 3}, "bits of gptq is 3 .*supported: 4 or 8"),
    "gptq true": ({**GPTQ, "bits": True}, "bits of gptq is True"),
    "marlin": ({**GPTQ, "checkpoint_format": "marlin"}, "checkpoint_format of gptq is 'marlin'"),
    "marlin by a flag": ({**GPTQ, "is_marlin_format": True}, "is_marlin_format of gptq is True"),
    "int16": ({**GPTQ, "pack_dtype": "int16"}, "pack_dtype of gptq is 'int16'"),
    "rotation": ({**GPTQ, "rotation": "hadamard"}, "rotation of gptq is 'hadamard'"),
    "two formats": ({**GPTQ, "format": "gptq_v2"}, "checkpoint_format.*gptq_v2.*remove the one that is wrong"),
    "awq group of 0": ({**AWQ, "group_size": None, "q_group_size": 0}, "q_group_size of awq is 0"),
    "awq of 3 bits": ({"quant_method": "awq", "w_bit": 3}, "w_bit of awq is 3"),
    "group of 0": ({**GPTQ, "group_size": 0}, "group_size of gptq is 0"),
    "int-quantized": ({**COMPRESSED, "format": "int-quantized"}, "format of compressed-tensors is 'int-quantized'"),
    "frozen": ({**COMPRESSED, "quantization_status": "frozen"}, "quantization_status .*'frozen'"),
    "packed cache": ({**COMPRESSED, "kv_cache_scheme": {"num_bits": 8}}, "kv_cache_scheme of compressed-tensors"),
    "sparse": ({**COMPRESSED, "sparsity_config": {"format": "sparse-24"}}, "sparsity_config of compressed-tensors"),
    "rotated": ({**COMPRESSED, "transform_config": {"config_groups": {"a": 1}}}, "transform_config of compressed"),
    "no groups": ({**COMPRESSED, "config_groups": {}}, "config_groups of compressed-tensors"),
    "a group of text": ({**COMPRESSED, "config_groups": {"W4A16": ["Linear"]}}, "config_groups.W4A16 of compressed"),
    "activations": (
        {**COMPRESSED, "config_groups": {"g": {**GROUP, "input_activations": {"num_bits": 8}}}},
        "config_groups.g.input_activations",
    ),
    "floats": (compressed(type="float"), "config_groups.group_0.weights.type of compressed-tensors is 'float'"),
    "ints of fp8": (floats(type="int"), "weights.type of compressed-tensors is 'int'"),
    "fp4": (floats(num_bits=4), "weights.num_bits of compressed-tensors is 4"),
    "fp8 with zero points": (floats(symmetric=False), "weights.symmetric of compressed-tensors is False"),
    "fp8 in groups": (floats(strategy="group"), "weights.strategy of compressed-tensors is 'group'"),
    "fp8 of blocks of text": (floats(block_structure="128x128"), "block_structure of compressed-tensors is '128x128'"),
    "fp8 in two ways": (
        {**floats(), "config_groups": {**floats()["config_groups"], "b": {"weights": WEIGHTS}}},
        "config_groups.b.weights.num_bits of compressed-tensors is 4",
    ),
    "fp8 of two kinds of block": (
        {
            **floats(),
            "config_groups": {
                "a": floats(strategy="block", block_structure=[64, 32])["config_groups"]["group_0"],
                **floats()["config_groups"],
            },
        },
        "config_groups of compressed-tensors differ",
    ),
    "3 bits": (compressed(num_bits=3), "weights.num_bits of compressed-tensors is 3"),
    "tensor": (compressed(strategy="tensor"), "weights.strategy of compressed-tensors is 'tensor'"),
    "block": (compressed(strategy="block"), "weights.strategy of compressed-tensors is 'block'"),
}


@pytest.mark.parametrize(("settings", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_a_variant_that_cannot_be_read_is_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        read(settings)


def test_two_quantizations_contradict_each_other():
    with pytest.raises(ConfigError, match="quantization_config of awq and quantization of MLX"):
        read(AWQ, quantization={"bits": 4, "group_size": 64})


def test_an_unknown_setting_is_named():
    with pytest.warns(Qwen3Warning, match="shift in quantization_config is a setting of awq"):
        read({**AWQ, "shift": 3})


def test_without_a_method_there_is_no_form():
    assert read({"bits": 4, "group_size": 64}) is None
