"""What the tables say: the heads, all layers."""

import pytest

from mlx_qwen3.inspect import Options, as_json, inspect, render
from mlx_qwen3.inspect.tables import overview, sharing


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
