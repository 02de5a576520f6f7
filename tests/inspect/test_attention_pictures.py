"""The attention map and the weight on the first token: tokens on the axes, keys that are not seen, numbers to read."""

import numpy as np
import pytest
from checkpoints import write_checkpoint

from mlx_qwen3.drawing import figure_class, look
from mlx_qwen3.inspect import Options, inspect
from mlx_qwen3.inspect.attention_pictures import MOST_TOKENS, attention_map, first_token, label, luminance


@look()
def drawn(draw, report):
    axes = figure_class()(figsize=(4, 4)).add_subplot()
    draw(report, axes)
    return axes


def labels(axis):
    return [tick.get_text() for tick in axis.get_ticklabels()]


def test_the_axes_have_the_tokens():
    axes = drawn(attention_map, inspect("demo", Options(prompt="What is 17 + 25?")))
    tokens = "<|im_start|> user ↵ What ␣is ␣ 1 7 ␣+ ␣ 2 5 ? <|im_end|> ↵ <|im_start|> assistant ↵".split(" ")
    assert labels(axes.xaxis) == labels(axes.yaxis) == tokens


def test_more_tokens_than_fit_have_numbers(four_layers):
    fitting, longer = (inspect(four_layers, Options(length=length)) for length in (MOST_TOKENS, MOST_TOKENS + 1))
    assert len(labels(drawn(attention_map, fitting).xaxis)) == len(fitting.texts) == MOST_TOKENS
    axes = drawn(attention_map, longer)
    axes.figure.draw_without_rendering()
    assert set(labels(axes.xaxis)) <= {str(number) for number in range(-50, 100)} | {f"−{n}" for n in range(50)}


def test_without_a_tokenizer_there_is_no_text(tmp_path):
    report = inspect(write_checkpoint(tmp_path), Options(length=3))
    assert report.texts == ()
    assert drawn(attention_map, report).images


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (" is\n", "␣is↵"),
        ("<|im_start|>", "<|im_start|>"),
        ("incomprehensible", "incompr…nsible"),
        ("\x1b[0m", "\\x1b[0m"),
    ],
)
def test_the_label_of_a_token(text, shown):
    assert label(text) == shown


@pytest.mark.parametrize("length", [5, 400])
def test_keys_that_a_query_cannot_see_have_no_colour(length, four_layers):
    """Of cells with one token and of cells with three."""
    report = inspect(four_layers, Options(length=length))
    hidden = np.ma.getmaskarray(drawn(attention_map, report).images[0].get_array())
    np.testing.assert_array_equal(hidden, np.triu(np.ones_like(hidden), 1))
    assert (report.numbers.attention_map[hidden] == 0).all()


def test_a_weight_that_is_nan_is_grey(sick):
    """Layer 3 has NaN in every weight that can be seen."""
    report = inspect(sick, Options(length=5, layer=3))
    grey, image = drawn(attention_map, report).images
    np.testing.assert_array_equal(np.ma.getmaskarray(grey.get_array()), np.triu(np.ones((5, 5)), 1))
    assert np.ma.getmaskarray(image.get_array()).all()


def test_a_decode_step_sees_all_keys(four_layers):
    report = inspect(four_layers, Options(length=6, decode=3))
    axes = drawn(attention_map, report)
    assert not np.ma.getmaskarray(axes.images[0].get_array()).any()
    assert (axes.get_xlim(), axes.get_ylim()) == ((-0.5, 8.5), (8.5, 7.5))  # the query is the ninth token
    assert (len(labels(axes.xaxis)), len(labels(axes.yaxis))) == (9, 1)


def test_the_weight_on_the_first_token_is_scaled_to_its_values(four_layers):
    report = inspect(four_layers, Options())
    axes = drawn(first_token, report)
    wanted = [[100 * s.mean for s in report.numbers.heads[(layer, "first_token")]] for layer in range(4)]
    np.testing.assert_allclose(axes.images[0].get_array(), wanted)
    assert axes.images[0].get_clim() == (0, np.max(wanted))
    cells = {tuple(map(int, text.get_position()[::-1])): text for text in axes.texts}
    assert {place: text.get_text() for place, text in cells.items()} == {
        place: f"{value:.1f}" for place, value in np.ndenumerate(wanted)
    }
    image = axes.images[0]
    for place, text in cells.items():  # WCAG AA: a contrast of 4.5
        ground = luminance(image.cmap(image.norm(wanted[place[0]][place[1]]))[:3])
        ink = {"white": 1.0, "black": 0.0}[text.get_color()]
        assert (max(ground, ink) + 0.05) / (min(ground, ink) + 0.05) >= 4.5


def test_a_number_that_is_none_is_not_written(sick):
    axes = drawn(first_token, inspect(sick, Options()))
    assert {int(text.get_position()[1]) for text in axes.texts} == {0, 1, 2}  # layer 3 has NaN


def test_luminance_is_that_of_wcag():
    assert luminance((1, 1, 1)) == pytest.approx(1)
    assert luminance((0, 0, 0)) == 0
    assert luminance((1, 0, 0)) == pytest.approx(0.2126)
    assert luminance((0.5, 0.5, 0.5)) == pytest.approx(0.2140, abs=1e-4)
