"""A report as one picture: bars with their spread, and decode speed by context length."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..report import figure_class
from .report import PER_LENGTH, PER_PROCESS, PER_ROWS, Metric, Place, Report, Rows, Spread, in_words, samples

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def draw(report: Report) -> "Figure":
    figure: Figure = figure_class()(figsize=(19, 13), layout="constrained")
    axes = figure.subplots(3, 4).ravel()
    lengths = report.options.prompt_tokens
    _context(axes[0], report)
    charts: list[tuple[Metric, Sequence[Place]]] = [
        *((metric, lengths) for metric in PER_LENGTH),
        *((metric, (None,)) for metric in PER_PROCESS),
        *((metric, [Rows(rows) for rows in report.options.rows]) for metric in PER_ROWS if report.options.rows),
    ]
    for place, (metric, groups) in zip(axes[1:], charts, strict=False):
        _bars(place, report, metric, groups)
    for place in axes[1 + len(charts) :]:
        place.set_visible(False)
    figure.suptitle(f"{report.options.source}: {report.machine['chip']}, {report.machine['backend']}", fontsize=14)
    return figure


def _errors(spread: Spread, scale: float) -> tuple[float, float]:
    """How far the lowest and the highest value lie from the median."""
    return (spread.median - spread.low) * scale, (spread.high - spread.median) * scale


def _bars(axes: Any, report: Report, metric: Metric, lengths: Sequence[Place]) -> None:
    """A group of bars for each length. Each contestant has its bar at the same place in every group."""
    width = 0.8 / len(report.rows)
    for index, row in enumerate(report.rows):
        for group, length in enumerate(lengths):
            if spread := Spread.of(samples(row, metric, length)):
                place, height = group + (index - (len(report.rows) - 1) / 2) * width, spread.median * metric.scale
                below, above = _errors(spread, metric.scale)
                axes.bar(place, height, width, yerr=[[below], [above]], color=f"C{index}", capsize=3)
                axes.annotate(metric.show(spread.median), (place, height + above), ha="center", va="bottom", fontsize=7)
    title, unit = metric.title.split(", ")
    axes.set_title(f"{title} ({'higher' if metric.higher_is_better else 'lower'} is better)", fontsize=11)
    axes.set_xticks(range(len(lengths)), [in_words(length) for length in lengths])
    axes.set_ylabel(unit)
    axes.margins(y=0.1)


def _context(axes: Any, report: Report) -> None:
    decode = next(metric for metric in PER_LENGTH if metric.name == "decode_tps")
    for index, row in enumerate(report.rows):
        found = [(length, Spread.of(samples(row, decode, length))) for length in report.options.prompt_tokens]
        points = [(report.context(length), spread) for length, spread in found if spread]
        axes.errorbar(
            [context for context, _ in points],
            [spread.median for _, spread in points],
            yerr=list(zip(*(_errors(spread, 1) for _, spread in points), strict=True)) or None,
            fmt="o-",
            color=f"C{index}",
            capsize=3,
            label=f"{row.name}, {row.dtype}",
        )
    axes.set_title("decode speed against context length", fontsize=11)
    axes.set_xlabel("tokens in the cache")
    axes.set_ylabel("tokens per second")
    axes.set_yscale("log")
    axes.legend(fontsize=9)
    axes.grid(alpha=0.3)
