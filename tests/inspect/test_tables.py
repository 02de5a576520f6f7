"""What the tables say: the forecast of float16, the heads, all layers."""

import math

import mlx.core as mx
import numpy as np
import pytest
from checkpoints import TINY, TINY_MOE, random_weights, write_checkpoint

from mlx_qwen3.inspect import Options, as_json, inspect, render
from mlx_qwen3.inspect.tables import forecast, number, overview, sharing
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


def test_the_table_of_layers_has_the_activations_of_experts(tiny_moe):
    report = inspect(tiny_moe, Options())
    table = overview(report)
    for layer, step in enumerate(("expert_activation", "activation", "expert_activation")):
        found = dict(zip(table.columns, table.rows[layer], strict=True))["|act| max"]
        assert float(found) == pytest.approx(report.numbers.overall[layer, step].abs_max, rel=0.01)


def test_full_and_heads_show_all(four_layers):
    short, full = (render(inspect(four_layers, Options(heads=True)), full) for full in (False, True))
    for layer in range(4):
        assert f"Numbers of layer {layer} per head" in full
        assert f"model.layers.{layer}.self_attn.q_proj.weight" in full
    assert "Numbers of layer 1" not in short
    per_head = short.split("Numbers of layer 0 per head", 1)[1].split("\n\n")[0]
    counts = {name: sum(line.split()[0] == name for line in per_head.splitlines()[2:]) for name in ("q_norm", "k_rope")}
    assert counts == {"q_norm": 6, "k_rope": 2}
    assert sum("first_token" in line for line in per_head.splitlines()) == 6


def test_a_quantized_cache_is_shown_layer_by_layer():
    report = inspect("demo", Options("What is 17 + 25?", kv_bits=4, decode=3))
    cost = report.cache_cost
    assert cost.tokens == 18 + 3  # of prompt and reply
    text = render(report)
    table = text[text.index("Cache at 4 bits") :].splitlines()
    assert table[1].split() == ["layer", "keys", "values", "residual"]
    for layer, own in enumerate(cost.layers):
        assert table[2 + layer].split() == [str(layer), *(f"{x:.1e}" for x in (own.keys, own.values, own.residual))]
    assert f"KL {cost.kl_mean:.2g} nats" in text
    assert "a token takes 1,440 bytes, unquantized 7,680" in text
    assert as_json(report)["kv_cache"]["layers"][0]["keys"] == cost.layers[0].keys


def test_sharing_in_words():
    assert sharing(16, 8) == "query heads 0-1 read kv head 0, 2-3 read kv head 1, ..., 14-15 read kv head 7"
    assert sharing(6, 2) == "query heads 0-2 read kv head 0, 3-5 read kv head 1"
    assert "of its own" in sharing(4, 4)


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
