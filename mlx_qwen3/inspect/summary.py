"""What a report says in a few lines: the verdict, what is unusual, and whether float16 would do."""

import math
from collections import defaultdict

from ..table import BAD, GOOD, WARNING, Line, spans
from .report import Report, describe, place
from .rules import UNUSUAL


def verdict_lines(report: Report) -> list[Line]:
    """The verdict: the faults, what is unusual, and whether float16 would hold all numbers."""
    faults = report.faults
    lines = [Line("no fault: every number is within its limit", GOOD)]
    if faults:
        lines = [Line(f"FAULT: first in {report.first_fault}", BAD)]
    if len(faults) > 1:
        lines.append(Line(f"{len(faults)} faults in all, in layers {_layers(report)}", BAD))
    if report.comparison and (outside := report.comparison.first_outside):
        lines.append(Line(describe(outside, report.comparison.against), BAD))
    if unusual := _unusual(report):
        lines.append(Line(f"unusual, by rules of thumb: {unusual}", WARNING))
    return [*lines, Line(forecast(report))]


def _unusual(report: Report) -> str:
    """The steps that are outside what trained models show, each with its layers."""
    layers: dict[str, list[int]] = defaultdict(list)
    for (layer, step), verdict in report.verdicts.items():
        if verdict.level == UNUSUAL:
            layers[step] += [] if layer is None else [layer]
    return "; ".join(f"{step} in layers {spans(found)}" if found else step for step, found in layers.items())


def forecast(report: Report) -> str:
    """Whether float16, whose largest number is 65504, would hold every weight and every step."""
    odd = [key for key, statistics in report.numbers.overall.items() if statistics.nan or statistics.inf]
    if odd:
        where = f"{place(odd[0][0])}, {odd[0][1]}"
        return f"fp16: no forecast: numbers are not finite already in {report.dtype}, first in {where}"
    largest, margin = report.rules.settings["fp16"]["largest"], report.rules.settings["fp16"]["margin"]
    top = report.peaks[0]
    where = f"{number(top.value)} in {place(top.layer)}, {top.step}"
    if top.value > largest:
        over = [peak for peak in report.peaks if peak.value > largest]
        return f"fp16: would overflow past {largest:g} at {len(over)} steps, the largest {where}; use bf16 or fp32"
    room = largest / top.value if top.value else math.inf
    word = "fits" if room >= margin else f"fits barely, other texts may overflow (margin wanted: {margin:g} times)"
    return f"fp16: {word}; the largest magnitude is {where}, {number(room)} times below {largest:g}"


def number(value: float | None) -> str:
    """Three significant digits, with an exponent if the number is very small or large."""
    if value is None:
        return "-"
    if value == 0 or math.isinf(value):
        return f"{value + 0.0:g}"  # never -0, which looks like a mistake
    if 1e3 <= abs(value) < 1e5:
        return f"{value:.0f}"
    return f"{value:.3g}" if 1e-3 <= abs(value) < 1e5 else f"{value:.2e}"


def _layers(report: Report) -> str:
    layers = sorted({fault.layer for fault in report.faults if fault.layer is not None})
    return ", ".join(map(str, layers)) or "none"
