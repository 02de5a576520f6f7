"""Verdicts: what is normal, what is unusual, what is a fault. The limits are data, in rules.json."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from ..compare import bounds
from ..compare.flow import NUMBERS
from ..errors import UsageError
from ..model.qwen3 import Qwen3
from .statistics import Statistics

DEFAULT = Path(__file__).with_name("rules.json")
STATISTICS = ("mean", "std", "rms", "min", "max", "abs_max")
NORMAL, UNUSUAL, ABNORMAL = "normal", "unusual", "abnormal"
UNITS = ("q_norm", "k_norm", "qk_norm", "layers")
FEW = 4  # with fewer layers than this, their median says nothing about one of them
SETTINGS = {
    "unit": ("smallest", "largest", "layers"),
    "outliers": ("z", "ratio", "zeros", "layers"),
    "fp16": ("largest", "margin"),
    "router": ("tokens", "busiest", "evenness", "unused", "near_tie"),
    "compare": (*bounds.STEPS, "growth"),
}
# What it means if a statistic is past its limit, by statistic and side
MEANING = {
    ("std", "below"): "collapse",
    ("std", "above"): "explosion",
    ("mean", "below"): "shifted",
    ("mean", "above"): "shifted",
}

Range = tuple[float, float]


@dataclass(frozen=True)
class Rule:
    """The ranges of one quantity, by statistic, and the sizes in which they are given."""

    normal: Mapping[str, Range]
    limit: Mapping[str, Range]
    unit: str | None
    limit_unit: str | None
    meaning: str  # of an abs_max past its limit


@dataclass(frozen=True)
class Rules:
    quantities: Mapping[str, Rule]
    settings: Mapping[str, Mapping[str, float]]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Verdict:
    level: str
    reasons: tuple[str, ...] = ()
    outside: tuple[str, ...] = ()  # the statistics that the reasons are about, such as std or nan


def load_rules(path: Path | None = None) -> Rules:
    """The rules of a JSON file like rules.json; sections that it leaves out keep their defaults.

    Raises UsageError if the file cannot be read, or has an unknown key or a value of the wrong form.
    """
    default = {"compare": _compare_defaults()} | _parse(DEFAULT)
    raw = default | (_parse(path) if path else {})
    where = path or DEFAULT
    _known(raw, {"about", "quantities", "notes", *SETTINGS}, where, "section")
    _shaped(raw, where)
    settings = {name: default[name] | raw[name] for name in SETTINGS}
    for section, values in settings.items():
        _known(values, set(SETTINGS[section]), where, f"setting of {section}")
        for name, value in values.items():
            if not _is_number(value):
                raise UsageError(f"{where}: {section}.{name} is {value!r}; expected a number")
    _known(raw["quantities"], {step.name for step in NUMBERS}, where, "quantity")
    quantities = {name: _rule(name, entry, where) for name, entry in raw["quantities"].items()}
    return Rules(quantities, settings, tuple(map(str, raw["notes"])))


def _compare_defaults() -> dict[str, float]:
    return {name: bound.limit for name, bound in bounds.STEPS.items()} | {"growth": bounds.GROWTH.limit}


def units(model: Qwen3, layer: int, rules: Rules) -> dict[str, float]:
    """The size that QK-norm gives to q, to k and to scores: RMS of the norm's weight, and the product of both."""
    attention = model.layers[layer].self_attn
    q, k = (_size(norm.get("weight"), rules) for norm in (attention.q_norm, attention.k_norm))
    return {"q_norm": q, "k_norm": k, "qk_norm": q * k}


