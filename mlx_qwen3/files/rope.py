"""Rotary embeddings in config.json: `rope_parameters` (transformers 5), or `rope_theta` and `rope_scaling`.

The rules are those of transformers 5.23, but rope_theta is never guessed.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import ConfigError, warn
from .settings import count, flag, mapping, number, shown

FACTOR = (1.0, 1e6)  # the smallest and the largest `factor` that is accepted


@dataclass(frozen=True)
class Linear:
    """All frequencies divided by `factor`."""

    factor: float


@dataclass(frozen=True)
class Yarn:
    """YaRN (arXiv 2309.00071); `attention_factor` scales both q and k."""

    factor: float
    original_max_position_embeddings: int
    attention_factor: float
    beta_fast: float
    beta_slow: float
    truncate: bool


@dataclass(frozen=True)
class Llama3:
    """That of Llama 3.1: low frequencies are divided by `factor`, high ones stay."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True)
class LongRope:
    """LongRoPE (arXiv 2402.13753) within the original context: a divisor for each frequency."""

    short_factor: tuple[float, ...]
    attention_factor: float


Scaling = Linear | Yarn | Llama3 | LongRope

# The settings of each rope_type that transformers reads for it.
KEYS: dict[str, frozenset[str]] = {
    "default": frozenset(),
    "linear": frozenset({"factor"}),
    "dynamic": frozenset({"factor"}),
    "yarn": frozenset(
        """factor original_max_position_embeddings attention_factor beta_fast beta_slow mscale mscale_all_dim
        truncate""".split()
    ),
    "llama3": frozenset("factor original_max_position_embeddings low_freq_factor high_freq_factor".split()),
    "longrope": frozenset("factor original_max_position_embeddings attention_factor short_factor long_factor".split()),
}
SILENT = frozenset(
    """rope_theta rope_type partial_rotary_factor
    attn_factor original_max_position_embeddings""".split()  # DeepSeek-R1-0528-Qwen3-8B has attn_factor
)


def read_rope(raw: Mapping[str, Any]) -> tuple[float, Scaling | None]:
    """(rope_theta, how frequencies are scaled). Raises ConfigError."""
    settings = _settings(raw)
    kind = settings.get("rope_type") or "default"
    if not isinstance(kind, str) or kind not in KEYS:
        raise ConfigError(
            f"rope_type is {shown(kind)}; supported are {', '.join(map(repr, KEYS))}; set it to 'default' in "
            "config.json to run the model without it, within the context that it was trained on"
        )
    theta = number(settings, "rope_theta")
    if settings.get("partial_rotary_factor") not in (None, 1.0):
        raise ConfigError("partial_rotary_factor is not 1.0; Qwen3 rotates the whole head")
    for key in sorted(settings.keys() - KEYS[kind] - SILENT):
        if isinstance(settings[key], dict):
            raise ConfigError(f"{key} is {shown(settings[key])}; all layers need the same rotary embeddings")
        if settings[key] is not None:
            warn(f"{key} in config.json is not a setting of rope_type {kind!r}; it changes nothing")
    return theta, _scaling(kind, _with_original(raw, settings), raw, theta)


