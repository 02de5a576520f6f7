"""Finds regressions: compares the ratios with those of an earlier run.

It compares ratios, not times, because ratios depend less on the load of the machine.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from ..errors import BenchError, UsageError
from ..files.config import Qwen3Config
from . import machine
from .files import FORMAT, as_json, shape
from .options import Options
from .report import PER_LENGTH, PER_PROCESS, PER_ROWS, Metric, Report

METRICS: dict[str, Metric] = {metric.name: metric for metric in (*PER_LENGTH, *PER_ROWS, *PER_PROCESS)}
# The settings that change a ratio, and their options
SETTINGS = {
    "prompt_tokens": "--prompt-tokens",
    "generate": "--generate",
    "dtype": "--dtype",
    "same_blas": "--same-blas",
    "rows": "--rows",
    "weights": "--weights",
    "adapters": "--adapter",
}


def read_baseline(path: Path, margin: float) -> dict[str, Any]:
    """Read what `--json` wrote. Raises UsageError if the file or the margin is not usable."""
    if not 0 <= margin < 1:
        raise UsageError(f"--margin is {margin:g}; expected a share, at least 0 and below 1, such as 0.15")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--check {path} cannot be read ({error.strerror}); give what --json wrote") from None
    except ValueError:
        raise UsageError(f"--check {path} is not JSON; give what --json wrote") from None
    try:
        if content["format"] == FORMAT:
            _planned(content)
            _found(content)
            return content
    except (KeyError, TypeError, AttributeError):
        pass
    raise UsageError(f"--check {path} is not what --json of this version writes; measure a new baseline")


def sizes_of(baseline: dict[str, Any], options: Options) -> Options:
    """The options with the baseline's prompts and replies, if they may be chosen."""
    settings = baseline["settings"]
    lengths, generate = tuple(settings["prompt_tokens"]), settings["generate"]
    return replace(options, prompt_tokens=lengths, generate=generate, fit=False) if options.fit else options


def check_plan(options: Options, config: Qwen3Config, names: Sequence[str], baseline: dict[str, Any]) -> None:
    """Raises UsageError for the first setting that differs from the baseline's. Call it before contestants start."""
    planned = {
        "settings": asdict(options),
        "shape": shape(config),
        "machine": machine.describe(),
        "contestants": [{"name": name} for name in names],
    }
    _compare(_planned(baseline), _planned(planned))


def check_settings(report: Report, baseline: dict[str, Any]) -> None:
    """Raises UsageError if the dtype or device that a contestant reports differs from the baseline's."""
    content = as_json(report)
    _compare(_planned(baseline), _planned(content))
    _compare(_found(baseline), _found(content))


def check(report: Report, baseline: dict[str, Any], margin: float) -> None:
    """Raises BenchError that names every ratio that is worse than in the baseline by more than the margin."""
    after = dict(_ratios(as_json(report)))
    failures = []
    for (row, length, name), before in _ratios(baseline):
        metric = METRICS[name]
        place = f"{length} tokens, " if length.isdigit() else f"{length}, " if length else ""
        where = f"{row}, {place}{metric.title}"
        now = after.get((row, length, name))
        if now is None:
            failures.append(f"{where}: not measured, was {before:.3g}")
            continue
        worse = before / now - 1 if metric.higher_is_better else now / before - 1
        if worse > margin:
            failures.append(f"{where}: ours is {now:.3g} of it, was {before:.3g}")
    if failures:
        raise BenchError(f"{len(failures)} ratios are worse by more than {margin:.0%}: {'; '.join(failures)}")


def _compare(then: dict[str, str], now: dict[str, str]) -> None:
    for name in [*now, *then]:
        if now.get(name) != then.get(name):
            raise UsageError(
                f"the baseline has {name} {then.get(name, 'none')}, this run {now.get(name, 'none')}; ratios of "
                "different settings say nothing: measure the same, or make a new baseline"
            )


def _planned(content: dict[str, Any]) -> dict[str, str]:
    """The settings that are known before anything runs, by name and in words."""
    return {
        "the contestants": ", ".join(row["name"] for row in content["contestants"]),
        "the back end": content["machine"]["backend"],
        **{option: _words(content["settings"][name]) for name, option in SETTINGS.items()},
        **{f"{name} of the model": _words(value) for name, value in content["shape"].items()},
    }


def _found(content: dict[str, Any]) -> dict[str, str]:
    """The dtype and device that each contestant reports."""
    return {row["name"]: f"in {row['dtype']} on {row['device']}" for row in content["contestants"]}


def _words(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    if isinstance(value, dict):
        return " ".join(f"{name} {entry}" for name, entry in value.items())
    return {True: "on", False: "off", None: "none"}[value] if value is None or isinstance(value, bool) else str(value)


def _ratios(content: dict[str, Any]) -> Iterator[tuple[tuple[str, str, str], float]]:
    for row in content["contestants"]:
        for length, figures in row["summary"].items():
            for name, figure in figures.items():
                if figure["ratio"]:
                    yield (row["name"], length, name), figure["ratio"]["median"]
