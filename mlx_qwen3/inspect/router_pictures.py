"""The load of the experts as a heat map of layer by expert, and as a histogram."""

from typing import Any

import numpy as np

from .report import Report

MOST = 4.0  # times the even share; larger loads have the same colour


def router_load(figure: Any, axes: Any, report: Report) -> None:
    """A row for each layer, a column for each expert; a cross marks an expert without a token."""
    routers, layers = report.numbers.routers, report.config.num_hidden_layers
    count = next(iter(routers.values())).experts
    values = np.full((layers, count), np.nan)
    for layer, router in routers.items():
        values[layer] = router.load / router.even
        axes.plot(router.unused, [layer] * len(router.unused), "x", color="#e00000", markersize=4, linestyle="none")
    axes.set_facecolor("#bbbbbb")
    image = axes.imshow(values, aspect="auto", cmap="viridis", vmin=0, vmax=MOST, interpolation="nearest")
    axes.set_title("router load: tokens of each expert, in even shares\nred x: no token   grey: no experts")
    axes.set_xlabel("expert")
    axes.set_ylabel("layer")
    whole_ticks(axes.yaxis, layers, 40)
    whole_ticks(axes.xaxis, count, 32)
    figure.colorbar(image, ax=axes, pad=0.01, extend="max", label="even shares")


def router_histogram(axes: Any, report: Report) -> None:
    """How many experts of all layers have which load."""
    routers = report.numbers.routers.values()
    loads = np.concatenate([router.load / router.even for router in routers])
    axes.hist(np.minimum(loads, MOST), bins=np.linspace(0, MOST, 33), color="#31688e")
    axes.axvline(1, color="black", linestyle="--", linewidth=1)
    axes.set_title("load of all experts of all layers")
    axes.set_xlabel(f"even shares (last bar: {MOST:g} or more)")
    axes.set_ylabel("experts")


def whole_ticks(axis: Any, count: int, most: int) -> None:
    """Whole numbers from 0, at most about `most` of them."""
    axis.set_ticks(range(0, count, -(-count // most)))
