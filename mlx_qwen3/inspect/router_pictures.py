"""The load of the experts as a heat map of layer by expert, and as a histogram."""

from typing import Any

import numpy as np

from ..drawing import ABSENT, FIRST, INK, whole_ticks
from .report import Report

MOST = 4.0  # times the even share; larger loads have the same colour


def router_load(report: Report, axes: Any) -> None:
    """A row for each layer, a column for each expert; a cross marks an expert without a token."""
    routers, layers = report.numbers.routers, report.config.num_hidden_layers
    count = next(iter(routers.values())).experts
    values = np.full((layers, count), np.nan)
    for layer, router in routers.items():
        values[layer] = router.load / router.even
        unused = [layer] * len(router.unused)
        axes.plot(router.unused, unused, "x", color="white", markersize=3.5, linestyle="none", label="no token")
    axes.set_facecolor(ABSENT)
    image = axes.imshow(values, aspect="auto", cmap="viridis", vmin=0, vmax=MOST, interpolation="none")
    axes.set_xlabel("expert (white x: no token; grey: a layer without experts)")
    axes.set_ylabel("layer")
    whole_ticks(axes.yaxis, layers, 30)
    whole_ticks(axes.xaxis, count, 16)
    axes.figure.colorbar(image, ax=axes, pad=0.01, extend="max", label="tokens, in even shares", aspect=30)


def router_histogram(report: Report, axes: Any) -> None:
    """How many experts of all layers have which load."""
    routers = report.numbers.routers.values()
    loads = np.concatenate([router.load / router.even for router in routers])
    axes.hist(np.minimum(loads, MOST), bins=np.linspace(0, MOST, 33), color=FIRST)
    axes.axvline(1, color=INK, linestyle="--", linewidth=1)
    axes.set_xlabel(f"tokens, in even shares (last bar: {MOST:g} or more)")
    axes.set_ylabel("experts")
