"""Two models step by step: correct ones stay within their bounds, mistakes are named by layer and step."""

import sys

import mlx.core as mx
import numpy as np
import pytest
from checkpoints import AFFINE_4, PACKABLE, random_weights, write_checkpoint, write_packed
from comparing import NINE, PEERS, against
from safetensors.numpy import load_file, save_file

from mlx_qwen3.compare.comparison import STATES, differences
from mlx_qwen3.compare.steps import model_steps, reference_steps
from mlx_qwen3.conversion.convert import convert
from mlx_qwen3.errors import UsageError
from mlx_qwen3.files.checkpoint import Checkpoint
from mlx_qwen3.inspect import Options, inspect
from mlx_qwen3.model.load import load_model

FAULT_LAYER = 7


def swap_one_norm(model):
    attention = model.layers[FAULT_LAYER].self_attn
    attention.q_norm, attention.k_norm = attention.k_norm, attention.q_norm


def swap_block_norms(model):
    layer = model.layers[FAULT_LAYER]
    layer.input_layernorm, layer.post_attention_layernorm = layer.post_attention_layernorm, layer.input_layernorm


def with_turn(model, change):
    """Other angles in one layer; `change` computes them from those of the pass."""
    layer = model.layers[FAULT_LAYER].self_attn

    class Turned(type(layer)):
        def project(self, x, turn, view):
            return super().project(x, change(view.positions), view)

    layer.__class__ = Turned


def shift_rope(model):
    with_turn(model, lambda positions: model.rope(positions + 1))


def shift_rope_of_keys(model):
    def apart(positions):
        queries, keys = model.rope(positions), model.rope(positions + 1)
        return [mx.concatenate([q] * 6 + [k] * 2, axis=1) for q, k in zip(queries, keys, strict=True)]

    with_turn(model, apart)


def plant_nan(model):
    weight = model.layers[FAULT_LAYER].mlp.down_proj.weight
    weight[3, 5] = float("nan")


def plant_nan_in_keys(model):
    model.layers[FAULT_LAYER].self_attn.k_norm.weight[0] = float("nan")


def other_scale(model):
    model.layers[FAULT_LAYER].self_attn.scale *= 1.01


def wrong_projection(model):
    model.layers[FAULT_LAYER].self_attn.o_proj.weight *= 1.001


def no_activation(model):
    mlp = model.layers[FAULT_LAYER].mlp
    weight = mlp.gate_up_proj.weight
    mlp.gate_up_proj.weight = mx.concatenate(mx.split(weight, 2)[::-1])


def other_head(model):
    model.norm.weight = model.norm.weight * 1.001


FAULTS = {
    swap_one_norm: "q_norm",
    swap_block_norms: "input_norm",
    shift_rope: "q_rope",
    shift_rope_of_keys: "k_rope",
    plant_nan: "down",
    plant_nan_in_keys: "k_norm",
    other_scale: "scores",
    wrong_projection: "o_proj",
    no_activation: "gate_up",
}


@pytest.mark.parametrize(("plant", "step"), FAULTS.items(), ids=[plant.__name__ for plant in FAULTS])
def test_a_planted_fault_is_named_by_layer_and_step(plant, step, folder, ids):
    model = load_model(folder, "fp32")
    plant(model)
    first = against("reference", model, folder, ids).first_outside
    assert (first.layer, first.step) == (FAULT_LAYER, step)


def test_a_fault_after_the_layers(folder, ids):
    model = load_model(folder, "fp32")
    other_head(model)
    first = against("reference", model, folder, ids).first_outside
    assert (first.layer, first.step) == (None, "final_norm")


def test_sound_layers_after_a_fault_are_not_blamed(folder, ids):
    model = load_model(folder, "fp32")
    attention = model.layers[2].self_attn
    attention.q_norm, attention.k_norm = attention.k_norm, attention.q_norm
    assert {d.layer for d in against("reference", model, folder, ids).differences if d.outside} == {2}


def test_two_faults_are_both_found(folder, ids):
    model = load_model(folder, "fp32")
    swap_one_norm(model)
    model.layers[2].self_attn.o_proj.weight *= 1.001
    outside = [(d.layer, d.step) for d in against("reference", model, folder, ids).differences if d.outside]
    assert outside[0] == (2, "o_proj")
    assert (FAULT_LAYER, "q_norm") in outside


FILE_FAULTS = {
    "one norm swapped": (
        lambda w: w.update(
            {
                "model.layers.7.self_attn.q_norm.weight": w["model.layers.7.self_attn.k_norm.weight"],
                "model.layers.7.self_attn.k_norm.weight": w["model.layers.7.self_attn.q_norm.weight"],
            }
        ),
        "q_norm",
    ),
    "one NaN": (lambda w: w["model.layers.7.self_attn.v_proj.weight"].__setitem__((0, 0), np.nan), "qkv"),
    "rows of another head": (
        lambda w: w.update(
            {"model.layers.7.self_attn.o_proj.weight": np.roll(w["model.layers.7.self_attn.o_proj.weight"], 20, axis=1)}
        ),
        "o_proj",
    ),
}


