"""Finds regressions: compares the ratios with those of an earlier run.

Ratios are compared and not times, because they change less from day to day and with the load of the machine.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import BenchError, UsageError
from .files import FORMAT, as_json
from .report import PER_LENGTH, PER_PROCESS, Metric, Report

METRICS: dict[str, Metric] = {metric.name: metric for metric in (*PER_LENGTH, *PER_PROCESS)}
SETTINGS = ("prompt_tokens", "generate", "same_blas")


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
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UsageError(f"--check {path} is not what --json of this version writes; measure a new baseline")
    return content


def check_settings(report: Report, baseline: dict[str, Any]) -> None:
    """Raises UsageError that names the first setting that differs, and both values."""
    then, now = _settings(baseline), _settings(as_json(report))
    for name in now:
        if now[name] != then.get(name):
            raise UsageError(
                f"the baseline has {name} {then.get(name)!r}, this run {now[name]!r}; ratios of different settings "
                "say nothing: measure the same, or make a new baseline"
            )


def check(report: Report, baseline: dict[str, Any], margin: float) -> None:
    """Raises BenchError that names every ratio that is worse than in the baseline by more than the margin."""
    after = dict(_ratios(as_json(report)))
    failures = []
    for (row, length, name), before in _ratios(baseline):
        metric = METRICS[name]
        where = f"{row}, {f'{length} tokens, ' if length else ''}{metric.title}"
        now = after.get((row, length, name))
        if now is None:
            failures.append(f"{where}: not measured, was {before:.3g}")
            continue
        worse = before / now - 1 if metric.higher_is_better else now / before - 1
        if worse > margin:
            failures.append(f"{where}: ours is {now:.3g} of it, was {before:.3g}")
    if failures:
        raise BenchError(f"{len(failures)} ratios are worse by more than {margin:.0%}: {'; '.join(failures)}")


def _settings(content: dict[str, Any]) -> dict[str, Any]:
    return {
        "the shape": content["shape"],
        "the back end": content["machine"]["backend"],
        "contestants": [(row["name"], row["dtype"], row["device"]) for row in content["contestants"]],
        **{name: content["settings"][name] for name in SETTINGS},
    }


def _ratios(content: dict[str, Any]) -> Iterator[tuple[tuple[str, str, str], float]]:
    for row in content["contestants"]:
        for length, figures in row["summary"].items():
            for name, figure in figures.items():
                if figure["ratio"]:
                    yield (row["name"], length, name), figure["ratio"]["median"]
