"""The heat map of the experts has the loads of the report."""

import numpy as np
import pytest
from checkpoints import TINY_MOE, random_weights, write_checkpoint

from mlx_qwen3.inspect import Options, inspect
from mlx_qwen3.inspect.pictures import draw


@pytest.fixture(scope="module")
def pictured(tmp_path_factory):
    """A report in which layer 2 never chooses expert 5, and its axes by their titles."""
    weights = random_weights(TINY_MOE)
    weights["model.embed_tokens.weight"][:, 0] = 3
    weights["model.layers.0.mlp.gate.weight"][:, 0] = 0
    weights["model.layers.2.mlp.gate.weight"][:, 0] = [0, 0, 0, 0, 0, -9, 0]
    report = inspect(write_checkpoint(tmp_path_factory.mktemp("pictured"), TINY_MOE, weights), Options(length=50))
    return report, {axes.get_title(loc="left"): axes for axes in draw(report).axes}


def test_layers_by_experts(pictured):
    report, axes = pictured
    heat_map = axes["Router load"]
    values = np.array(heat_map.images[0].get_array().filled(np.nan))
    for layer in (0, 2):
        np.testing.assert_allclose(values[layer], report.numbers.routers[layer].load / (50 * 3 / 7))
    assert np.isnan(values[1]).all()  # a dense MLP
    crosses = [(x, y) for line in heat_map.lines for x, y in zip(*line.get_data(), strict=True)]
    assert crosses == [(5, 2)]


def test_the_histogram_counts_every_expert_once(pictured):
    _, axes = pictured
    assert sum(bar.get_height() for bar in axes["Load of all experts of all layers"].patches) == 2 * 7


def test_steps_of_experts_are_in_the_heat_maps_of_layers(pictured):
    _, axes = pictured
    heat_map = axes["Standard deviation"]
    labels = [label.get_text() for label in heat_map.get_xticklabels()]
    values = np.array(heat_map.images[0].get_array().filled(np.nan))
    assert np.isnan(values[:, labels.index("expert_down")]).tolist() == [False, True, False]
    assert np.isnan(values[:, labels.index("gate_up")]).tolist() == [True, False, True]


def test_a_dense_model_has_neither(tiny):
    titles = [axes.get_title(loc="left") for axes in draw(inspect(tiny, Options())).axes]
    assert not any("expert" in title for title in titles)
