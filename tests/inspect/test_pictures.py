"""The picture marks the faults of the report."""

import numpy as np
from checkpoints import random_weights, write_checkpoint
from inspecting import FOUR

from mlx_qwen3.inspect import Options, inspect
from mlx_qwen3.inspect.pictures import draw


def test_the_picture_marks_what_is_out_of_range(tmp_path):
    """In the heat map of std, a red box where v of layer 2 exploded and nowhere else, and dots on what is unusual."""
    weights = random_weights(FOUR)
    weights["model.layers.2.self_attn.v_proj.weight"] *= 30
    weights["model.layers.1.self_attn.v_proj.weight"] *= 8
    figure = draw(inspect(write_checkpoint(tmp_path, FOUR, weights), Options()))
    heat_map, others = figure.axes[0], figure.axes
    labels = [label.get_text() for label in heat_map.get_xticklabels()]
    boxes = [(round(box.get_y() + 0.5), labels[round(box.get_x() + 0.5)]) for box in heat_map.patches]
    dots = [(line.get_ydata()[0], labels[line.get_xdata()[0]]) for line in heat_map.lines]
    assert boxes == [(2, "v_heads")]
    assert dots == [(1, "v_heads")]
    titles = " ".join(axes.get_title() for axes in others)
    for words in ("standard deviation", "largest magnitude", "|mean|", "attention map, layer 0, head 0", "over depth"):
        assert words in titles
    assert all(axes.get_xlabel() and axes.get_ylabel() for axes in others if axes.get_title().startswith("attention"))
    assert "first fault in layer 2, v_heads" in figure.get_suptitle()


def test_the_picture_marks_nan_in_every_heat_map(sick):
    heat_maps = [axes for axes in draw(inspect(sick, Options())).axes if "red box" in axes.get_title()]
    assert len(heat_maps) == 3
    for axes in heat_maps:
        labels = [label.get_text() for label in axes.get_xticklabels()]
        boxes = {(round(box.get_y() + 0.5), labels[round(box.get_x() + 0.5)]) for box in axes.patches}
        assert {(2, "gate_up"), (2, "down"), (3, "input")} <= boxes
        assert min(layer for layer, _ in boxes) == 2


def test_the_residual_norm_and_the_map_are_the_reports(four_layers):
    report = inspect(four_layers, Options(layer=2, head=5))
    figure = draw(report)
    by_title = {axes.get_title(): axes for axes in figure.axes}
    line = by_title["residual stream over depth"].lines[0]
    wanted = [report.numbers.overall[(0, "input")].rms]
    wanted += [report.numbers.overall[(layer, "output")].rms for layer in range(4)]
    np.testing.assert_allclose(line.get_ydata(), wanted)
    image = by_title["attention map, layer 2, head 5: who looks at whom"].images[0]
    np.testing.assert_allclose(np.square(image.get_array()), report.numbers.attention_map, atol=1e-12)


def test_the_map_of_a_decode_step_is_one_row(four_layers):
    report = inspect(four_layers, Options(length=6, decode=3))
    assert report.numbers.attention_map.shape == (1, 9)
    np.testing.assert_allclose(report.numbers.attention_map.sum(), 1, atol=1e-5)
    axes = next(axes for axes in draw(report).axes if axes.get_title().startswith("attention map"))
    assert axes.get_xlim() == (-0.5, 8.5)
    assert axes.get_ylim() == (8.5, 7.5)  # the query is the ninth token
