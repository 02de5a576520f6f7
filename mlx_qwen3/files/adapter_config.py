"""adapter_config.json, as PEFT and mlx-lm write it: which matrices an adapter changes, and by how much.

Modules have their Hugging Face names here: `model.layers.0.self_attn.q_proj`, `lm_head`.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from .reading import exists, read_json, short
from .settings import is_int, shown

FILE = "adapter_config.json"
PEFT_WEIGHTS, MLX_LM_WEIGHTS = "adapter_model.safetensors", "adapters.safetensors"
MEMBERS = (FILE, PEFT_WEIGHTS, MLX_LM_WEIGHTS)
MERGE = "merge it into the model with PEFT's merge_and_unload, and use the merged model"
# Of PEFT: settings that are read here
READ = frozenset(
    "peft_type base_model_name_or_path r lora_alpha use_rslora use_dora target_modules target_parameters "
    "exclude_modules layers_to_transform layers_pattern rank_pattern alpha_pattern modules_to_save "
    "ensure_weight_tying init_lora_weights".split()
)
# Of PEFT: settings that do not change what a trained adapter computes
NEUTRAL = frozenset(
    "task_type revision inference_mode lora_dropout auto_mapping peft_version megatron_core qalora_group_size "
    "eva_config corda_config lora_ga_config loftq_config runtime_config target_modules_to_tie modules_to_tie".split()
)
# Of PEFT: the values of other settings that change nothing
OFF: tuple[Any, ...] = (None, False, "none", [], {}, "")
# A start from which the base keeps its weights. Others, such as pissa, take a part out of the base.
PLAIN_STARTS = (None, True, False, "gaussian", "orthogonal", "eva")


@dataclass(frozen=True)
class AdapterConfig:
    """What both kinds of file say."""

    raw: Mapping[str, Any]
    form: str  # PEFT or mlx-lm
    method: str  # LoRA, DoRA or full
    base: str | None  # the model that it was trained on
    rank: int
    scale: float
    ties: bool  # what it does to the embedding is also done to an output that is tied to it

    @property
    def weights_file(self) -> str:
        return PEFT_WEIGHTS if self.form == "PEFT" else MLX_LM_WEIGHTS

    @property
    def remedy(self) -> str:
        """What to do with one that cannot be used beside the weights."""
        return MERGE if self.form == "PEFT" else "merge it into the model with mlx_lm.fuse, and use the merged model"

    @property
    def in_words(self) -> str:
        """Such as: a PEFT LoRA adapter of rank 8 for Qwen/Qwen3-0.6B."""
        rank = "" if self.method == "full" else f" of rank {self.rank}"
        base = short(self.base) if self.base else "a base that it does not name"
        return f"{'a' if self.form == 'PEFT' else 'an'} {self.form} {self.method} adapter{rank} for {base}"

    def targets(self, module: str, layers: int) -> bool:
        """Whether a module of a model with so many layers has low-rank matrices."""
        raise NotImplementedError

    def targets_parameter(self, parameter: str) -> bool:
        """Whether a parameter, such as a stack of experts, has low-rank matrices of its own."""
        return False

    def scaling(self, module: str) -> tuple[int, float]:
        """Rank, and the factor of the product of the two matrices."""
        return self.rank, self.scale

    def saves(self, module: str, layers: int) -> bool:
        """Whether the adapter has a weight that takes the place of this module's."""
        raise NotImplementedError


@dataclass(frozen=True)
class PeftConfig(AdapterConfig):
    rank_pattern: Mapping[str, int] = field(default_factory=dict)
    alpha_pattern: Mapping[str, float] = field(default_factory=dict)
    alpha: float = 1.0

    def targets(self, module: str, layers: int) -> bool:
        raw, wanted = self.raw, self.raw.get("target_modules") or ()
        if self.targets_parameter(f"{module}.weight"):
            return True
        if _named(raw.get("exclude_modules"), module) or self.saves(module, layers):
            return False
        if isinstance(wanted, str) and wanted.lower() == "all-linear":
            return module not in ("lm_head", "model.embed_tokens")
        if not _named(wanted, module):
            return False
        only = raw.get("layers_to_transform")
        if isinstance(wanted, str) or module in wanted or only is None or only == []:  # a whole name needs no number
            return True
        layer = _layer_of(module, raw.get("layers_pattern"))
        return layer in (only if isinstance(only, list) else [only])

    def targets_parameter(self, parameter: str) -> bool:
        return _named(self.raw.get("target_parameters"), parameter)

    def scaling(self, module: str) -> tuple[int, float]:
        if self.targets_parameter(f"{module}.weight"):
            module = f"{module}.weight"
        rank = _pattern(self.rank_pattern, module, self.rank)
        alpha = _pattern(self.alpha_pattern, module, self.alpha)
        return rank, alpha / (math.sqrt(rank) if self.raw.get("use_rslora") else rank)

    def saves(self, module: str, layers: int) -> bool:
        # PEFT compares the ends of names: `norm` is also each q_norm. A module inside of a named one is saved too.
        parts = module.split(".")
        owners = [".".join(parts[: end + 1]) for end in range(len(parts))]
        return any(owner.endswith(name) for owner in owners for name in self.raw.get("modules_to_save") or ())


