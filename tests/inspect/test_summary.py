"""The forecast of float16, and how its numbers are written."""

import math

import mlx.core as mx
import numpy as np
import pytest
from checkpoints import TINY, TINY_MOE, random_weights, write_checkpoint

from mlx_qwen3.inspect import Options, inspect
from mlx_qwen3.inspect.summary import forecast, number
from mlx_qwen3.model.load import load_model


@pytest.mark.parametrize(
    ("factor", "words"),
    [
        (1.0, "fp16: fits;"),
        (1.5e4, "fits barely"),
        (1e6, "would overflow past 65504"),
        (math.nan, "not finite already"),
    ],
)
def test_a_forecast_of_float16_overflow(factor, words, tmp_path):
    weights = random_weights(TINY)
    weights["model.layers.1.mlp.down_proj.weight"] *= np.float32(factor)
    report = inspect(write_checkpoint(tmp_path, weights=weights), Options())
    assert words in forecast(report)
    if factor != 1:
        assert "layer 1, " in forecast(report)


def test_the_forecast_is_what_float16_does(tmp_path):
    """Twice the same stream, just below and just above what float16 holds."""
    ids = mx.array(np.random.default_rng(0).integers(0, TINY["vocab_size"], (1, 16)))
    for factor, overflows in ((8e3, False), (6e4, True)):
        weights = random_weights(TINY)
        weights["model.layers.1.mlp.down_proj.weight"] *= np.float32(factor)
        folder = write_checkpoint(tmp_path / str(factor), weights=weights)
        assert ("overflow past" in forecast(inspect(folder, Options()))) == overflows
        assert mx.isfinite(load_model(folder, "fp16")(ids)).all().item() == (not overflows)


def test_the_forecast_sees_every_expert(tmp_path):
    """One expert whose output float16 cannot hold: forecast, and what float16 does."""
    weights = random_weights(TINY_MOE)
    weights["model.layers.2.mlp.experts.4.down_proj.weight"] *= np.float32(6e4)
    folder = write_checkpoint(tmp_path, TINY_MOE, weights)
    report = inspect(folder, Options(length=40))
    assert "would overflow past 65504 at" in forecast(report)
    assert any((peak.layer, peak.step) == (2, "expert_down") for peak in report.peaks if peak.value > 65504)
    ids = mx.array(np.random.default_rng(0).integers(0, TINY["vocab_size"], (1, 40)))
    assert not mx.isfinite(load_model(folder, "fp16")(ids)).all().item()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (0.0, "0"),
        (-0.0, "0"),
        (math.inf, "inf"),
        (0.5, "0.5"),
        (-0.001234, "-0.00123"),
        (1234.5, "1234"),
        (99999, "99999"),
        (1e5, "1.00e+05"),
        (9.99e-4, "9.99e-04"),
    ],
)
def test_numbers_have_three_digits(value, text):
    assert number(value) == text