def _settings(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of all places together. Raises ConfigError if two places disagree."""
    places = {name: _renamed(mapping(raw, name)) for name in ("rope_parameters", "rope_scaling")}
    _check_agreement(*places.values())
    places["config.json"] = {"rope_theta": raw.get("rope_theta")}
    thetas = {name: place["rope_theta"] for name, place in places.items() if place.get("rope_theta") is not None}
    for name, theta in thetas.items():
        first = next(iter(thetas))
        if theta != thetas[first]:
            raise ConfigError(
                f"rope_theta is given twice in config.json, as {shown(thetas[first])} in {first} and as {shown(theta)} "
                f"in {name}; delete the wrong line"
            )
    return {**places["rope_parameters"], **places["rope_scaling"], "rope_theta": next(iter(thetas.values()), None)}


def _renamed(place: Mapping[str, Any]) -> dict[str, Any]:
    """With rope_type for `type`, its older name."""
    old, new = place.get("type"), place.get("rope_type")
    if old is not None and new is not None and old != new:
        raise ConfigError(f"rope_type is {shown(new)} and type {shown(old)} in config.json; delete the line 'type'")
    settings = {key: value for key, value in place.items() if key != "type"}
    return settings if old is None else settings | {"rope_type": old}


def _check_agreement(parameters: Mapping[str, Any], scaling: Mapping[str, Any]) -> None:
    """Raises ConfigError if the two differ: transformers would use rope_scaling and ignore rope_parameters entirely."""
    here, there = (
        {key: value for key, value in place.items() if key != "rope_theta" and value is not None}
        for place in (parameters, scaling)
    )
    if not (here and there) or here == there:
        return
    key = next(key for key in [*there, *here] if here.get(key) != there.get(key))
    values = [shown(place[key]) if key in place else "not given" for place in (here, there)]
    raise ConfigError(
        f"{key} is {values[0]} in rope_parameters and {values[1]} in rope_scaling of config.json: delete the line "
        "rope_scaling to run the model as it was saved; to use rope_scaling, move what it says into rope_parameters, "
        "beside rope_theta, and then delete it"
    )


def _with_original(raw: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """original_max_position_embeddings of config.json itself, else of the settings, else max_position_embeddings."""
    key = "original_max_position_embeddings"
    given = raw if raw.get(key) is not None else settings if settings.get(key) is not None else None
    original = count(given, key) if given is not None else count(raw, "max_position_embeddings")
    return {**settings, key: original}


def _scaling(kind: str, settings: Mapping[str, Any], raw: Mapping[str, Any], theta: float) -> Scaling | None:
    if kind == "default":
        return None
    if kind == "longrope":
        return _longrope(settings, raw)
    if kind == "yarn":
        return _yarn(settings, raw, theta)
    factor = number(settings, "factor", *FACTOR)
    if kind == "linear":
        return Linear(factor)
    if kind == "dynamic":
        return None  # stretches only past max_position_embeddings, where `context_length` ends
    low, high = number(settings, "low_freq_factor"), number(settings, "high_freq_factor")
    if high <= low:
        raise ConfigError(f"high_freq_factor is {high:g} in config.json; expected more than low_freq_factor {low:g}")
    return Llama3(factor, low, high, settings["original_max_position_embeddings"])


def _ratio(settings: Mapping[str, Any], raw: Mapping[str, Any]) -> float:
    """`factor`; if it is null, max_position_embeddings / original_max_position_embeddings."""
    if settings.get("factor") is not None:
        return number(settings, "factor", *FACTOR)
    longest, original = count(raw, "max_position_embeddings"), settings["original_max_position_embeddings"]
    return number({"factor": longest / original}, "factor", *FACTOR)


def _yarn(settings: Mapping[str, Any], raw: Mapping[str, Any], theta: float) -> Yarn:
    if "factor" not in settings:
        number(settings, "factor")
    if theta <= 1:
        raise ConfigError(f"rope_theta is {theta:g} in config.json; YaRN needs more than 1")
    factor = _ratio(settings, raw)

    def mscale(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0

    if settings.get("attention_factor") is not None:
        attention_factor = number(settings, "attention_factor")
    elif settings.get("mscale") and settings.get("mscale_all_dim"):
        attention_factor = mscale(number(settings, "mscale")) / mscale(number(settings, "mscale_all_dim"))
    else:
        attention_factor = mscale(1.0)
    given = {key: value for key, value in settings.items() if value}  # 0 is the default, as in transformers
    truncate = settings.get("truncate")
    return Yarn(
        factor=factor,
        original_max_position_embeddings=settings["original_max_position_embeddings"],
        attention_factor=attention_factor,
        beta_fast=number({"beta_fast": 32, **given}, "beta_fast"),
        beta_slow=number({"beta_slow": 1, **given}, "beta_slow"),
        truncate=flag({"truncate": True if truncate is None else truncate}, "truncate"),
    )


def _longrope(settings: Mapping[str, Any], raw: Mapping[str, Any]) -> LongRope:
    original, longest = settings["original_max_position_embeddings"], count(raw, "max_position_embeddings")
    if longest > original:
        raise ConfigError(
            f"rope_type is 'longrope', which has other frequencies for texts past {original} tokens, and "
            f"max_position_embeddings is {longest}; set max_position_embeddings to {original} in config.json to run "
            "texts up to there"
        )
    values = settings.get("short_factor")
    pairs = count(raw, "head_dim") // 2
    if not isinstance(values, list) or len(values) != pairs:
        raise ConfigError(f"short_factor is {shown(values)} in config.json; expected a list of {pairs} numbers")
    factors = tuple(number({"short_factor": value}, "short_factor") for value in values)
    factor = _ratio(settings, raw)
    if settings.get("attention_factor") is not None:
        return LongRope(factors, number(settings, "attention_factor"))
    if factor > 1 and original == 1:
        raise ConfigError("original_max_position_embeddings is 1 in config.json; LongRoPE needs more")
    return LongRope(factors, math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 else 1.0)