@dataclass(frozen=True)
class MlxLmConfig(AdapterConfig):
    keys: Sequence[str] | None = None  # of modules; None: every one that can be adapted
    layers: int = -1  # the last so many have matrices; -1 is all

    def targets(self, module: str, layers: int) -> bool:
        if self.method == "full":
            return False
        inside = self._inside(module, layers)
        if self.keys is None:
            return inside is not None
        return module in self.keys or inside in self.keys

    def saves(self, module: str, layers: int) -> bool:
        return self.method == "full" and self._inside(module, layers) is not None

    def _inside(self, module: str, layers: int) -> str | None:
        """The name of a module inside its layer, if that is one of the adapted ones."""
        match = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", module)
        last = self.layers if self.layers > 0 else layers
        return match[2] if match and int(match[1]) >= layers - last else None


def has_adapter(folder: Path) -> bool:
    return exists(folder / FILE)


def read_config(folder: Path) -> AdapterConfig:
    """The settings of the adapter in a folder. Raises CheckpointError, or ConfigError if it is not supported."""
    raw = read_json(folder / FILE)
    of_mlx_lm = "fine_tune_type" in raw or "lora_parameters" in raw
    return _read_mlx_lm(raw) if of_mlx_lm and "peft_type" not in raw else _read_peft(raw)


def what_it_is(folder: Path, source: str) -> str:
    """That a SOURCE is an adapter, of which kind and base, and the command to run."""
    try:
        config = read_config(folder)
    except ConfigError as error:
        return f"{source} is an adapter, not a model, and it cannot be used: {error}"
    base = short(config.base) if config.base else "MODEL"
    return (
        f"{source} is {config.in_words}, not a model; give its base as the model and this as the adapter: "
        f"mlx-qwen3 chat {base} --adapter {source}"
    )


def _read_peft(raw: Mapping[str, Any]) -> PeftConfig:
    if (kind := raw.get("peft_type")) != "LORA":
        raise ConfigError(f"peft_type is {shown(kind)} in {FILE}; supported: LORA; {MERGE}")
    for key, value in raw.items():
        if key not in READ | NEUTRAL and not any(value is off or value == off for off in OFF):
            raise ConfigError(f"{short(key)} is {shown(value)} in {FILE}, which is not supported; {MERGE}")
    start = raw.get("init_lora_weights")
    if not any(start is plain or start == plain for plain in PLAIN_STARTS):
        raise ConfigError(
            f"init_lora_weights is {shown(start)} in {FILE}: such a training takes a part out of the base; save the "
            "adapter with PEFT's path_initial_model_for_weight_conversion, which makes it a plain one"
        )
    for key in ("target_modules", "target_parameters", "exclude_modules", "modules_to_save", "layers_pattern"):
        _check_names(raw, key)
    _check_layers(raw)
    rank, alpha = _positive(raw, "r", whole=True), _positive(raw, "lora_alpha")
    dora = _switch(raw, "use_dora")
    return PeftConfig(
        raw=raw,
        form="PEFT",
        method="DoRA" if dora else "rsLoRA" if _switch(raw, "use_rslora") else "LoRA",
        base=_base(raw, "base_model_name_or_path"),
        rank=int(rank),
        scale=alpha / (math.sqrt(rank) if _switch(raw, "use_rslora") else rank),
        ties=_switch(raw, "ensure_weight_tying"),
        rank_pattern=_patterns(raw, "rank_pattern", whole=True),
        alpha_pattern=_patterns(raw, "alpha_pattern"),
        alpha=alpha,
    )


