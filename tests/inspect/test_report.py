"""From a source to a report: a healthy model has no fault, and in a sick one the first fault is named."""

import math
from dataclasses import replace

import numpy as np
import pytest
from checkpoints import TINY, TINY_MOE, random_weights, write_checkpoint

from mlx_qwen3.engine import runner
from mlx_qwen3.inspect import Options, inspect
from mlx_qwen3.inspect.rules import NORMAL
from mlx_qwen3.model.view import ReplayView


def healthy(config, q=1.0, k=1.0, embedding=1.0):
    """What training does to real layers: norm weights that scale q and k, a stream that grows with depth."""
    weights = random_weights(config)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        weights[f"{prefix}self_attn.q_norm.weight"] *= np.float32(q)
        weights[f"{prefix}self_attn.k_norm.weight"] *= np.float32(k)
        weights[f"{prefix}mlp.down_proj.weight"] *= np.float32(3.0**layer)
    weights["model.embed_tokens.weight"] *= np.float32(embedding)
    return weights


@pytest.mark.parametrize(("q", "k"), [(1, 1), (12, 2), (2, 30), (0.1, 8)])
def test_a_healthy_checkpoint_is_not_reported_sick(q, k, tmp_path):
    """Queries of std 12 and keys of std 30 after QK-norm are what the norm weights ask for; the embedding is small."""
    config = {**TINY, "num_hidden_layers": 6}
    write_checkpoint(tmp_path, config, healthy(config, q, k, 0.02))
    report = inspect(tmp_path, Options(heads=True))
    assert report.faults == []
    assert report.complaint is None
    levels = {key[1]: verdict.level for key, verdict in report.verdicts.items() if key[0] == 3}
    assert levels["q_norm"] == levels["k_norm"] == NORMAL
    assert any("QK-norm" in note for note in report.rules.notes)


@pytest.mark.parametrize("scale", [4, 5])
def test_projections_that_are_large_in_all_layers_are_healthy(scale, tmp_path):
    """The demo model of this package has std 2.5 to 5 before QK-norm. One layer is measured by the others."""
    config = {**TINY, "num_hidden_layers": 6}
    weights = healthy(config)
    for name in weights:
        if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")):
            weights[name] *= np.float32(scale * (2.5 if "layers.4" in name else 1))
    assert inspect(write_checkpoint(tmp_path / "large", config, weights), Options()).faults == []
    for name in weights:
        if name.endswith("k_proj.weight"):
            weights[name] *= np.float32(12 if "layers.3" in name else 1)
    fault = inspect(write_checkpoint(tmp_path / "larger", config, weights), Options()).first_fault
    assert (fault.layer, fault.step) == (3, "k_heads")


def test_explosion_in_all_layers_is_one(tmp_path):
    config = {**TINY, "num_hidden_layers": 6}
    weights = {n: w * np.float32(1000 if "v_proj" in n else 1) for n, w in random_weights(config).items()}
    fault = inspect(write_checkpoint(tmp_path, config, weights), Options()).first_fault
    assert (fault.layer, fault.step) == (0, "v_heads")


FAULTS = {
    "collapsed queries": ("layers.3.self_attn.q_proj.weight", 0, 3, "q_heads", "collapse"),
    "collapsed norm": ("layers.3.self_attn.q_norm.weight", 0, 3, "q_norm", "collapse"),
    "exploded keys": ("layers.2.self_attn.k_proj.weight", 1000, 2, "k_heads", "explosion"),
    "exploded queries": ("layers.0.self_attn.q_proj.weight", 12, 0, "q_heads", "above 10 (explosion)"),
    "exploded values": ("layers.4.self_attn.v_proj.weight", 12, 4, "v_heads", "above 10 (explosion)"),
    "exploded norm": ("layers.1.self_attn.k_norm.weight", 1e5, 1, "k_norm", "explosion"),
    "saturated scores": ("layers.1.self_attn.q_norm.weight", 2000, 1, "q_norm", "explosion"),
    "a stream past 1e5": ("layers.4.mlp.down_proj.weight", 1e7, 4, "down", "|value|"),
    "NaN": ("layers.5.mlp.up_proj.weight", math.nan, 5, "gate_up", "NaN"),
    "infinite": ("layers.0.self_attn.o_proj.weight", math.inf, 0, "o_proj", "NaN"),
    "a dead embedding": ("embed_tokens.weight", 0, 0, "input", "std 0"),
}


@pytest.mark.parametrize(("tensor", "factor", "layer", "step", "word"), FAULTS.values(), ids=FAULTS.keys())
def test_the_first_bad_layer_is_named(tensor, factor, layer, step, word, tmp_path):
    config = {**TINY, "num_hidden_layers": 6}
    weights = healthy(config)
    with np.errstate(invalid="ignore", over="ignore"):
        weights[f"model.{tensor}"] = (weights[f"model.{tensor}"] * np.float64(factor)).astype(np.float32)
    report = inspect(write_checkpoint(tmp_path, config, weights), Options())
    assert (report.first_fault.layer, report.first_fault.step) == (layer, step)
    assert any(word in reason for reason in report.first_fault.reasons)


