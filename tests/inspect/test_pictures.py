"""The pictures mark the faults of the report, on any colour, and agree with its numbers."""

import numpy as np
import pytest
from checkpoints import random_weights, write_checkpoint
from inspecting import FOUR

from mlx_qwen3.drawing import FAULT
from mlx_qwen3.inspect import Options, inspect
from mlx_qwen3.inspect.attention_pictures import MOST_TOKENS, luminance
from mlx_qwen3.inspect.pictures import HEAT_MAPS, MARKS, alone, draw, panels


def by_title(figure):
    return {axes.get_title(loc="left"): axes for axes in figure.axes if axes.get_title(loc="left")}


def marked(axes):
    """The (layer, step) of each box and of each dot."""
    labels = [label.get_text() for label in axes.get_xticklabels()]
    white, red = ([tuple(box[:-1].mean(axis=0)) for box in boxes.get_segments()] for boxes in axes.collections)
    assert white == red
    boxes, dots = ({(round(y), labels[round(x)]) for x, y in places} for places in (red, axes.lines[0].get_xydata()))
    return boxes, dots


@pytest.fixture(scope="module")
def hot(tmp_path_factory):
    """v exploded in layer 2, and is unusual in layer 1."""
    weights = random_weights(FOUR)
    weights["model.layers.2.self_attn.v_proj.weight"] *= 30
    weights["model.layers.1.self_attn.v_proj.weight"] *= 8
    return inspect(write_checkpoint(tmp_path_factory.mktemp("hot"), FOUR, weights), Options())


def test_the_picture_marks_what_is_out_of_range(hot):
    """In the heat map of std, a red box where v of layer 2 exploded and nowhere else, and a dot on what is unusual."""
    figure = draw(hot)
    axes = by_title(figure)
    assert marked(axes["Standard deviation"]) == ({(2, "v_heads")}, {(1, "v_heads")})
    assert list(axes) == [
        *("Standard deviation", "Largest magnitude", "Magnitude of the mean", "Attention map, layer 0, head 0"),
        *("Weight on the first token", "Residual stream over depth"),
    ]
    assert "first fault in layer 2, v_heads" in figure.get_suptitle()
    for title in list(axes)[3:]:
        assert axes[title].get_xlabel()
        assert axes[title].get_ylabel()


def test_one_legend_names_the_marks(hot):
    figure = draw(hot)
    assert [[text.get_text() for text in legend.texts] for legend in figure.legends] == [list(MARKS.values())]


def contrast(a, b):
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def test_marks_can_be_seen_on_every_colour(hot):
    """One of the two colours of each mark has the contrast of 3 that WCAG wants of what is no text."""
    from matplotlib import colormaps
    from matplotlib.colors import to_rgb

    axes = by_title(draw(hot))["Standard deviation"]
    assert axes.images[0].cmap.name == "viridis"
    box = {to_rgb(boxes.get_color()[0]) for boxes in axes.collections}
    dot = {to_rgb(f(axes.lines[0])) for f in (lambda x: x.get_markerfacecolor(), lambda x: x.get_markeredgecolor())}
    assert box == {to_rgb("white"), to_rgb(FAULT)}
    for colours in (box, dot):
        for ground in colormaps["viridis"](np.linspace(0, 1, 256))[:, :3]:
            assert max(contrast(colour, ground) for colour in colours) >= 3


def test_the_picture_marks_nan_in_every_heat_map(sick):
    axes = by_title(draw(inspect(sick, Options())))
    for title in HEAT_MAPS.values():
        boxes, _ = marked(axes[title])
        assert {(2, "gate_up"), (2, "down"), (3, "input")} <= boxes
        assert min(layer for layer, _ in boxes) == 2


def test_a_colour_is_the_same_size_in_every_heat_map(hot):
    axes = by_title(draw(hot))
    assert len({axes[title].images[0].get_clim() for title in HEAT_MAPS.values()}) == 1


def test_the_residual_stream_begins_with_the_embedding(four_layers):
    report = inspect(four_layers, Options(layer=2, head=5))
    axes = by_title(draw(report))
    depth = axes["Residual stream over depth"]
    wanted = [report.numbers.overall[(0, "input")].rms]
    wanted += [report.numbers.overall[(layer, "output")].rms for layer in range(4)]
    np.testing.assert_allclose(depth.lines[0].get_ydata(), wanted)
    assert [label.get_text() for label in depth.get_xticklabels()] == ["emb", "0", "1", "2", "3"]
    assert depth.get_xticks()[0] == depth.lines[0].get_xdata()[0]
    image = axes["Attention map, layer 2, head 5"].images[0]
    np.testing.assert_allclose(np.square(image.get_array().filled(0)), report.numbers.attention_map, atol=1e-12)


def test_labels_of_a_logarithm_are_plain_numbers(hot):
    figure = draw(hot)
    figure.draw_without_rendering()
    axis = by_title(figure)["Residual stream over depth"].yaxis
    low, high = axis.get_view_interval()
    texts = [label.get_text() for label in axis.get_ticklabels(which="both") if label.get_text()]
    assert sum(low <= float(text) <= high for text in texts) >= 2


def test_a_panel_alone_is_the_panel_without_its_title(hot):
    for panel in panels(hot):
        figure = alone(panel)
        assert figure.get_figheight() == panel.height
        assert not any(axes.get_title(loc="left") for axes in figure.axes)


def ink(text):
    """Where a label has ink: its box has room above and below for letters that it may not have."""
    box = text.get_window_extent()
    return box.expanded(0.8, 1) if text.get_rotation() == 90 else box.expanded(1, 0.8)


@pytest.mark.parametrize("prompt", ["What is 17 + 25?", "What is 17 + 25 + 12 + 1800?"])
def test_nothing_is_cut_off_or_in_the_way_in_a_panel(prompt):
    """The labels of an axis lie inside the figure, and no two of them overlap."""
    report = inspect("demo", Options(prompt=prompt))
    assert len(report.texts) in (18, MOST_TOKENS)
    for panel in panels(report):
        figure = alone(panel)
        figure.draw_without_rendering()
        for axis in (figure.axes[0].xaxis, figure.axes[0].yaxis):
            low, high = sorted(axis.get_view_interval())
            labels = [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
            boxes = [ink(label) for label in labels if label.get_text()]
            assert all(box.x0 >= 0 and box.y0 >= 0 for box in boxes), panel.title
            slanted = labels[0].get_rotation() not in (0, 90)  # boxes of these overlap, the labels do not
            assert slanted or not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i]), panel.title