def _read_mlx_lm(raw: Mapping[str, Any]) -> MlxLmConfig:
    kind = raw.get("fine_tune_type", "lora")
    if kind not in ("lora", "dora", "full"):
        raise ConfigError(f"fine_tune_type is {shown(kind)} in {FILE}; supported: lora, dora, full")
    settings = raw.get("lora_parameters") or {}
    if not isinstance(settings, dict):
        raise ConfigError(f"lora_parameters is {shown(settings)} in {FILE}; expected an object")
    layers = raw.get("num_layers", raw.get("lora_layers"))  # the older name
    if not is_int(layers) or layers < -1:
        raise ConfigError(f"num_layers is {shown(layers)} in {FILE}; expected a number of layers, or -1 for all")
    keys = settings.get("keys")
    if keys is not None and (not isinstance(keys, list) or not all(isinstance(key, str) for key in keys)):
        raise ConfigError(f"lora_parameters.keys is {shown(keys)} in {FILE}; expected a list of module names")
    full = kind == "full"
    return MlxLmConfig(
        raw=raw,
        form="mlx-lm",
        method={"lora": "LoRA", "dora": "DoRA", "full": "full"}[kind],
        base=_base(raw, "model"),
        rank=0 if full else int(_positive(settings, "rank", whole=True)),
        scale=1.0 if full else _positive(settings, "scale"),
        ties=True,
        keys=keys,
        layers=layers,
    )


def _base(raw: Mapping[str, Any], key: str) -> str | None:
    value = raw.get(key)
    return value if isinstance(value, str) and value.strip() else None


def _switch(raw: Mapping[str, Any], key: str) -> bool:
    value = raw.get(key)
    if value is not None and not isinstance(value, bool):
        raise ConfigError(f"{key} is {shown(value)} in {FILE}; expected true or false")
    return bool(value)


def _positive(raw: Mapping[str, Any], key: str, whole: bool = False) -> float:
    value = raw.get(key)
    real = is_int(value) or (isinstance(value, float) and not whole)
    if value is None or not real or not 0 < value < math.inf:
        raise ConfigError(f"{key} is {shown(value)} in {FILE}; expected a positive {'integer' if whole else 'number'}")
    return float(value)


def _patterns(raw: Mapping[str, Any], key: str, whole: bool = False) -> dict[str, Any]:
    """rank_pattern or alpha_pattern: a regular expression for the end of a module's name -> its value."""
    value = raw.get(key) or {}
    if not isinstance(value, dict):
        raise ConfigError(f"{key} is {shown(value)} in {FILE}; expected an object")
    for pattern in value:
        _compiled(pattern, key)
    found = {pattern: _positive(value, pattern, whole) for pattern in value}
    return {pattern: int(number) if whole else number for pattern, number in found.items()}


def _check_names(raw: Mapping[str, Any], key: str) -> None:
    """A setting that is absent, a list of names or, for some, a regular expression."""
    value = raw.get(key)
    if isinstance(value, str) and key not in ("modules_to_save", "target_parameters"):
        _compiled(value, key)
    elif value is not None and (not isinstance(value, list) or not all(isinstance(name, str) for name in value)):
        raise ConfigError(f"{key} is {shown(value)} in {FILE}; expected a list of module names")
    if isinstance(value, list) and key == "layers_pattern":
        for pattern in value:
            _compiled(pattern, key)


def _check_layers(raw: Mapping[str, Any]) -> None:
    value = raw.get("layers_to_transform")
    numbers = value if isinstance(value, list) else [] if value is None else [value]
    if not all(is_int(number) for number in numbers):
        raise ConfigError(f"layers_to_transform is {shown(value)} in {FILE}; expected numbers of layers")


def _compiled(pattern: str, key: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ConfigError(
            f"{key} has {shown(pattern)} in {FILE}, which is not a regular expression ({error})"
        ) from None


def _named(wanted: Any, module: str) -> bool:
    """Whether PEFT takes a module for one of these: a list has ends of names, a text is a regular expression."""
    if isinstance(wanted, str):
        return re.fullmatch(wanted, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in wanted or ())


def _pattern(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), default)


def _layer_of(module: str, patterns: Any) -> int | None:
    """The number of the layer, after a module of one of these names or of any name."""
    if not patterns:
        match = re.match(r".*?\.[^.]*\.(?P<layer>\d+)\.", module)
    else:
        named = [patterns] if isinstance(patterns, str) else patterns
        found = (re.match(rf"(?:^|.*?\.){pattern}\.(?P<layer>\d+)\.", module) for pattern in named)
        match = next((one for one in found if one), None)
    return int(match["layer"]) if match else None