def typical(layers: Sequence[Statistics], rules: Rules) -> float:
    """Half the std of the median layer, but at least 1 and at most `unit.layers` of the rules. A normal std gives 1.

    Layers after a NaN have no std. Those before it are healthy in a model that has larger numbers everywhere.
    """
    found = sorted(statistics.std for statistics in layers if statistics.std is not None)
    if len(layers) < FEW or not found:
        return 1.0
    return min(max(found[(len(found) - 1) // 2] / 2, 1.0), rules.settings["unit"]["layers"])


def judge(name: str, statistics: Statistics, rules: Rules, sizes: Mapping[str, float]) -> Verdict:
    """Judge one quantity. NaN and infinite values are always a fault; the other limits are those of its rule."""
    counts = (("nan", statistics.nan, "NaN"), ("inf", statistics.inf, "infinite"))
    faults = [(name, f"{count} {word}") for name, count, word in counts if count]
    rule = rules.quantities.get(name)
    if rule is None:
        return _verdict(ABNORMAL, faults)
    unit, limit_unit = (sizes.get(name, 1.0) if name else 1.0 for name in (rule.unit, rule.limit_unit))
    for statistic, value, side, bound in _outside(statistics, rule.limit, limit_unit, absolute="abs_max"):
        word = MEANING.get((statistic, side), rule.meaning if statistic == "abs_max" else "")
        faults.append((statistic, _reason(statistic, value, side, bound) + (f" ({word})" if word else "")))
    remarks = [(outside[0], _reason(*outside)) for outside in _outside(statistics, rule.normal, unit)]
    return _verdict(ABNORMAL, faults) if faults else _verdict(UNUSUAL, remarks)


def _verdict(level: str, reasons: list[tuple[str, str]]) -> Verdict:
    if not reasons:
        return Verdict(NORMAL)
    return Verdict(level, tuple(reason for _, reason in reasons), tuple(statistic for statistic, _ in reasons))


def _outside(
    statistics: Statistics, ranges: Mapping[str, Range], unit: float, absolute: str = ""
) -> Iterator[tuple[str, float, str, float]]:
    """(statistic, value, side, bound) of each statistic outside its range. Ranges in `absolute` have no unit."""
    for name, (low, high) in ranges.items():
        factor = 1.0 if name == absolute else unit
        value = getattr(statistics, name)
        if value is None:
            continue
        if value < low * factor:
            yield name, value, "below", low * factor
        elif value > high * factor:
            yield name, value, "above", high * factor


def _reason(statistic: str, value: float, side: str, bound: float) -> str:
    return f"{'|value|' if statistic == 'abs_max' else statistic} {value:.3g} {side} {bound:.3g}"


def _size(weight: Any, rules: Rules) -> float:
    if weight is None:
        return 1.0
    size = math.sqrt(mx.square(weight.astype(mx.float32)).mean().item())  # type: ignore[arg-type]
    smallest, largest = rules.settings["unit"]["smallest"], rules.settings["unit"]["largest"]
    # A weight near 0 is a fault and cannot be a unit. Then q and k are judged as they are, and found collapsed.
    return min(size, largest) if size >= smallest else 1.0


def _parse(path: Path) -> dict[str, Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"rules {path} cannot be read ({error.strerror}); start from a copy of {DEFAULT}") from None
    except ValueError as error:
        raise UsageError(f"rules {path} are not valid JSON ({error}); start from a copy of {DEFAULT}") from None
    if not isinstance(raw, dict):
        raise UsageError(f"rules {path} hold a {type(raw).__name__}, not a JSON object; start from a copy of {DEFAULT}")
    return raw


def _shaped(raw: Mapping[str, Any], where: Path) -> None:
    for name, kind in (("quantities", dict), ("notes", list), *((section, dict) for section in SETTINGS)):
        if not isinstance(raw[name], kind):
            expected = "an object" if kind is dict else "a list"
            raise UsageError(f"{where}: {name} is {raw[name]!r}; expected {expected}")


def _rule(name: str, entry: Any, where: Path) -> Rule:
    if not isinstance(entry, dict):
        raise UsageError(f"{where}: {name} is {entry!r}; expected an object with normal and limit")
    _known(entry, {"normal", "limit", "unit", "limit_unit", "meaning"}, where, f"key of {name}")
    unit = entry.get("unit")
    limit_unit = entry.get("limit_unit", unit)
    for key, value in (("unit", unit), ("limit_unit", limit_unit)):
        if value is not None and value not in UNITS:
            raise UsageError(f"{where}: {key} of {name} is {value!r}; expected {', '.join(UNITS)}")
    ranges = {}
    for level in ("normal", "limit"):
        given = entry.get(level, {})
        if not isinstance(given, dict):
            raise UsageError(f"{where}: {name}.{level} is {given!r}; expected statistics and their ranges")
        _known(given, set(STATISTICS), where, f"statistic of {name}.{level}")
        ranges[level] = {key: _range(value, f"{name}.{level}.{key}", where) for key, value in given.items()}
    return Rule(ranges["normal"], ranges["limit"], unit, limit_unit, str(entry.get("meaning", "")))


def _range(value: Any, name: str, where: Path) -> Range:
    if not isinstance(value, list) or len(value) != 2 or not all(end is None or _is_number(end) for end in value):
        raise UsageError(f"{where}: {name} is {value!r}; expected [lowest, highest], null where it is open")
    low, high = (-math.inf if value[0] is None else value[0]), (math.inf if value[1] is None else value[1])
    if low > high:
        raise UsageError(f"{where}: {name} is {value!r}; the lowest is above the highest")
    return float(low), float(high)


def _known(given: Mapping[str, Any], known: set[str], where: Path, what: str) -> None:
    if unknown := sorted(given.keys() - known):
        raise UsageError(f"{where}: {unknown[0]!r} is not a {what}; known: {', '.join(sorted(known))}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
