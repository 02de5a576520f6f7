"""How config.json says that a release is packed: FP8, AWQ, GPTQ or compressed-tensors, as transformers reads them.

Bits, groups and zero points are also in the shapes of the tensors: packed.py compares. What this file reads is what the
tensors do not tell. A variant whose values cannot be computed is refused by name.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError, warn
from .reading import short
from .settings import is_int, mapping, shown

KEY = "quantization_config"
FP8, AWQ, GPTQ, COMPRESSED = "fp8", "awq", "gptq", "compressed-tensors"
REMEDY = "take the bf16 release, and pack it with `convert --quantize affine4`"
NO_GGUF = f"GGUF cannot be read; {REMEDY}"
# method -> settings that change the values, and their supported values. null or a missing key means the first.
SETTINGS: dict[str, dict[str, tuple[Any, ...]]] = {
    FP8: {
        "fmt": ("e4m3",),
        "activation_scheme": ("dynamic", "static"),  # activations are not rounded here, so their scales are not used
        "scale_fmt": ("float",),
        "expert_dtype": ("fp8",),
    },
    AWQ: {
        "bits": (4,),
        "w_bit": (4,),  # as AutoAWQ's own file names it
        "version": ("gemm",),
        "format": ("gemm",),
        "checkpoint_format": ("gemm",),
        "zero_point": (True,),
    },
    GPTQ: {
        "bits": (4, 8),
        "checkpoint_format": ("gptq", "gptq_v2"),
        "format": ("gptq", "gptq_v2"),
        "pack_dtype": ("int32",),
        "is_marlin_format": (False,),
        "rotation": ("",),
    },
    COMPRESSED: {
        "format": ("pack-quantized", "float-quantized"),
        "quantization_status": ("compressed",),
        "kv_cache_scheme": ({},),
        "sparsity_config": ({}, {"format": "dense"}),
        "transform_config": ({},),
    },
}
# The same for the parts of a group of compressed-tensors, by its format
GROUP: dict[str, dict[str, tuple[Any, ...]]] = {
    "pack-quantized": {"input_activations": ({},), "output_activations": ({},), "format": ("pack-quantized",)},
    "float-quantized": {"output_activations": ({},), "format": ("float-quantized",)},  # inputs are not rounded here
}
WEIGHTS: dict[str, dict[str, tuple[Any, ...]]] = {
    "pack-quantized": {
        "num_bits": (8, 4),
        "type": ("int",),
        "strategy": ("tensor", "group", "channel"),
        "symmetric": (True, False),
        "dynamic": (False,),
        "block_structure": ("",),
    },
    "float-quantized": {
        "num_bits": (8,),
        "type": ("float",),
        "strategy": ("tensor", "channel", "block"),
        "symmetric": (True,),
        "dynamic": (False,),
    },
}
# Settings that were used while packing or choose a kernel, and lists of modules, which the tensors show
SILENT = frozenset(
    """quant_method bits group_size weight_block_size desc_act sym dynamic lm_head meta damp_percent damp_auto_increment
    static_groups true_sequential model_name_or_path model_file_base_name quantizer tokenizer dataset backend
    act_group_aware use_cuda_fp16 model_seqlen max_input_length block_name_to_quantize module_name_preceding_first_block
    modules_in_block_to_quantize batch_size pad_token_id cache_block_outputs use_exllama disable_exllama exllama_config
    hyb_act mse adapter offload_to_disk offload_to_disk_path parallel_packing v2 v2_alpha gptaq gptaq_alpha fail_safe
    failsafe modules_to_not_convert modules_to_convert ignored_layers ignored_modules dequantize do_fuse
    fuse_max_seq_len modules_to_fuse config_groups ignore global_compression_ratio version run_compressed
    use_optimized_inference moe_sparsity_config q_group_size""".split()
)


@dataclass(frozen=True)
class Form:
    """How the matrices of a release are packed. None: modules may differ, their tensors tell."""

    method: str
    bits: int | None = None
    group_size: int | None = None  # columns; -1 is a whole row
    block: tuple[int, int] = (128, 128)  # rows and columns that share a scale in FP8, if there is not one for each row
    zero_offset: int = 0  # what is added to a stored zero point
    ordered: bool = False  # groups are not runs of columns, so every matrix needs its list of groups
    symmetric: bool | None = None  # whether there are no zero points


def read_form(raw: Mapping[str, Any]) -> Form | None:
    """The form of a packed release, None if config.json names none. Raises ConfigError for a variant by its name."""
    settings = mapping(raw, KEY)
    method = settings.get("quant_method")
    if not isinstance(method, str) or method not in SETTINGS:
        return None
    if mapping(raw, "quantization") or mapping(mapping(raw, "mlx_qwen3"), "quantization"):
        raise ConfigError(f"config.json has {KEY} of {method} and quantization of MLX; remove the one that is wrong")
    checked = _checked(settings, SETTINGS[method], method)
    for key in sorted(settings.keys() - SETTINGS[method].keys() - SILENT):
        if settings[key] not in (None, False, "", {}, []):
            warn(f"{short(key)} in {KEY} is a setting of {method} that this package does not know")
    return READERS[method](settings, checked)


def _fp8(settings: Mapping[str, Any], checked: Mapping[str, Any]) -> Form:
    return Form(FP8, bits=8, block=_block(settings, "weight_block_size", FP8))


def _block(settings: Mapping[str, Any], key: str, method: str) -> tuple[int, int]:
    """Rows and columns. Without them a matrix has one scale, or one for each row; its tensors tell."""
    block = [128, 128] if settings.get(key) is None else settings[key]
    if not (isinstance(block, list) and len(block) == 2 and all(is_int(size) and size > 0 for size in block)):
        raise _refused(method, key, block, "two positive integers, rows and columns")
    return block[0], block[1]


def _awq(settings: Mapping[str, Any], checked: Mapping[str, Any]) -> Form:
    size = _group_size(settings, AWQ, "q_group_size" if settings.get("group_size") is None else "group_size")
    return Form(AWQ, checked["bits"], size, symmetric=False)


def _gptq(settings: Mapping[str, Any], checked: Mapping[str, Any]) -> Form:
    names = {key: checked[key] for key in ("checkpoint_format", "format") if settings.get(key) is not None}
    if len(set(names.values())) > 1:
        raise ConfigError(f"{KEY} has {names}; remove the one that is wrong")
    first = "gptq_v2" not in names.values()
    ordered = settings.get("desc_act") is True
    if settings.get("dynamic"):  # settings of single modules, by patterns of their names
        return Form(GPTQ, zero_offset=int(first), symmetric=False)
    bits = None if settings.get("bits") is None else checked["bits"]
    return Form(GPTQ, bits, _group_size(settings, GPTQ), zero_offset=int(first), ordered=ordered, symmetric=False)


def _compressed(settings: Mapping[str, Any], checked: Mapping[str, Any]) -> Form:
    groups = mapping(settings, "config_groups")
    if not groups:
        raise _refused(COMPRESSED, "config_groups", settings.get("config_groups"), "an object of groups")
    found = [_weights(name, group, checked["format"]) for name, group in groups.items()]
    if len(set(found)) == 1:
        return found[0]
    if found[0].method == FP8:
        raise ConfigError(f"config_groups of {COMPRESSED} differ in {KEY}, which FP8 cannot be read with; {REMEDY}")
    return Form(COMPRESSED)


def _weights(name: str, group: Any, stored: str) -> Form:
    """The form of one group of modules."""
    place = f"config_groups.{short(name)}"
    if not isinstance(group, dict):
        raise _refused(COMPRESSED, place, group, "an object with targets and weights")
    _checked(group, GROUP[stored], COMPRESSED, f"{place}.")
    weights = mapping(group, "weights")
    checked = _checked(weights, WEIGHTS[stored], COMPRESSED, f"{place}.weights.")
    if checked["type"] == "float":
        return Form(FP8, bits=8, block=_block(weights, "block_structure", COMPRESSED))
    if checked["strategy"] == "tensor":
        raise _refused(COMPRESSED, f"{place}.weights.strategy", weights.get("strategy"), "'group' or 'channel'")
    size = -1 if checked["strategy"] == "channel" else _group_size(weights, COMPRESSED)
    return Form(COMPRESSED, checked["num_bits"], size, symmetric=checked["symmetric"])


def _group_size(settings: Mapping[str, Any], method: str, key: str = "group_size") -> int | None:
    """None if it is missing."""
    size = settings.get(key)
    if size is not None and (not is_int(size) or not (size == -1 or size > 0)):
        raise _refused(method, key, size, "a positive integer, or -1 for a whole row")
    return size


def _checked(
    settings: Mapping[str, Any], supported: Mapping[str, Sequence[Any]], method: str, place: str = ""
) -> dict[str, Any]:
    """The value of every supported setting. Raises ConfigError for another value."""
    values = {}
    for key, choices in supported.items():
        value = settings.get(key)
        if value is None or (isinstance(choices[0], dict) and not value):
            value = choices[0]
        if isinstance(value, str):
            value = value.lower()
        if not any(type(value) is type(choice) and value == choice for choice in choices):
            raise _refused(method, place + key, settings[key], " or ".join(repr(choice) for choice in choices))
        values[key] = value
    return values


def _refused(method: str, key: str, value: Any, expected: str) -> ConfigError:
    return ConfigError(
        f"{key} of {method} is {shown(value)} in quantization_config; supported: {expected}; else {REMEDY}"
    )


READERS = {FP8: _fp8, AWQ: _awq, GPTQ: _gptq, COMPRESSED: _compressed}
