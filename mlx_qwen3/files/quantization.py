"""How config.json says that weights are packed: MLX's modes, with exceptions by module, as mlx-lm writes them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError
from .forms import REMEDY, SETTINGS
from .reading import short
from .settings import is_int, mapping, shown

PACKING_KEYS = frozenset({"mode", "bits", "group_size"})
# The values of each mode, its default first.
QUANTIZATION_MODES: dict[str, dict[str, tuple[int, ...]]] = {
    "affine": {"bits": (2, 3, 4, 5, 6, 8), "group_size": (32, 64, 128)},
    "mxfp4": {"bits": (4,), "group_size": (32,)},
    "mxfp8": {"bits": (8,), "group_size": (32,)},
    "nvfp4": {"bits": (4,), "group_size": (16,)},
}
AFFINE_DEFAULT = {"bits": 4, "group_size": 64}  # of mlx.nn.quantize; every other mode has one value each


@dataclass(frozen=True)
class Quantization:
    """How the rows of a weight matrix are packed; the terms are those of `mx.quantize`."""

    mode: str
    bits: int
    group_size: int


Packings = tuple[Quantization | None, dict[str, Quantization | None]]  # (of all modules, exceptions by module)


def read_quantization(raw: Mapping[str, Any]) -> Packings:
    """From `mlx_qwen3.quantization` (native) or `quantization` (mlx-lm, which writes a second copy)."""
    if native := mapping(mapping(raw, "mlx_qwen3"), "quantization"):
        return _packings(native)
    copies = {name: mapping(raw, name) for name in ("quantization", "quantization_config")}
    if method := copies["quantization_config"].get("quant_method"):
        copies["quantization_config"] = _of_method(method)
    found = {name: _packings(copy) for name, copy in copies.items() if copy}
    if len(found) == 2 and found["quantization"] != found["quantization_config"]:
        values = (shown(copies[name]) for name in copies)
        raise ConfigError("quantization is {}, but quantization_config is {}; remove the wrong one".format(*values))
    return next(iter(found.values()), (None, {}))


def _of_method(method: Any) -> dict[str, Any]:
    """The settings of a `quant_method` that mlx-lm writes or loads as one of MLX's own modes."""
    if method not in ("mxfp4", "mxfp8"):
        known = ", ".join((*SETTINGS, *QUANTIZATION_MODES))
        raise ConfigError(f"quant_method is {shown(method)}, which cannot be read; supported: {known}; {REMEDY}")
    return {"mode": method}


def _packings(settings: Mapping[str, Any]) -> Packings:
    default = {key: value for key, value in settings.items() if key in PACKING_KEYS}
    everywhere = _packing(default, "quantization") if default else None
    exceptions: dict[str, Quantization | None] = {}
    for name, value in settings.items():
        if name in PACKING_KEYS:
            continue
        if value is True and everywhere is None:
            raise ConfigError(f"{short(name)} is true in quantization, which gives no bits and group_size for it")
        packing = everywhere if value is True else _packing(value, short(name)) if value else None
        exceptions[name.removeprefix("model.")] = packing
    return everywhere, exceptions


def _packing(settings: Any, where: str) -> Quantization:
    if not isinstance(settings, dict):
        raise ConfigError(f"{where} is {shown(settings)}; expected an object with mode, bits and group_size")
    mode = "affine" if settings.get("mode") is None else settings["mode"]  # older mlx-lm has only this mode
    if not isinstance(mode, str) or mode not in QUANTIZATION_MODES:
        raise ConfigError(f"{where}.mode is {shown(mode)}; supported: {', '.join(QUANTIZATION_MODES)}")
    for key in settings.keys() - PACKING_KEYS:
        raise ConfigError(f"{where}.{short(key)} is {shown(settings[key])}, which is not supported")
    values = {}
    for key, supported in QUANTIZATION_MODES[mode].items():
        value = settings.get(key)
        if value is None:
            value = AFFINE_DEFAULT[key] if mode == "affine" else supported[0]
        if not is_int(value) or value not in supported:
            raise ConfigError(f"{where}.{key} is {shown(value)}; {mode} has {', '.join(map(str, supported))}")
        values[key] = value
    return Quantization(mode, **values)


def inferred(columns: int, words: int, groups: int, scales_are_bytes: bool) -> Quantization | None:
    """The packing of a matrix, found from its shapes, as mlx-lm does for a module that its map does not name.

    columns: of the matrix; words and groups: 32-bit columns of its weight and columns of its scales. None if no mode
    fits.
    """
    if not groups or columns % groups or words * 32 % columns:
        return None
    bits, group_size = words * 32 // columns, columns // groups
    for mode, values in QUANTIZATION_MODES.items():
        if (mode != "affine") == scales_are_bytes and bits in values["bits"] and group_size in values["group_size"]:
            return Quantization(mode, bits, group_size)
    return None
