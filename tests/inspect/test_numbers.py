"""The numbers of a pass are those of the oracle, at true shapes, with bounded memory."""

import math

import mlx.core as mx
import numpy as np
import oracle
import pytest
from checkpoints import TINY, random_weights, write_checkpoint

from mlx_qwen3.compare.flow import EVENTS, FLOW, SPARSE
from mlx_qwen3.inspect.numbers import measure
from mlx_qwen3.model.load import load_model


def test_shapes_are_those_of_the_pass(tiny, ids):
    shapes = measure(load_model(tiny), mx.array(ids), layer=1).shapes
    sparse = {step.name for event in SPARSE for step in EVENTS[event]}
    names = [step.name for step in FLOW if step.name not in sparse]
    found = {name: shapes.get((1, name), shapes.get((None, name))) for name in names}
    assert found == {
        "input": (2, 37, 48),
        "input_norm": (2, 37, 48),
        "qkv": (2, 37, 200),
        "q_split": (2, 37, 120),
        "k_split": (2, 37, 40),
        "v_split": (2, 37, 40),
        "q_heads": (2, 37, 6, 20),
        "k_heads": (2, 37, 2, 20),
        "v_heads": (2, 37, 2, 20),
        "q_norm": (2, 37, 6, 20),
        "k_norm": (2, 37, 2, 20),
        "q_heads_transposed": (2, 6, 37, 20),
        "k_heads_transposed": (2, 2, 37, 20),
        "v_heads_transposed": (2, 2, 37, 20),
        "q_rope": (2, 6, 37, 20),
        "k_rope": (2, 2, 37, 20),
        "k_cache": (2, 2, 37, 20),
        "v_cache": (2, 2, 37, 20),
        "k_grouped": (2, 6, 37, 20),
        "v_grouped": (2, 6, 37, 20),
        "scores": (2, 6, 37, 37),
        "softmax": (2, 6, 37, 37),
        "attention": (2, 6, 37, 20),
        "merged_heads": (2, 37, 120),
        "o_proj": (2, 37, 48),
        "residual": (2, 37, 48),
        "post_norm": (2, 37, 48),
        "gate_up": (2, 37, 160),
        "activation": (2, 37, 80),
        "down": (2, 37, 48),
        "output": (2, 37, 48),
        "final_norm": (2, 37, 48),
        "logits": (2, 37, 151),
    }
    check_axes(found)


def test_shapes_of_experts(tiny_moe, ids):
    shapes = measure(load_model(tiny_moe), mx.array(ids), layer=2).shapes
    found = {step.name: shapes[2, step.name] for event in SPARSE for step in EVENTS[event]}
    assert found == {
        "router_logits": (2, 37, 7),
        "chosen_experts": (2, 37, 3),
        "expert_weights": (2, 37, 3),
        "expert_gate_up": (2, 37, 3, 56),
        "expert_activation": (2, 37, 3, 28),
        "expert_down": (2, 37, 3, 48),
    }
    assert not {(2, "gate_up"), (1, "router_logits")} & shapes.keys()
    check_axes(found)


def check_axes(found):
    for step in FLOW:
        if step.name in found:
            assert len(step.axes.split()) == len(found[step.name]), step.name


