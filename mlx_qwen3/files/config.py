"""`config.json` as a frozen `Qwen3Config`. What is missing, unknown or unsupported raises; nothing is guessed."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .reading import read_json

FORMAT = 1  # version of our own checkpoint format, `mlx_qwen3.format` in config.json

# Settings with one supported value: what the Qwen3 block computes. A key that is absent has that value.
FIXED: dict[str, Any] = {
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "use_sliding_window": False,
    "partial_rotary_factor": 1.0,
    "is_encoder_decoder": False,
}
# Settings that inference does not read.
INERT = frozenset(
    """_attn_implementation _attn_implementation_autoset _name_or_path architectures attention_dropout auto_map
    bos_token_id chunk_size_feed_forward num_labels pretraining_tp tokenizer_class
    dtype eos_token_id id2label initializer_range label2id max_window_layers output_attentions output_hidden_states
    pad_token_id problem_type return_dict sliding_window torch_dtype torchscript transformers_version
    unsloth_fixed unsloth_version use_cache use_return_dict""".split()
)
READ = frozenset(
    """model_type vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads
    head_dim rms_norm_eps max_position_embeddings tie_word_embeddings rope_theta rope_scaling rope_parameters
    layer_types quantization quantization_config mlx_qwen3""".split()
)
YARN_KEYS = frozenset(
    """factor original_max_position_embeddings attention_factor beta_fast beta_slow mscale mscale_all_dim
    truncate""".split()
)
PACKING_KEYS = frozenset({"mode", "bits", "group_size"})
QUANTIZATION_MODES: dict[str, dict[str, tuple[int, ...]]] = {
    "affine": {"bits": (2, 3, 4, 5, 6, 8), "group_size": (32, 64, 128)},
    "mxfp4": {"bits": (4,), "group_size": (32,)},
    "mxfp8": {"bits": (8,), "group_size": (32,)},
    "nvfp4": {"bits": (4,), "group_size": (16,)},
}


@dataclass(frozen=True)
class Quantization:
    """How the rows of a weight matrix are packed; the terms are those of `mx.quantize`."""

    mode: str
    bits: int
    group_size: int


@dataclass(frozen=True)
class Yarn:
    """YaRN (arXiv 2309.00071) as transformers reads it; `attention_factor` scales both q and k."""

    factor: float
    original_max_position_embeddings: int
    attention_factor: float
    beta_fast: float
    beta_slow: float
    truncate: bool


@dataclass(frozen=True)
class Qwen3Config:
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    max_position_embeddings: int
    tie_word_embeddings: bool
    rope_theta: float
    yarn: Yarn | None
    eos_token_ids: frozenset[int]
    quantization: Quantization | None  # of every quantized module that `quantization_overrides` does not name
    quantization_overrides: Mapping[str, Quantization | None]  # Hugging Face module name without `model.`

    @property
    def context_length(self) -> int:
        """Tokens of prompt and answer together that the positions reach."""
        stretched = int(self.yarn.factor * self.yarn.original_max_position_embeddings) if self.yarn else 0
        return max(self.max_position_embeddings, stretched)

    @classmethod
    def from_folder(cls, folder: Path) -> "Qwen3Config":
        return cls.from_hf(read_json(folder / "config.json"))

    @classmethod
    def from_hf(cls, raw: Mapping[str, Any]) -> "Qwen3Config":
        """The config of a Hugging Face, mlx-lm or native checkpoint, in the style of transformers 4 or 5.

        Raises ConfigError for a setting that is missing, malformed, unknown or not supported.
        """
        _refuse_unsupported(raw)
        heads, kv_heads = _count(raw, "num_attention_heads"), _count(raw, "num_key_value_heads")
        if heads % kv_heads:
            raise ConfigError(f"num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}")
        if (head_dim := _count(raw, "head_dim")) % 2:
            raise ConfigError(f"head_dim {head_dim} is odd; rotary embeddings need an even number")
        theta, yarn = _rope(raw)
        quantization, overrides = _quantization(raw)
        return cls(
            vocab_size=_count(raw, "vocab_size"),
            hidden_size=_count(raw, "hidden_size"),
            intermediate_size=_count(raw, "intermediate_size"),
            num_hidden_layers=_count(raw, "num_hidden_layers"),
            num_attention_heads=heads,
            num_key_value_heads=kv_heads,
            head_dim=head_dim,
            rms_norm_eps=_number(raw, "rms_norm_eps"),
            max_position_embeddings=_count(raw, "max_position_embeddings"),
            tie_word_embeddings=_flag(raw, "tie_word_embeddings"),
            rope_theta=theta,
            yarn=yarn,
            eos_token_ids=token_ids(raw, "eos_token_id"),
            quantization=quantization,
            quantization_overrides=overrides,
        )

    def quantization_of(self, module: str) -> Quantization | None:
        """The packing of a quantized module, by its Hugging Face name without `model.`."""
        return self.quantization_overrides.get(module, self.quantization)


def token_ids(raw: Mapping[str, Any], key: str) -> frozenset[int]:
    """A setting that is absent, null, one token id or a list of them."""
    value = raw.get(key)
    ids = [] if value is None else value if isinstance(value, list) else [value]
    if not all(_is_int(i) and i >= 0 for i in ids):
        raise ConfigError(f"{key} is {value!r}; expected a token id or a list of them")
    return frozenset(ids)


def _refuse_unsupported(raw: Mapping[str, Any]) -> None:
    if (model_type := raw.get("model_type")) != "qwen3":
        raise ConfigError(f"model_type is {model_type!r}; this package runs 'qwen3' (dense Qwen3) and nothing else")
    for key, supported in FIXED.items():
        if raw.get(key) not in (None, supported):
            raise ConfigError(f"{key} is {raw[key]!r}; only {supported!r} is supported, as in every Qwen3 release")
    kinds, layers = raw.get("layer_types"), raw.get("num_hidden_layers")
    if kinds is not None and (not isinstance(kinds, list) or len(kinds) != layers):
        raise ConfigError(f"layer_types is {kinds!r}; expected one for each of num_hidden_layers {layers!r}")
    for index, kind in enumerate(kinds or ()):
        if kind != "full_attention":
            raise ConfigError(f"layer_types[{index}] is {kind!r}; only 'full_attention' is supported")
    for key in raw.keys() - READ - INERT - FIXED.keys():
        if raw[key]:
            raise ConfigError(
                f"{key} is {raw[key]!r}, a setting unknown for qwen3; "
                "remove it from config.json if it does not change the forward pass"
            )
    ours = _object(raw, "mlx_qwen3")
    if ours and ours.get("format") != FORMAT:
        raise ConfigError(f"mlx_qwen3.format is {ours.get('format')!r}; this version reads {FORMAT}; convert again")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _required(raw: Mapping[str, Any], key: str) -> Any:
    if raw.get(key) is None:
        raise ConfigError(f"{key} is missing from config.json; take the file from the model's release")
    return raw[key]


def _count(raw: Mapping[str, Any], key: str) -> int:
    value = _required(raw, key)
    if not _is_int(value) or value <= 0:
        raise ConfigError(f"{key} is {value!r}; expected a positive integer")
    return value


def _number(raw: Mapping[str, Any], key: str) -> float:
    value = _required(raw, key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e300:
        raise ConfigError(f"{key} is {value!r}; expected a positive number")
    return float(value)


def _object(raw: Mapping[str, Any], key: str) -> dict[str, Any]:
    """A setting that is an object, {} where it is absent or null."""
    value = raw.get(key)
    if value is not None and not isinstance(value, dict):
        raise ConfigError(f"{key} is {value!r}; expected an object")
    return value or {}


def _flag(raw: Mapping[str, Any], key: str) -> bool:
    value = _required(raw, key)
    if not isinstance(value, bool):
        raise ConfigError(f"{key} is {value!r}; expected true or false")
    return value


def _rope(raw: Mapping[str, Any]) -> tuple[float, Yarn | None]:
    """(rope_theta, yarn) from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (4)."""
    settings: dict[str, Any] = {}
    top = {key: raw[key] for key in ("rope_theta",) if key in raw}
    for place in (_object(raw, "rope_parameters"), _object(raw, "rope_scaling"), top):
        for key, value in place.items():
            key = "rope_type" if key == "type" else key
            if value is not None and settings.setdefault(key, value) != value:
                raise ConfigError(f"{key} is given twice in config.json, as {settings[key]!r} and as {value!r}")
    kind = settings.pop("rope_type", "default")
    theta = _number(settings, "rope_theta")
    del settings["rope_theta"]
    if settings.pop("partial_rotary_factor", 1.0) != 1.0:
        raise ConfigError("partial_rotary_factor is not 1.0; Qwen3 rotates the whole head")
    settings.pop("attn_factor", None)  # in DeepSeek-R1-0528-Qwen3-8B; transformers reads attention_factor only
    known = {"default": frozenset[str](), "yarn": YARN_KEYS}
    if not isinstance(kind, str) or kind not in known:
        raise ConfigError(f"rope_type is {kind!r}; supported are 'default' and 'yarn'")
    if unknown := settings.keys() - known[kind]:
        key = min(unknown)
        raise ConfigError(f"{key} is {settings[key]!r}, a rope setting unknown for rope_type {kind!r}")
    return theta, _yarn(settings) if kind == "yarn" else None


def _yarn(settings: Mapping[str, Any]) -> Yarn:
    factor = _number(settings, "factor")
    if factor < 1:
        raise ConfigError(f"factor is {factor!r}; YaRN stretches by 1 or more")

    def mscale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0

    if "attention_factor" in settings:
        attention_factor = _number(settings, "attention_factor")
    elif settings.get("mscale") and settings.get("mscale_all_dim"):
        attention_factor = mscale(_number(settings, "mscale")) / mscale(_number(settings, "mscale_all_dim"))
    else:
        attention_factor = mscale(1.0)
    return Yarn(
        factor=factor,
        original_max_position_embeddings=_count(settings, "original_max_position_embeddings"),
        attention_factor=attention_factor,
        beta_fast=_number({"beta_fast": 32, **settings}, "beta_fast"),
        beta_slow=_number({"beta_slow": 1, **settings}, "beta_slow"),
        truncate=_flag({"truncate": True, **settings}, "truncate"),
    )


def _quantization(raw: Mapping[str, Any]) -> tuple[Quantization | None, dict[str, Quantization | None]]:
    """From `mlx_qwen3.quantization` (native) or `quantization` (mlx-lm, which writes a second copy)."""
    settings = _object(_object(raw, "mlx_qwen3"), "quantization") or _object(raw, "quantization")
    if other := _object(raw, "quantization_config"):
        if method := other.get("quant_method"):
            modes = ", ".join(QUANTIZATION_MODES)
            raise ConfigError(f"quant_method is {method!r}; supported is what mlx-lm writes: {modes}")
        if settings and settings != other:
            raise ConfigError(f"quantization is {settings!r}, but quantization_config {other!r}; remove the wrong one")
        settings = settings or other
    if not settings:
        return None, {}
    overrides = {
        name.removeprefix("model."): _packing(value, name) if value else None
        for name, value in settings.items()
        if name not in PACKING_KEYS
    }
    default = {key: value for key, value in settings.items() if key in PACKING_KEYS}
    return _packing(default, "quantization") if default else None, overrides


def _packing(settings: Any, where: str) -> Quantization:
    if not isinstance(settings, dict):
        raise ConfigError(f"{where} is {settings!r}; expected an object with mode, bits and group_size")
    mode = settings.get("mode", "affine")  # mlx-lm wrote no mode while affine was the only one
    if not isinstance(mode, str) or mode not in QUANTIZATION_MODES:
        raise ConfigError(f"{where}.mode is {mode!r}; supported: {', '.join(QUANTIZATION_MODES)}")
    for key in settings.keys() - PACKING_KEYS:
        raise ConfigError(f"{where}.{key} is {settings[key]!r}, a quantization setting that is not supported")
    for key, supported in QUANTIZATION_MODES[mode].items():
        if not _is_int(settings.get(key)) or settings[key] not in supported:
            raise ConfigError(f"{where}.{key} is {settings.get(key)!r}; {mode} has {', '.join(map(str, supported))}")
    return Quantization(mode, settings["bits"], settings["group_size"])