def test_what_is_healthy_before_a_nan_is_no_fault(tmp_path):
    """Queries, keys and values of the whole model are large; the layers after the NaN no longer say so."""
    config = {**TINY, "num_hidden_layers": 5}
    weights = healthy(config)
    for layer in range(5):
        for name in "qkv":
            weights[f"model.layers.{layer}.self_attn.{name}_proj.weight"] *= np.float32(10)
    assert inspect(write_checkpoint(tmp_path / "whole", config, weights), Options()).faults == []
    weights["model.layers.2.mlp.up_proj.weight"][0, 0] = math.nan
    fault = inspect(write_checkpoint(tmp_path / "nan", config, weights), Options()).first_fault
    assert (fault.layer, fault.step) == (2, "gate_up")


def test_one_head_of_many_is_found_by_heads_alone(tmp_path):
    """Its queries vanish before the norm, which hides it: five others keep the whole within its range."""
    config = {**TINY, "num_hidden_layers": 3}
    weights = random_weights(config)
    weights["model.layers.1.self_attn.q_proj.weight"][4 * 20 : 5 * 20] = 0
    write_checkpoint(tmp_path, config, weights)
    assert inspect(tmp_path, Options()).faults == []
    fault = inspect(tmp_path, Options(heads=True)).first_fault
    assert (fault.layer, fault.step, fault.head) == (1, "q_heads", 4)


@pytest.mark.parametrize("against", ["reference", "transformers", "itself"])
@pytest.mark.parametrize(
    "options", [Options(batch=2, length=7), Options("hello", temperature=0.0)], ids=["random", "text"]
)
def test_a_decode_step_is_compared(against, options, four_layers):
    pytest.importorskip("torch")
    options = replace(options, decode=3, against=str(four_layers) if against == "itself" else against)
    comparison = inspect(four_layers, options).comparison
    assert comparison.first_outside is None
    assert {d.layer for d in comparison.differences} == {0, 1, 2, 3, None}
    assert {"q_norm", "k_cache", "scores", "softmax", "o_proj"} <= {d.step for d in comparison.differences}
    largest = max(d.relative for d in comparison.differences)
    assert largest == 0 if against == "itself" else 0 < largest < 5e-6


FAULTS_OF_EXPERTS = {
    "a router with the same score for all": ("mlp.gate", 0, "router_logits", "std 0 below 1e-06 (collapse)"),
    "a NaN in one expert": ("mlp.experts.4.down_proj", math.nan, "expert_down", "NaN"),
    "an expert that explodes": ("mlp.experts.4.up_proj", 1e7, "expert_gate_up", "|value|"),
}


@pytest.mark.parametrize(("tensor", "factor", "step", "word"), FAULTS_OF_EXPERTS.values(), ids=FAULTS_OF_EXPERTS.keys())
def test_faults_of_experts_are_named(tensor, factor, step, word, tmp_path):
    weights = random_weights(TINY_MOE)
    weights[f"model.layers.2.{tensor}.weight"] *= np.float32(factor)
    report = inspect(write_checkpoint(tmp_path, TINY_MOE, weights), Options(length=40))
    assert (report.first_fault.layer, report.first_fault.step) == (2, step)
    assert any(word in reason for reason in report.first_fault.reasons)


def test_a_healthy_mixture_of_experts_is_not_reported_sick(tiny_moe):
    report = inspect(tiny_moe, Options(length=100, heads=True))
    assert report.faults == []
    assert {report.verdicts[layer, "chosen_experts"].level for layer in (0, 2)} == {NORMAL}


def shift_positions(monkeypatch):
    class Later(ReplayView):
        def __init__(self, *arrays, **options):
            super().__init__(*arrays, **options)
            self.positions = self.positions + 1

    monkeypatch.setattr(runner, "ReplayView", Later)


def forget_the_newest(monkeypatch):
    class Blind(ReplayView):
        def attend(self, layer, q, kv, scale):
            return super().attend(layer, q, kv * (layer != 2), scale)

    monkeypatch.setattr(runner, "ReplayView", Blind)


@pytest.mark.parametrize(
    ("plant", "layer", "step"), [(shift_positions, 0, "q_rope"), (forget_the_newest, 2, "k_cache")]
)
def test_a_fault_of_decode_alone_is_found_in_the_step(plant, layer, step, four_layers, monkeypatch):
    pytest.importorskip("torch")
    plant(monkeypatch)
    options = Options(length=7, against="reference")
    assert inspect(four_layers, options).comparison.first_outside is None
    first = inspect(four_layers, replace(options, decode=1)).comparison.first_outside
    assert (first.layer, first.step) == (layer, step)
