"""A report as one picture: heat maps of layer by step, an attention map, the residual stream over depth."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..compare.flow import NUMBERS
from ..report import figure_class
from .report import Report
from .router_pictures import router_histogram, router_load, whole_ticks
from .rules import ABNORMAL, UNUSUAL

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LAYER_STEPS = tuple(step.name for step in NUMBERS if step.name not in ("final_norm", "logits"))
# statistic -> title. The sizes of steps differ by powers of ten, so the colours are logarithms.
HEAT_MAPS = {"std": "standard deviation", "abs_max": "largest magnitude", "mean": "|mean|"}
RED, ORANGE = "#e00000", "#ff9500"


def draw(report: Report) -> "Figure":
    layers = report.config.num_hidden_layers
    heights = [max(6.0, 0.24 * layers), 5.6, *([max(4.0, 0.2 * layers)] if report.numbers.routers else [])]
    figure = figure_class()(figsize=(19, sum(heights) + 0.9), layout="constrained")
    grid = figure.add_gridspec(len(heights), 3, height_ratios=heights)
    for column, (statistic, title) in enumerate(HEAT_MAPS.items()):
        _heat_map(figure, figure.add_subplot(grid[0, column]), report, statistic, title)
    _attention_map(figure, figure.add_subplot(grid[1, 0]), report)
    _depth(figure.add_subplot(grid[1, 1]), report)
    _first_token(figure, figure.add_subplot(grid[1, 2]), report)
    if report.numbers.routers:
        router_load(figure, figure.add_subplot(grid[2, :2]), report)
        router_histogram(figure.add_subplot(grid[2, 2]), report)
    fault = report.first_fault
    verdict = f"first fault in {fault}" if fault else "no fault"
    title = f"{Path(report.source).name}, {report.tokens}, {report.dtype}: {verdict}"
    figure.suptitle(title if len(title) < 150 else title[:147] + "...", fontsize=14, color=RED if fault else "black")
    return figure


def _heat_map(figure: "Figure", axes: Any, report: Report, statistic: str, title: str) -> None:
    layers = report.config.num_hidden_layers
    steps = [step for step in LAYER_STEPS if any((layer, step) in report.numbers.overall for layer in range(layers))]
    values = np.full((layers, len(steps)), np.nan)
    for layer in range(layers):
        for column, step in enumerate(steps):
            found = report.numbers.overall.get((layer, step))
            value = None if found is None else getattr(found, statistic)
            values[layer, column] = np.nan if value is None else abs(value)
    logarithms = np.log10(np.maximum(values, 1e-6))  # a NaN is drawn grey
    axes.set_facecolor("#bbbbbb")
    image = axes.imshow(
        logarithms, aspect="auto", cmap="viridis", vmin=-3, vmax=np.nan_to_num(logarithms, nan=0).max(initial=2)
    )
    for layer in range(layers):
        for column, step in enumerate(steps):
            _mark(axes, report, layer, column, step, statistic)
    axes.set_title(
        f"{title}\nred box: past its limit   orange dot: outside the normal range   grey: NaN, or not in this layer",
        fontsize=10,
    )
    axes.set_xticks(range(len(steps)), steps, rotation=60, ha="right", rotation_mode="anchor")
    axes.set_ylabel("layer")
    whole_ticks(axes.yaxis, layers, 40)
    bar = figure.colorbar(image, ax=axes, pad=0.01)
    ticks = [tick for tick in range(-6, 40) if image.norm.vmin <= tick <= image.norm.vmax]
    bar.set_ticks(ticks, labels=[f"{10.0**tick:g}" for tick in ticks])


def _mark(axes: Any, report: Report, layer: int, column: int, step: str, statistic: str) -> None:
    verdict = report.verdicts.get((layer, step))
    if verdict is None:
        return
    if verdict.level == ABNORMAL and {statistic, "nan", "inf"} & set(verdict.outside):
        from matplotlib.patches import Rectangle

        axes.add_patch(Rectangle((column - 0.5, layer - 0.5), 1, 1, fill=False, edgecolor=RED, linewidth=2.5))
    elif verdict.level == UNUSUAL and statistic in verdict.outside:
        axes.plot(column, layer, "o", color=ORANGE, markersize=5)


def _attention_map(figure: "Figure", axes: Any, report: Report) -> None:
    numbers = report.numbers
    # The square root makes small weights visible; the labels of the bar are the weights themselves.
    shades = np.sqrt(np.maximum(numbers.attention_map, 0))
    end = numbers.keys - 0.5
    extent = (-0.5, end, end, end - numbers.length)
    shape = "equal" if numbers.length == numbers.keys else "auto"
    image = axes.imshow(shades, cmap="magma", vmin=0, vmax=1, extent=extent, aspect=shape, interpolation="nearest")
    axes.set_title(f"attention map, layer {numbers.map_layer}, head {numbers.map_head}: who looks at whom")
    axes.set_xlabel("key: position of the token looked at")
    axes.set_ylabel("query: position of the token that looks")
    bar = figure.colorbar(image, ax=axes, pad=0.02, label="weight")
    ticks = (0, 0.01, 0.1, 0.25, 0.5, 1)
    bar.set_ticks([tick**0.5 for tick in ticks], labels=[f"{tick:g}" for tick in ticks])


def _depth(axes: Any, report: Report) -> None:
    layers = report.config.num_hidden_layers
    lines = (("rms", "RMS of the stream", "o-"), ("abs_max", "largest magnitude", "^--"))
    for statistic, label, style in lines:
        first = report.numbers.overall.get((0, "input"))
        states = [first, *(report.numbers.overall.get((layer, "output")) for layer in range(layers))]
        values = [np.nan if s is None or getattr(s, statistic) is None else getattr(s, statistic) for s in states]
        axes.plot(range(-1, layers), values, style, label=label, markersize=4)
    axes.set_yscale("log")
    axes.set_title("residual stream over depth")
    axes.set_xlabel("after layer (-1: the embedding)")
    axes.set_ylabel("magnitude, logarithmic")
    axes.grid(alpha=0.3, which="both")
    whole_ticks(axes.xaxis, layers, 16)
    axes.legend()


def _first_token(figure: "Figure", axes: Any, report: Report) -> None:
    layers, heads = report.config.num_hidden_layers, report.config.num_attention_heads
    values = np.full((layers, heads), np.nan)
    for layer in range(layers):
        for head, statistics in enumerate(report.numbers.heads.get((layer, "first_token"), ())):
            values[layer, head] = np.nan if statistics.mean is None else statistics.mean
    axes.set_facecolor("#bbbbbb")
    image = axes.imshow(values, aspect="auto", cmap="magma", vmin=0, vmax=1)
    axes.set_title("mean weight on the first token (attention sink)")
    axes.set_xlabel("query head")
    axes.set_ylabel("layer")
    whole_ticks(axes.yaxis, layers, 40)
    whole_ticks(axes.xaxis, heads, 16)
    figure.colorbar(image, ax=axes, pad=0.02, label="weight")
