"""A report as a picture: what is missing is no bar, limits are lines, and no label lies on a bar."""

from itertools import product

import pytest
from checkpoints import TINY

from mlx_qwen3.bench import Options
from mlx_qwen3.bench.pictures import FAR, draw
from mlx_qwen3.bench.report import Outputs, Report, Row, Run
from mlx_qwen3.files.config import Qwen3Config

LIMITS = {"copy_bytes_per_s": 1e9, "product_flops": 1e9, "product_rows": 512.0}
NAMES = ("mlx-qwen3", "transformers", "reference", "mlx-lm", "a contestant with a name that is much too long:fp32")
TITLES = ["First token", "Prefill", "Decode", "Peak memory"]


def run(length, speed, peak=5e8):
    seconds = [length / (100 * speed), length / (100 * speed) + 1 / speed]
    return Run(length, seconds, None, int(peak), None)


def contestant(name, lengths=(16, 512), speed=10.0, spread=1.1):
    row = Row(name, "bfloat16", "cpu", "none", {}, weight_bytes=10**7, cache_bytes=1000)
    row.runs = [run(length, speed * factor) for length in lengths for factor in (1, spread)]
    return row


def report(*rows, lengths=(16, 512), **limits):
    options = Options("models/$one$ 你", prompt_tokens=lengths, generate=2, repeat=2)
    machine = {"chip": "a chip", "backend": "MLX on the CPU"}
    return Report(options, Qwen3Config.from_hf(TINY), machine, LIMITS | limits, list(rows))


def panels(figure):
    return {axes.get_title(loc="left"): axes for axes in figure.axes}


def written(axes):
    """The words of a panel: its first are its unit."""
    return [text.get_text() for text in axes.texts]


def test_the_plot_is_a_picture(everything):
    assert everything.picture.startswith(b"\x89PNG")


def test_four_panels_with_units_and_directions():
    found = panels(draw(report(contestant("mlx-qwen3"))))
    assert list(found) == TITLES
    assert [written(axes)[0] for axes in found.values()] == [
        *("ms, lower is better", "tok/s, higher is better", "tok/s, higher is better", "MB, lower is better"),
    ]
    assert [axes.get_position().y0 for axes in found.values()] == [found["Decode"].get_position().y0] * 4


def test_names_and_prompts_stand_on_the_left():
    figure = draw(report(*map(contestant, NAMES)))
    labels = [label.get_text() for label in panels(figure)["First token"].get_yticklabels()]
    assert "mlx-qwen3, bfloat16" in labels
    assert "a contestant with a name\nthat is much too..." in labels
    assert labels[-2:] == ["prompt of 16 tokens", "prompt of 512 tokens"]


def test_bars_are_medians_and_the_longest_of_a_group_has_length_one():
    axes = panels(draw(report(contestant("one", speed=10), contestant("two", speed=20), product_flops=1e3)))["Prefill"]
    lengths = [bar.get_width() for bar in axes.patches]
    assert lengths == pytest.approx([1050 / 2200, 2100 / 2200] * 2)
    assert written(axes)[1:] == ["1,050", "2,100"] * 2


def test_what_is_missing_is_not_zero():
    differing = contestant("two")
    differing.outputs = [Outputs(512, 3, False, 0.5, 0.01)]
    figure = draw(report(contestant("one"), contestant("none", lengths=()), differing))
    for axes in panels(figure).values():
        assert len(axes.patches) == 3  # `one` twice, `two` once
        words = written(axes)
        assert words.count("not measured") == 2
        assert words.count("outputs differ") == 1
        assert "0" not in words
        assert "0.000" not in words


def test_limits_are_lines_at_their_place():
    axes = panels(draw(report(contestant("one", lengths=(16,)), lengths=(16,), copy_bytes_per_s=2e8)))["Decode"]
    limit = 2e8 / (1e7 + 1000 * 17)
    assert any(line.get_xdata() == pytest.approx([11 / max(limit, 11) * limit / 11] * 2) for line in axes.lines)
    assert limit > 11  # so it has length 1, and the bar is shorter
    assert axes.patches[0].get_width() == pytest.approx(10.5 / limit)


def test_a_limit_beyond_the_axis_is_an_arrow():
    near, far = (
        panels(draw(report(contestant("one", lengths=(16,)), lengths=(16,), copy_bytes_per_s=11 * share * 1.0017e7)))
        for share in (FAR * 0.99, FAR * 1.01)
    )
    assert [line.get_marker() for line in near["Decode"].lines if line.get_marker() == ">"] == []
    assert [line.get_marker() for line in far["Decode"].lines if line.get_marker() == ">"] == [">"]


def test_peak_memory_has_no_limit():
    axes = panels(draw(report(contestant("one", spread=1.0))))["Peak memory"]
    assert len(axes.lines) == 2  # the ground of each group


@pytest.mark.parametrize(("count", "lengths"), list(product((1, 5), ((16,), (16, 512)))))
@pytest.mark.parametrize("scale", [1, 3e4], ids=["usual", "fast"])
def test_no_label_lies_on_a_bar_or_outside_the_picture(count, lengths, scale):
    rows = [contestant(name, lengths, 10 * scale * (1 + index), 1.3) for index, name in enumerate(NAMES[:count])]
    for share in (0.5, 1.05, 2) if scale == 1 else (1.05,):  # of what the fastest reaches
        limit = share * 13 * scale * count * 1.01e7
        figure = draw(report(*rows, lengths=lengths, copy_bytes_per_s=limit))
        figure.draw_without_rendering()
        width, height = figure.bbox.width, figure.bbox.height
        everything = []
        for axes in panels(figure).values():
            labels = [text.get_window_extent() for text in (*axes.texts, *axes.get_yticklabels()) if text.get_visible()]
            bars = [bar.get_window_extent() for bar in axes.patches]
            marks = [line.get_window_extent() for line in axes.lines if line.get_marker() in ("None", ">")]
            assert len(bars) == count * len(lengths)
            for label in labels:
                assert 0 <= label.x0 <= label.x1 <= width
                assert 0 <= label.y0 <= label.y1 <= height
                assert not any(label.overlaps(bar) for bar in bars)
                assert not any(label.overlaps(mark) for mark in marks if mark.x0 > axes.bbox.x0 + 1)
            everything += labels if axes is figure.axes[0] else [t.get_window_extent() for t in axes.texts]
        assert not any(a.overlaps(b) for index, a in enumerate(everything) for b in everything[:index])