@pytest.mark.parametrize(("spoil", "step"), FILE_FAULTS.values(), ids=FILE_FAULTS.keys())
def test_a_spoiled_file_against_the_sound_one(spoil, step, folder, tmp_path):
    weights = random_weights(NINE)
    spoil(weights)
    bad = write_checkpoint(tmp_path / "bad", NINE, weights)
    first = inspect(bad, Options(against=str(folder))).comparison.first_outside
    assert (first.layer, first.step) == (7, step)


def test_another_theta_shows_at_rope(folder, tmp_path):
    bad = write_checkpoint(tmp_path / "bad", {**NINE, "rope_theta": 5e6}, random_weights(NINE))
    first = inspect(bad, Options(against=str(folder))).comparison.first_outside
    assert (first.layer, first.step) == (0, "q_rope")


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32"])
def test_layouts_of_one_model_do_not_differ(dtype, folder, tmp_path):
    convert(folder, tmp_path / "native")
    report = inspect(tmp_path / "native", Options(against=str(folder), dtype=dtype))
    assert {d.relative for d in report.comparison.differences} == {0.0}


PACKINGS = {
    "affine 8": {"mode": "affine", "bits": 8, "group_size": 64},
    "affine 6": {"mode": "affine", "bits": 6, "group_size": 64},
    "affine 4": AFFINE_4,
    "affine 3": {"mode": "affine", "bits": 3, "group_size": 64},
    "mxfp4": {"mode": "mxfp4", "bits": 4, "group_size": 32},
    "mxfp8": {"mode": "mxfp8", "bits": 8, "group_size": 32},
    "nvfp4": {"mode": "nvfp4", "bits": 4, "group_size": 16},
}


@pytest.mark.parametrize("packing", PACKINGS.values(), ids=PACKINGS.keys())
def test_packed_weights_stay_within_their_bound(packing, tmp_path):
    """Against the float model by the bits; against a peer, which unpacks the same weights, by the dtype alone."""
    shape = {**NINE, **PACKABLE}
    plain = write_checkpoint(tmp_path / "plain", shape)
    packed = write_packed(tmp_path / "packed", packing, num_hidden_layers=9)
    comparison = inspect(packed, Options(against=str(plain), dtype="fp32")).comparison
    assert comparison.first_outside is None
    assert comparison.differences[-1].relative > 1e-3
    pytest.importorskip("torch")
    for peer in PEERS:
        comparison = inspect(packed, Options(against=peer, dtype="fp32")).comparison
        assert comparison.first_outside is None
        assert comparison.differences[-1].relative < 1e-4


def test_a_swapped_norm_is_found_with_four_bits_too(tmp_path):
    shape = {**NINE, **PACKABLE}
    plain = write_checkpoint(tmp_path / "plain", shape)
    packed = write_packed(tmp_path / "packed", AFFINE_4, num_hidden_layers=9)
    stored = mx.load(str(packed / "model.safetensors"))
    name = "model.layers.7.self_attn.q_norm.weight"
    stored[name] = stored[name][::-1] * 3
    mx.save_safetensors(str(packed / "model.safetensors"), stored)
    first = inspect(packed, Options(against=str(plain))).comparison.first_outside
    assert (first.layer, first.step) == (7, "q_norm")


def test_models_of_other_shapes_are_refused(folder, tiny):
    with pytest.raises(UsageError, match=r"num_hidden_layers is 9 in .* and 2 in .*; compare two forms of the same"):
        inspect(folder, Options(against=str(tiny)))


@pytest.mark.parametrize(
    ("peer", "missing", "packages"),
    [("reference", "torch", ["torch"]), ("transformers", "transformers", ["torch", "transformers"])],
)
def test_without_its_packages_a_peer_is_refused_first(peer, missing, packages, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    monkeypatch.setattr("mlx_qwen3.inspect.report.load_model", None)  # so that work would be an error
    words = f"--against {peer} needs {' and '.join(packages)}; pip install {' '.join(packages)}"
    with pytest.raises(UsageError, match=f"^{words}$"):
        inspect(folder, Options(against=peer))


def test_a_folder_with_the_name_of_a_peer(folder, tmp_path, monkeypatch):
    weights = random_weights(NINE)
    weights["model.norm.weight"] *= 2
    write_checkpoint(tmp_path / "reference", NINE, weights)
    monkeypatch.chdir(tmp_path)
    first = inspect(folder, Options(against="./reference")).comparison.first_outside
    assert (first.layer, first.step) == (None, "final_norm")


def test_states_only(folder, ids):
    model = load_model(folder, "fp32")
    sides = model_steps(model, mx.array(ids)), reference_steps(Checkpoint(folder), mx.array(ids))
    found = list(differences(*sides, bound=0.0, only=STATES))
    inside = [(layer, step) for layer in range(9) for step in ("input", "output")]
    assert [(d.layer, d.step) for d in found] == [*inside, (None, "logits")]
    assert {d.bound for d in found} == {0.0}


def test_a_nan_on_both_sides_is_not_a_difference(folder, tmp_path):
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.3.mlp.down_proj.weight"] = weights["model.layers.3.mlp.down_proj.weight"].copy()
    weights["model.layers.3.mlp.down_proj.weight"][0, 0] = np.nan
    bad = write_checkpoint(tmp_path / "bad", NINE)
    save_file(weights, bad / "model.safetensors")
    report = inspect(bad, Options(against=str(bad)))
    assert report.comparison.first_outside is None
    assert (report.first_fault.layer, report.first_fault.step) == (3, "down")
