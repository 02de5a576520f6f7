"""A report as one picture: bars with spread, and decode speed against context length."""

import io
from typing import TYPE_CHECKING, Any

from ..inspect.pictures import figure_class
from .report import PER_LENGTH, PER_PROCESS, Metric, Report, Row, Spread, samples

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 110


def png(report: Report) -> bytes:
    """The picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    draw(report).savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def draw(report: Report) -> "Figure":
    figure: Figure = figure_class()(figsize=(19, 13), layout="constrained")
    axes = figure.subplots(3, 4).ravel()
    lengths = report.options.prompt_tokens
    _context(axes[0], report)
    for place, metric in zip(axes[1:], PER_LENGTH, strict=False):
        _bars(place, report, metric, lengths)
    for place, metric in zip(axes[1 + len(PER_LENGTH) :], PER_PROCESS, strict=False):
        _bars(place, report, metric, (None,))
    for place in axes[1 + len(PER_LENGTH) + len(PER_PROCESS) :]:
        place.set_visible(False)
    figure.suptitle(f"{report.options.source}: {report.machine['chip']}, {report.machine['backend']}", fontsize=14)
    return figure


def _label(row: Row) -> str:
    return f"{row.name}, {row.dtype}"


def _errors(spread: Spread) -> list[list[float]]:
    """How far the lowest and the highest lie from the median, as matplotlib takes it."""
    return [[spread.median - spread.low], [spread.high - spread.median]]


def _bars(axes: Any, report: Report, metric: Metric, lengths: tuple[int | None, ...]) -> None:
    """A group for each length, a bar for each contestant, in its colour also where it has no bar."""
    width = 0.8 / len(report.rows)
    for index, row in enumerate(report.rows):
        for group, length in enumerate(lengths):
            if spread := Spread.of(samples(row, metric, length)):
                place = group + (index - (len(report.rows) - 1) / 2) * width
                axes.bar(place, spread.median, width, yerr=_errors(spread), color=f"C{index}", capsize=3)
                axes.annotate(metric.show(spread.median), (place, spread.median), ha="center", va="bottom", fontsize=7)
    better = "higher" if metric.higher_is_better else "lower"
    axes.set_title(f"{metric.title.split(',')[0]} ({better} is better)", fontsize=11)
    axes.set_xticks(range(len(lengths)), [f"{length} tokens" if length else "" for length in lengths])
    axes.set_ylabel(_unit(metric))
    axes.set_yscale("log")
    axes.margins(y=0.15)


def _unit(metric: Metric) -> str:
    """Spreads are in base units, whatever the table shows."""
    return {"tok/s": "tokens per second", "MB": "bytes"}.get(metric.title.split(", ")[-1], "seconds")


def _context(axes: Any, report: Report) -> None:
    decode = next(metric for metric in PER_LENGTH if metric.name == "decode_tps")
    for index, row in enumerate(report.rows):
        found = [(length, Spread.of(samples(row, decode, length))) for length in report.options.prompt_tokens]
        points = [(report.context(length), spread) for length, spread in found if spread]
        errors = [[e[0] for e in side] for side in zip(*(_errors(s) for _, s in points), strict=True)]
        axes.errorbar(
            [x for x, _ in points],
            [spread.median for _, spread in points],
            yerr=errors or None,
            fmt="o-",
            color=f"C{index}",
            capsize=3,
            label=_label(row),
        )
    axes.set_title("decode speed against context length", fontsize=11)
    axes.set_xlabel("tokens in the cache")
    axes.set_ylabel("tokens per second")
    axes.set_yscale("log")
    axes.legend(fontsize=9)
    axes.grid(alpha=0.3)
