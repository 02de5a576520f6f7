"""A report as one row of panels: first token, prefill, decode and peak memory, with a bar for each contestant."""

from collections.abc import Iterator
from dataclasses import dataclass
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from ..drawing import DPI, FAULT, FIRST, INK, QUIET, RULE, drawable, figure_class, heading, look
from .report import PER_LENGTH, Metric, Report, Row, Spread, in_words, samples
from .roofline import decode_limit, prefill_limit

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# metric -> the name of its panel
PANELS = {
    "ttft_s": "First token",
    "prefill_tps": "Prefill",
    "decode_tps": "Decode",
    "peak_bytes": "Peak memory",
}
METRICS = {metric.name: metric for metric in PER_LENGTH}
OTHERS = "#6e7b8a"  # bars of the other contestants
BAR = 0.62  # of the height of a row
NAME = 26  # characters in a line of a name
FAR = 3.0  # times the longest bar: a limit that is further away is beyond the axis
# In points: between a bar and its label; of a label, and of one of its letters; the room for the longest label
GAP, SIZE, LETTER, LABEL = 4.0, 9.0, 6.0, 62.0


@dataclass(frozen=True, eq=False)
class Place:
    """Where a contestant has its bar."""

    y: float  # grows downwards
    length: int
    row: Row


@look()
def draw(report: Report) -> "Figure":
    places = list(_places(report))
    height = places[-1].y + 1
    figure: Figure = figure_class()(figsize=(14, 0.34 * height + 1.9), layout="constrained", dpi=DPI)
    panels = figure.subplots(1, len(PANELS), sharey=True)
    for axes, (name, title) in zip(panels, PANELS.items(), strict=True):
        unit = METRICS[name].title.split(", ")[1]
        better = "higher" if METRICS[name].higher_is_better else "lower"
        axes.set_title(title, loc="left", pad=19)
        below = {"xycoords": "axes fraction", "xytext": (0, 6), "textcoords": "offset points"}
        axes.annotate(f"{unit}, {better} is better", (0, 1), **below, color=QUIET, fontsize=SIZE)
        axes.spines[["bottom", "left"]].set_visible(False)
        axes.set_xticks([])
        axes.tick_params(left=False)
    _names(panels[0], report, places)
    machine = heading(f"{report.options.source}: {report.machine['chip']}, {report.machine['backend']}")
    figure.suptitle(machine, fontsize=13)
    _legend(figure)
    figure.draw_without_rendering()  # settles the widths in which labels must find room
    for axes, name in zip(panels, PANELS, strict=True):
        for length in report.options.prompt_tokens:
            group = [place for place in places if place.length == length]
            _bars(axes, report, METRICS[name], group)
    return figure


def _places(report: Report) -> Iterator[Place]:
    """A group for each length of a prompt, with room for a heading above it."""
    for group, length in enumerate(report.options.prompt_tokens):
        top = 1 + group * (len(report.rows) + 1.3)
        yield from (Place(top + index, length, row) for index, row in enumerate(report.rows))


def _names(axes: Any, report: Report, places: list[Place]) -> None:
    """The names of the contestants, and above each group what its prompt was."""
    names = {place.y: _name(place.row) for place in places}
    ours = {place.y for place in places if place.row is report.ours}
    headings = {p.y - 1: f"prompt of {in_words(p.length)}" for p in places if p.row is report.ours}
    axes.set_ylim(places[-1].y + 0.6, -0.6)
    axes.set_yticks([*names, *headings], [*names.values(), *headings.values()])
    for y, label in zip([*names, *headings], axes.get_yticklabels(), strict=True):
        label.set_fontweight("bold" if y in ours else "normal")
        label.set_color(QUIET if y in headings else INK)


def _name(row: Row) -> str:
    """Name and dtype in one or two lines."""
    lines = wrap(drawable(f"{row.name}, {row.dtype}"), NAME) or [""]
    return lines[0] if len(lines) == 1 else f"{lines[0]}\n{lines[1]}{'...' * (len(lines) > 2)}"


def _legend(figure: "Figure") -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=INK, marker="|", markersize=12, markeredgewidth=1.6, linestyle="none"),
        Line2D([], [], color=INK, marker=">", markersize=6, linestyle="none"),
        Line2D([], [], color=INK, linewidth=1.2),
    ]
    labels = (
        "limit of this machine: copying speed for decode, arithmetic for the rest",
        "the limit lies further right",
        "lowest and highest of the repeats; bars of one prompt have one scale",
    )
    figure.legend(handles, labels, loc="outside lower center", ncols=3, labelcolor=QUIET)


def _limit(report: Report, metric: Metric, place: Place) -> float | None:
    """What no program can pass, in the unit of the panel; None if it is not known, or for a row without a cache."""
    limits, config = report.limits, report.config
    if metric.name == "decode_tps" and place.row.cache_bytes:
        return decode_limit(limits["copy_bytes_per_s"], place.row.bytes_per_token(report.context(place.length)))
    rate = prefill_limit(limits["product_flops"], config, place.length)
    return {"prefill_tps": rate, "ttft_s": place.length / rate * metric.scale}.get(metric.name)


def _bars(axes: Any, report: Report, metric: Metric, group: list[Place]) -> None:
    """Bars, each with its spread, its value behind it and its limit; words where there is no number.

    The longest bar or limit of a group has length 1.
    """
    spreads = {p: Spread.of(samples(p.row, metric, p.length)) if p.row.agrees(p.length) else None for p in group}
    longest = max((spread.high for spread in spreads.values() if spread), default=0) * metric.scale or 1.0
    limits = {place: _limit(report, metric, place) for place, spread in spreads.items() if spread}
    unit = max(longest, *(limit for limit in limits.values() if limit and limit <= FAR * longest), 0)
    points = axes.get_window_extent().width * 72 / DPI
    end = 1 / (1 - LABEL / points)
    axes.set_xlim(0, end)
    axes.plot([0, 0], [group[0].y - 0.5, group[-1].y + 0.5], color=RULE, linewidth=1, zorder=0)
    for place, spread in spreads.items():
        if spread is None:
            differs = not place.row.agrees(place.length)
            _write(axes, 0, place, "outputs differ" if differs else "not measured", FAULT if differs else QUIET)
            continue
        _bar(axes, place, spread, metric.scale / unit, FIRST if place.row is report.ours else OTHERS)
        begin, text, limit = spread.high * metric.scale / unit, metric.show(spread.median), limits[place]
        width = (len(text) * LETTER + 2 * GAP) * end / points
        if limit and limit / unit > 1:
            axes.plot(0.97 * end, place.y, marker=">", color=INK, markersize=5)
        elif limit:
            axes.plot([limit / unit] * 2, [place.y - 0.42, place.y + 0.42], color=INK, linewidth=1.6, zorder=4)
            begin = limit / unit if begin <= limit / unit < begin + width else begin
        _write(axes, begin, place, text, INK)


def _write(axes: Any, x: float, place: Place, text: str, colour: str) -> None:
    style = {"va": "center", "color": colour, "fontsize": SIZE}
    axes.annotate(text, (x, place.y), (GAP, 0), textcoords="offset points", **style)


def _bar(axes: Any, place: Place, spread: Spread, scale: float, colour: str) -> None:
    median, low, high = (value * scale for value in (spread.median, spread.low, spread.high))
    axes.barh(place.y, median, BAR, color=colour, zorder=2)
    if high > low:
        error = [[median - low], [high - median]]
        axes.errorbar(median, place.y, xerr=error, fmt="none", ecolor=INK, elinewidth=1.2, capsize=2.5, zorder=3)
