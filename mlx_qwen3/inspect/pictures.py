"""A report as pictures: heat maps of layer by step, an attention map, the residual stream over depth.

Each panel can stand alone, as on the HTML page, or beside the others in one PNG.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..compare.flow import NUMBERS
from ..drawing import ABSENT, FAULT, FIRST, INK, RULE, SECOND, figure_class, heading, look, whole_ticks
from .attention_pictures import attention_map, first_token
from .report import Report
from .router_pictures import router_histogram, router_load
from .rules import ABNORMAL, NORMAL, UNUSUAL, Verdict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LAYER_STEPS = tuple(step.name for step in NUMBERS if step.name not in ("final_norm", "logits"))
# statistic -> title. The sizes of steps differ by powers of ten, so the colours are logarithms.
HEAT_MAPS = {"std": "Standard deviation", "abs_max": "Largest magnitude", "mean": "Magnitude of the mean"}
SMALLEST = -3  # the logarithm of what has the darkest colour
CORNERS = ((-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5), (-0.5, -0.5))  # of a cell, around its middle
WIDTH, COLUMNS = 4.3, 3  # inches of a panel; panels in a row of the PNG
# What the marks in the heat maps mean; the page and the PNG have one legend of them
MARKS = {"fault": "past its limit", "unusual": "outside the normal range", "absent": "NaN, or not in this layer"}


@dataclass(frozen=True)
class Panel:
    title: str
    height: float  # inches
    draw: Callable[[Any], None]  # on matplotlib's axes


def panels(report: Report) -> list[Panel]:
    layers = report.config.num_hidden_layers
    scale = _scale(report)
    tall = 1.3 + max(2.3, min(0.15 * layers, 9))
    maps = [Panel(title, tall, partial(_heat_map, report, name, scale)) for name, title in HEAT_MAPS.items()]
    place = f"layer {report.numbers.map_layer}, head {report.numbers.map_head}"
    others = [
        Panel(f"Attention map, {place}", 4.0, partial(attention_map, report)),
        Panel("Weight on the first token", max(4.0, tall), partial(first_token, report)),
        Panel("Residual stream over depth", 4.0, partial(_depth, report)),
    ]
    if report.numbers.routers:
        others += [
            Panel("Router load", tall, partial(router_load, report)),
            Panel("Load of all experts of all layers", min(4.0, tall), partial(router_histogram, report)),
        ]
    return [*maps, *others]


@look()
def draw(report: Report) -> "Figure":
    """All panels in one figure, with the verdict above them."""
    from matplotlib.lines import Line2D

    shown = panels(report)
    rows = [shown[first : first + COLUMNS] for first in range(0, len(shown), COLUMNS)]
    heights = [max(panel.height for panel in row) + 0.3 for row in rows]
    figure: Figure = figure_class()(figsize=(WIDTH * COLUMNS, sum(heights) + 0.9), layout="constrained")
    parts = figure.subfigures(len(rows), COLUMNS, height_ratios=heights, squeeze=False)
    for part, panel in zip(parts.flat, shown, strict=False):
        axes = part.add_subplot()
        panel.draw(axes)
        axes.set_title(panel.title, loc="left", pad=8)
    fault = report.first_fault
    verdict = f"first fault in {fault}" if fault else "no fault"
    title = heading(f"{Path(report.source).name}, {report.tokens}, {report.dtype}: {verdict}")
    figure.suptitle(title, fontsize=13, color=FAULT if fault else INK)
    looks: list[dict[str, Any]] = [
        {"marker": "s", "markerfacecolor": "none", "markeredgecolor": FAULT, "markeredgewidth": 2},
        {"marker": "o", "markerfacecolor": "white", "markeredgecolor": "black"},
        {"marker": "s", "markerfacecolor": ABSENT, "markeredgecolor": ABSENT},
    ]
    handles = [
        Line2D([], [], linestyle="none", markersize=8, label=label, **look)
        for label, look in zip(MARKS.values(), looks, strict=True)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=10)
    return figure


@look()
def alone(panel: Panel) -> "Figure":
    """A panel as a figure of its own; its title is left to the page."""
    figure: Figure = figure_class()(figsize=(WIDTH, panel.height), layout="constrained")
    panel.draw(figure.add_subplot())
    return figure


def _logarithms(report: Report, statistic: str) -> tuple[list[str], np.ndarray]:
    """(the steps, their logarithms by layer and step); NaN if a number is not finite or the layer lacks the step."""
    layers = range(report.config.num_hidden_layers)
    steps = [step for step in LAYER_STEPS if any((layer, step) in report.numbers.overall for layer in layers)]
    values = np.full((len(layers), len(steps)), np.nan)
    for layer in layers:
        for column, step in enumerate(steps):
            found = report.numbers.overall.get((layer, step))
            value = None if found is None else getattr(found, statistic)
            values[layer, column] = np.nan if value is None else abs(value)
    return steps, np.log10(np.maximum(values, 10.0 ** (SMALLEST - 1)))


def _scale(report: Report) -> tuple[float, float]:
    """One range of colours for all heat maps, so that a colour is the same size everywhere."""
    largest = [np.nan_to_num(_logarithms(report, name)[1], nan=0, posinf=0).max() for name in HEAT_MAPS]
    return SMALLEST, max(2.0, *largest)


def _heat_map(report: Report, statistic: str, scale: tuple[float, float], axes: Any) -> None:
    steps, logarithms = _logarithms(report, statistic)
    layers = len(logarithms)
    axes.set_facecolor(ABSENT)
    low, high = scale
    image = axes.imshow(logarithms, aspect="auto", cmap="viridis", vmin=low, vmax=high, interpolation="none")
    _marks(axes, report, steps, statistic)
    axes.set_xticks(
        range(len(steps)), steps, rotation=60, ha="right", rotation_mode="anchor", fontsize=min(8, 180 / len(steps))
    )
    axes.set_ylabel("layer")
    whole_ticks(axes.yaxis, layers, 30)
    bar = axes.figure.colorbar(image, ax=axes, pad=0.01, aspect=30)
    ticks = [tick for tick in range(-6, 40) if low <= tick <= high]
    bar.set_ticks(ticks, labels=[f"{10.0**tick:g}" for tick in ticks])


def _marks(axes: Any, report: Report, steps: Sequence[str], statistic: str) -> None:
    """A red box in a white one, or a white dot with a black edge: one of the two colours is seen on every ground."""
    from matplotlib.collections import LineCollection

    boxes, dots = [], []
    for layer in range(report.config.num_hidden_layers):
        for column, step in enumerate(steps):
            verdict = report.verdicts.get((layer, step), Verdict(NORMAL))
            if verdict.level == ABNORMAL and {statistic, "nan", "inf"} & set(verdict.outside):
                boxes.append([(column + x, layer + y) for x, y in CORNERS])
            elif verdict.level == UNUSUAL and statistic in verdict.outside:
                dots.append((column, layer))
    thin = 0.5 if report.config.num_hidden_layers > 48 else 1.0
    for colour, width in (("white", 4.0 * thin), (FAULT, 2.0 * thin)):
        axes.add_collection(LineCollection(boxes, colors=colour, linewidths=width, zorder=3), autolim=False)
    x, y = zip(*dots, strict=True) if dots else ((), ())
    axes.plot(x, y, "o", markerfacecolor="white", markeredgecolor="black", markersize=4.5, linestyle="none")


def _depth(report: Report, axes: Any) -> None:
    layers = report.config.num_hidden_layers
    lines = (("rms", "RMS", "o-", FIRST), ("abs_max", "largest magnitude", "^--", SECOND))
    for statistic, label, style, colour in lines:
        first = report.numbers.overall.get((0, "input"))
        states = [first, *(report.numbers.overall.get((layer, "output")) for layer in range(layers))]
        values = [np.nan if s is None or getattr(s, statistic) is None else getattr(s, statistic) for s in states]
        axes.plot(range(-1, layers), values, style, color=colour, label=label, markersize=4)
    axes.set_yscale("log")
    axes.set_xlabel("after the embedding, and after each layer")
    axes.set_ylabel("magnitude, logarithmic")
    axes.grid(color=RULE)
    shown = [layer for layer in range(0, layers, -(-layers // 12)) if layer or layers <= 6]
    axes.set_xticks([-1, *shown], ["emb", *map(str, shown)])
    _plain_powers(axes.yaxis)
    axes.legend()


def _plain_powers(axis: Any) -> None:
    """Labels such as 0.1, 1 and 10, and if they are few also 2 and 5."""
    from matplotlib.ticker import LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    if low > 0 and high < 100 * low:
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_minor_formatter(NullFormatter())
