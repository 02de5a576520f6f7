"""The files that `bench` writes: a JSON file with everything, and a picture."""

import json
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from ..drawing import check_picture, png
from ..files.config import Qwen3Config
from ..report import check_place, finite, write_file
from .pictures import draw
from .report import (
    PER_LENGTH,
    PER_PROCESS,
    PER_ROWS,
    Metric,
    Place,
    Report,
    Row,
    Rows,
    Spread,
    in_words,
    ratio,
    samples,
)

FORMAT = 3  # of the JSON; 1 called transformers `torch`, 2 had no rows


def check_files(as_json: Path | None, plot: Path | None) -> None:
    """Raises UsageError or OutputError if a file could not be written. Call it before measuring, which takes long."""
    if plot:
        check_picture(plot)
    for path in (as_json, plot):
        if path:
            check_place(path)


def write_json(report: Report, file: Path) -> None:
    """Raises OutputError."""
    write_file(file, encoded(as_json(report)))


def write_picture(report: Report, file: Path) -> None:
    """Raises OutputError."""
    write_file(file, png(draw(report)))


def as_json(report: Report) -> dict[str, Any]:
    """Everything: settings, machine, every repeat of every row, and the figures computed from them."""
    contestants = [{**asdict(row), "summary": _summary(report, row)} for row in report.rows]
    progress = {"rounds": report.rounds, "complete": report.complete}
    settings = replace(report.options, repeat=report.repeat)
    return document(
        FORMAT, settings, report.config, report.machine, **progress, limits=report.limits, contestants=contestants
    )


def document(version: int, settings: Any, config: Qwen3Config, machine: Any, **measured: Any) -> dict[str, Any]:
    """What a JSON file of `bench` holds: settings, sizes of the model, machine, and what was measured."""
    known = {"format": version, "settings": asdict(settings), "shape": shape(config), "machine": machine}
    content: dict[str, Any] = finite({**known, **measured})
    return content


def encoded(content: dict[str, Any]) -> bytes:
    return json.dumps(content, ensure_ascii=False, allow_nan=False, indent=1).encode() + b"\n"


def shape(config: Qwen3Config) -> dict[str, Any]:
    """The sizes of the model, and how its weights are packed."""
    sizes = {field.name: getattr(config, field.name) for field in fields(config)}
    plain = {name: value for name, value in sizes.items() if isinstance(value, int)}
    return {**plain, "quantization": asdict(config.quantization) if config.quantization else None}


def _summary(report: Report, row: Row) -> dict[str, Any]:
    """By prompt length, number of rows (`8 rows`) or "", then by metric: median, low, high, and ours divided by it."""
    places: list[tuple[str, tuple[Metric, ...], Place]] = [
        *((str(length), PER_LENGTH, length) for length in report.options.prompt_tokens),
        *((in_words(Rows(rows)), PER_ROWS, Rows(rows)) for rows in report.options.rows),
        ("", PER_PROCESS, None),
    ]
    return {name: _figures(report, row, metrics, place) for name, metrics, place in places}


def _figures(report: Report, row: Row, metrics: tuple[Metric, ...], length: Place) -> dict[str, Any]:
    figures = {}
    for metric in metrics:
        if spread := Spread.of(samples(row, metric, length)):
            found = None if row is report.ours else ratio(report, row, metric, length)
            figures[metric.name] = {**asdict(spread), "ratio": asdict(found) if found else None}
    return figures
