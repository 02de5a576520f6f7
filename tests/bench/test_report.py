"""Figures that follow from what was measured."""

from dataclasses import replace

from mlx_qwen3.bench.report import PER_PROCESS, ratio


def test_ratios_are_of_neighbours(report):
    """Both drift by a factor of 3 between the repeats; their ratio does not."""
    rows = [replace(row, load_s=[seconds, 3 * seconds]) for row, seconds in zip(report.rows, (1, 2), strict=True)]
    drifting = replace(report, rows=rows)
    load = next(metric for metric in PER_PROCESS if metric.name == "load_s")
    found = ratio(drifting, rows[1], load, None)
    assert (found.median, found.low, found.high) == (0.5, 0.5, 0.5)
