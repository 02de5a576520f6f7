"""Who attends to whom in one head, and how much weight every head gives to the first token."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..drawing import ABSENT, drawable, whole_ticks
from .report import Report

MOST_TOKENS = 28  # of which the axes of a map show the text; more would be too small to read
LONGEST = 14  # characters of a token on an axis
MOST_HEADS, MOST_LAYERS = 16, 64  # whose cells have room for a number
SIGNS = str.maketrans({" ": "␣", "\n": "↵", "\t": "⇥"})  # what is written for characters that cannot be seen


def attention_map(report: Report, axes: Any) -> None:
    """The weight that each query gives to each key; NaN is grey. Keys that a query cannot see have no colour."""
    from matplotlib.colors import ListedColormap

    numbers = report.numbers
    cells, (rows, columns) = numbers.attention_map, numbers.attention_map.shape
    first = numbers.keys - numbers.length  # the position of the first query
    tokens = -(-numbers.keys // columns)  # of one cell
    last_query = np.minimum(first + tokens * np.arange(1, rows + 1), numbers.keys) - 1
    hidden = tokens * np.arange(columns) > last_query[:, None]
    # The square root makes small weights visible; the labels of the bar are the weights themselves.
    shades = np.sqrt(np.maximum(cells, 0))
    end = numbers.keys - 0.5
    extent = (-0.5, end, end, first - 0.5)
    look: dict[str, Any] = {"vmin": 0, "vmax": 1, "extent": extent, "aspect": "auto", "interpolation": "none"}
    if (broken := np.isnan(shades) & ~hidden).any():
        axes.imshow(np.ma.array(broken, mask=~broken), cmap=ListedColormap([ABSENT]), **look)
    image = axes.imshow(np.ma.array(shades, mask=hidden | broken), cmap="magma", **look)
    axes.set_xlabel("key: the token looked at")
    axes.set_ylabel("query: the token that looks")
    for axis in (axes.xaxis, axes.yaxis):
        axis.get_major_locator().set_params(integer=True)
    if report.texts and numbers.keys <= MOST_TOKENS:
        labels = [label(text) for text in report.texts]
        size = min(9.0, 170 / numbers.keys)
        axes.set_xticks(range(numbers.keys), labels, rotation=90, fontsize=size)
        axes.set_yticks(range(first, numbers.keys), labels[first:], fontsize=size)
    bar = axes.figure.colorbar(image, ax=axes, pad=0.02, label="weight", aspect=30)
    ticks = (0, 0.01, 0.1, 0.25, 0.5, 1)
    bar.set_ticks([tick**0.5 for tick in ticks], labels=[f"{tick:g}" for tick in ticks])


def label(text: str) -> str:
    """A token on an axis: spaces and line ends can be seen, and the middle of a long one is left out."""
    shown = drawable(text.translate(SIGNS))
    half = (LONGEST - 1) // 2
    return shown if len(shown) <= LONGEST else f"{shown[: LONGEST - 1 - half]}…{shown[-half:]}"


def first_token(report: Report, axes: Any) -> None:
    """The mean weight of each head in per cent: an attention sink. The colours end at the largest one."""
    layers, heads = report.config.num_hidden_layers, report.config.num_attention_heads
    values = np.full((layers, heads), np.nan)
    for layer in range(layers):
        for head, statistics in enumerate(report.numbers.heads.get((layer, "first_token"), ())):
            values[layer, head] = np.nan if statistics.mean is None else 100 * statistics.mean
    axes.set_facecolor(ABSENT)
    largest = np.nan_to_num(values).max() or 1.0
    image = axes.imshow(values, aspect="auto", cmap="magma", vmin=0, vmax=largest, interpolation="none")
    axes.set_xlabel("query head")
    axes.set_ylabel("layer")
    whole_ticks(axes.yaxis, layers, 30)
    whole_ticks(axes.xaxis, heads, 16)
    axes.figure.colorbar(image, ax=axes, pad=0.02, label="mean weight, %", aspect=30)
    if heads <= MOST_HEADS and layers <= MOST_LAYERS:
        _numbers(axes, values, image.cmap(image.norm(values))[..., :3])


def _numbers(axes: Any, values: np.ndarray, colours: np.ndarray) -> None:
    """The value in each cell, in white or black, whichever is easier to read on its colour."""
    decimals, size = (1, 8.5) if values.shape[1] <= 8 else (0, 7.0)
    for (layer, head), value in np.ndenumerate(values):
        if np.isfinite(value):
            ink = "white" if luminance(colours[layer, head].tolist()) < 0.18 else "black"
            axes.text(head, layer, f"{value:.{decimals}f}", ha="center", va="center", color=ink, fontsize=size)


def luminance(colour: Sequence[float]) -> float:
    """The relative luminance of WCAG 2 of red, green and blue from 0 to 1."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