def test_shapes_of_qwen3_0_6b(tmp_path):
    """One layer of it, with a small vocabulary and MLP: the attention has its true shape."""
    heads = {"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128}
    folder = write_checkpoint(tmp_path, num_hidden_layers=1, hidden_size=1024, intermediate_size=64, **heads)
    shapes = measure(load_model(folder), mx.array(np.zeros((2, 128), np.int64))).shapes
    assert shapes[(0, "qkv")] == (2, 128, 4096)
    assert [shapes[(0, f"{x}_split")] for x in "qkv"] == [(2, 128, 2048), (2, 128, 1024), (2, 128, 1024)]
    for step in ("heads_transposed", "rope"):
        assert [shapes[(0, f"{x}_{step}")] for x in "qk"] == [(2, 16, 128, 128), (2, 8, 128, 128)]
    assert shapes[(0, "k_cache")] == (2, 8, 128, 128)
    assert shapes[(0, "scores")] == (2, 16, 128, 128)
    assert shapes[(0, "merged_heads")] == (2, 128, 2048)


def by_hand(weights, ids):
    """q, k after RoPE, scores and weights of layer 0 in float64, from the oracle's pieces."""
    w = {name.removeprefix("model."): value.astype(np.float64) for name, value in weights.items()}
    layer = {name.removeprefix("layers.0."): value for name, value in w.items() if name.startswith("layers.0.")}
    cos, sin = oracle.rotation(TINY, np.arange(ids.shape[1]))
    x = oracle.rms_norm(w["embed_tokens.weight"][ids], layer["input_layernorm.weight"], TINY)
    heads = {}
    for name, count in (("q", 6), ("k", 2)):
        flat = (x @ layer[f"self_attn.{name}_proj.weight"].T).reshape(*ids.shape, count, 20)
        normed = oracle.rms_norm(flat, layer[f"self_attn.{name}_norm.weight"], TINY)
        turned = oracle.rotate(normed, cos, sin)
        heads[f"{name}_heads"], heads[f"{name}_norm"], heads[f"{name}_rope"] = flat, normed, turned
    k = np.repeat(heads["k_rope"], 3, axis=2)
    scores = np.einsum("blhd,bshd->bhls", heads["q_rope"], k) / math.sqrt(20)
    visible = np.tril(np.ones((ids.shape[1], ids.shape[1]), bool))
    p = np.exp(np.where(visible, scores, -np.inf))
    return heads, scores, visible, p / p.sum(-1, keepdims=True)


@pytest.mark.parametrize("chunk", [2048, 10, 1])
def test_numbers_are_those_of_the_oracle(tiny, ids, chunk):
    """Also where the prompt goes through in several passes, whose statistics are joined."""
    numbers = measure(load_model(tiny, "fp32"), mx.array(ids), chunk=chunk)
    heads, scores, visible, weights = by_hand(random_weights(TINY), ids)
    expected = {name: (values, 2) for name, values in heads.items()}
    inside = np.where(weights > 0, weights, 1)
    expected["entropy"] = (-(weights * np.log(inside)).sum(-1), 1)
    expected["first_token"] = (weights[..., 0], 1)
    for name, (values, axis) in expected.items():
        check(numbers.overall[(0, name)], values, name)
        for head, statistics in enumerate(numbers.heads[(0, name)]):
            check(statistics, np.take(values, head, axis), f"{name} of head {head}")
    check(numbers.overall[(0, "scores")], scores[np.broadcast_to(visible, scores.shape)], "scores")
    for head, statistics in enumerate(numbers.heads[(0, "scores")]):
        check(statistics, scores[:, head][:, visible], f"scores of head {head}")
    check(numbers.overall[(None, "logits")], oracle.logits(TINY, random_weights(TINY), ids), "logits")
    for layer, state in enumerate(oracle.hidden_states(TINY, random_weights(TINY), ids)[1:]):
        check(numbers.overall[(layer, "output")], state, f"output of layer {layer}")
    np.testing.assert_allclose(numbers.attention_map, weights[0, 0], atol=1e-5)
    assert numbers.shapes[(0, "qkv")] == (2, 37, 200)
    assert numbers.shapes[(0, "k_cache")] == (2, 2, 37, 20)


def check(statistics, values, name):
    found = (statistics.mean, statistics.std, statistics.rms, statistics.min, statistics.max)
    wanted = (values.mean(), values.std(), math.sqrt((values**2).mean()), values.min(), values.max())
    assert found == pytest.approx(wanted, abs=2e-5), name
    assert (statistics.count, statistics.nan, statistics.inf) == (values.size, 0, 0), name


def test_the_attention_map_of_a_long_text_shares_cells(tiny):
    ids = np.random.default_rng(2).integers(0, 151, (1, 500))
    numbers = measure(load_model(tiny), mx.array(ids), layer=1, head=4, chunk=64)
    assert numbers.attention_map.shape == (167, 167)  # 3 tokens a cell
    np.testing.assert_allclose(numbers.attention_map.sum(axis=1), 1, atol=1e-4)  # each query's weights sum to 1
    assert not np.triu(numbers.attention_map, 1).any()


def test_memory_is_bounded_at_8192_tokens(tmp_path):
    """The scores of all queries would be 2 * 8192 * 8192 * 4 bytes = 537 MB, and as much again for the weights."""
    shape = {"hidden_size": 16, "intermediate_size": 16, "head_dim": 8}
    folder = write_checkpoint(tmp_path, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, **shape)
    model = load_model(folder)
    ids = mx.array(np.random.default_rng(2).integers(0, 151, (1, 8192)))
    mx.clear_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    numbers = measure(model, ids)
    used = mx.get_peak_memory() - before
    assert numbers.overall[(0, "scores")].count == 2 * 8192 * 8193 // 2
    assert numbers.shapes[(0, "scores")] == (1, 2, 8192, 8192)
    assert used < 150e6  # measured 87 MB: 17 of scores of 256 queries, a few copies of them, the cache
