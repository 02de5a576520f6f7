"""Experts in each of the forms on disk: all load, and all convert to native and back, bit for bit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from checkpoints import TINY_MOE, random_weights, stored, write_checkpoint, write_shards

from mlx_qwen3.conversion.convert import convert
from mlx_qwen3.conversion.verify import verify
from mlx_qwen3.errors import CheckpointError, Qwen3Error
from mlx_qwen3.files.checkpoint import Checkpoint
from mlx_qwen3.model.load import load_model

E, LAYERS = TINY_MOE["num_experts"], (0, 2)  # those with experts
SAME = mx.array([[1, 2, 3]])


def stack(weights, layer, *names):
    """The matrices of all experts, those of one expert side by side."""
    prefix = f"model.layers.{layer}.mlp.experts"
    return np.stack(
        [np.concatenate([weights.pop(f"{prefix}.{e}.{name}_proj.weight") for name in names]) for e in range(E)]
    )


def released(folder):
    return write_checkpoint(folder, TINY_MOE)


def fused(folder):
    """As transformers 5 writes it with save_original_format=False."""
    weights = random_weights(TINY_MOE)
    for layer in LAYERS:
        prefix = f"model.layers.{layer}.mlp.experts"
        weights |= {f"{prefix}.gate_up_proj": stack(weights, layer, "gate", "up")}
        weights |= {f"{prefix}.down_proj": stack(weights, layer, "down")}
    return write_checkpoint(folder, TINY_MOE, weights)


def switch(folder):
    """As mlx-lm writes it."""
    weights = random_weights(TINY_MOE)
    for layer in LAYERS:
        for name in ("gate", "up", "down"):
            weights[f"model.layers.{layer}.mlp.switch_mlp.{name}_proj.weight"] = stack(weights, layer, name)
    return write_checkpoint(folder, TINY_MOE, weights)


def native(folder):
    convert(released(folder / "source"), folder / "native", divergence=False)
    return folder / "native"


FORMS = [released, fused, switch, native]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_every_form_loads_and_converts_to_native_and_back(form, tiny_moe, tmp_path):
    source = form(tmp_path / "source")
    assert mx.array_equal(load_model(source)(SAME), load_model(tiny_moe)(SAME))
    certificate = convert(source, tmp_path / "native", layout="native")
    assert certificate.divergence.kl_mean == 0
    assert all(record.error is None for record in certificate.tensors)
    shapes = {name: shape for name, (_, shape, _) in stored(tmp_path / "native").items()}
    assert {name for name in shapes if "layers.0.mlp" in name} == {
        "layers.0.mlp.gate.weight",
        "layers.0.mlp.experts.gate_up_proj.weight",
        "layers.0.mlp.experts.down_proj.weight",
    }
    assert shapes["layers.2.mlp.experts.gate_up_proj.weight"] == (E, 2 * 28, 48)
    assert shapes["layers.2.mlp.experts.down_proj.weight"] == (E, 48, 28)
    for number, folder in enumerate((source, tmp_path / "native")):
        convert(folder, tmp_path / f"hf {number}", layout="hf", divergence=False)
        assert stored(tmp_path / f"hf {number}") == stored(tiny_moe)


def test_native_has_the_values_in_their_order(tiny_moe, tmp_path):
    convert(tiny_moe, tmp_path / "native", divergence=False)
    found, weights = mx.load(str(tmp_path / "native" / "model.safetensors")), random_weights(TINY_MOE)
    for name, parts in {"gate_up_proj": ("gate", "up"), "down_proj": ("down",)}.items():
        np.testing.assert_array_equal(found[f"layers.2.mlp.experts.{name}.weight"], stack(weights, 2, *parts))


@pytest.mark.parametrize("written", [True, False])
def test_what_transformers_writes_loads(written, tiny_moe, tmp_path, transformers_model):
    """In both of its forms, with a config of transformers 5; and it loads what `--layout hf` writes."""
    model = transformers_model(tiny_moe)
    model.save_pretrained(tmp_path / "theirs", save_original_format=written)
    names = Checkpoint(tmp_path / "theirs").tensors
    assert ("model.layers.0.mlp.experts.gate_up_proj" in names) is not written
    assert mx.array_equal(load_model(tmp_path / "theirs")(SAME), load_model(tiny_moe)(SAME))
    convert(tmp_path / "theirs", tmp_path / "out", layout="hf", divergence=False)
    assert stored(tmp_path / "out") == stored(tiny_moe)
    torch = pytest.importorskip("torch")
    ids = torch.tensor(SAME.tolist())
    with torch.no_grad():
        assert torch.equal(transformers_model(tmp_path / "out")(ids).logits, model(ids).logits)


def test_mlx_lm_reads_what_is_written_and_the_other_way_round(tiny_moe, tmp_path, transformers_model):
    utils = pytest.importorskip("mlx_lm.utils")
    transformers_model(tiny_moe).save_pretrained(tmp_path / "theirs")  # a config that mlx-lm alone cannot read
    convert(tmp_path / "theirs", tmp_path / "hf", layout="hf", divergence=False)
    right = load_model(tiny_moe)(SAME)
    for folder in (tiny_moe, tmp_path / "hf"):
        model, _ = utils.load_model(folder)
        assert mx.allclose(model(SAME), right, atol=2e-5)
    utils.save_model(tmp_path / "of mlx-lm", model)
    (tmp_path / "of mlx-lm" / "config.json").write_text((tiny_moe / "config.json").read_text())
    assert "model.layers.0.mlp.switch_mlp.up_proj.weight" in Checkpoint(tmp_path / "of mlx-lm").tensors
    assert mx.array_equal(load_model(tmp_path / "of mlx-lm")(SAME), right)


@pytest.mark.parametrize("value", [..., None])
def test_settings_without_which_mlx_lm_cannot_read_are_spelled_out(value, tmp_path):
    utils = pytest.importorskip("mlx_lm.utils")
    defaults = {"norm_topk_prob": False, "decoder_sparse_step": 1, "mlp_only_layers": []}
    raw = {**TINY_MOE, **dict.fromkeys(defaults, value)}
    raw = {key: value for key, value in raw.items() if value is not ...}
    source = write_checkpoint(tmp_path / "source", {**TINY_MOE, **defaults})
    (source / "config.json").write_text(json.dumps(raw))
    convert(source, tmp_path / "hf", layout="hf", divergence=False)
    written = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert {key: written[key] for key in defaults} == defaults
    model, _ = utils.load_model(tmp_path / "hf")
    assert mx.allclose(model(SAME), load_model(source)(SAME), atol=2e-5)


def test_a_conversion_is_verified_layer_by_layer_with_transformers(tiny_moe, tmp_path):
    pytest.importorskip("transformers")
    convert(tiny_moe, tmp_path / "out", dtype="bf16")
    places = [state.place for state in verify(tmp_path / "out", tiny_moe, transformers=True).transformers]
    assert places[:4] == ["the embedding", "layer 0", "layer 1", "layer 2"]


def test_an_expert_of_another_dtype_stays_by_itself(tiny_moe, tmp_path):
    weights = {name: mx.array(value) for name, value in random_weights(TINY_MOE).items()}
    odd = "model.layers.0.mlp.experts.4.up_proj.weight"
    weights[odd] = weights[odd].astype(mx.bfloat16)
    source = write_checkpoint(tmp_path / "source", TINY_MOE)
    mx.save_safetensors(str(source / "model.safetensors"), weights)
    convert(source, tmp_path / "native", divergence=False)
    assert odd.removeprefix("model.") in stored(tmp_path / "native")
    assert mx.array_equal(load_model(tmp_path / "native")(SAME), load_model(source)(SAME))
    convert(tmp_path / "native", tmp_path / "hf", layout="hf", divergence=False)
    assert stored(tmp_path / "hf") == stored(source)


def lacking(weights):
    del weights["model.layers.2.mlp.experts.6.up_proj.weight"]


def with_one_more(weights):
    weights["model.layers.2.mlp.experts.7.up_proj.weight"] = np.zeros((28, 48), np.float32)


def with_experts_in_a_dense_layer(weights):
    weights["model.layers.1.mlp.gate.weight"] = np.zeros((7, 48), np.float32)


def transposed(weights):
    weights["model.layers.0.mlp.experts.3.down_proj.weight"] = np.zeros((28, 48), np.float32)


def of_fewer_experts(weights):
    for name in [name for name in weights if ".experts.6." in name]:
        del weights[name]


def with_both_forms(weights):
    weights["model.layers.0.mlp.experts.down_proj"] = np.zeros((7, 48, 28), np.float32)


def stacked_wrongly(weights):
    down = stack(weights, 0, "down")
    weights["model.layers.0.mlp.experts.down_proj"] = down.swapaxes(1, 2)


BROKEN = {
    lacking: r"lacks layers\.2\.mlp\.experts\.6\.up_proj\.weight;",
    with_one_more: r"holds layers\.2\.mlp\.experts\.7\.up_proj\.weight",
    with_experts_in_a_dense_layer: r"holds layers\.1\.mlp\.gate\.weight",
    transposed: r"experts\.3\.down_proj\.weight has shape \[28, 48\], but config.json gives \[48, 28\]",
    of_fewer_experts: r"lacks layers\.0\.mlp\.experts\.6\.gate_proj\.weight and 5 more",
    with_both_forms: r"holds layers\.0\.mlp\.experts\.down_proj\.weight",
    stacked_wrongly: r"experts\.down_proj has shape \[7, 28, 48\], but config.json gives 7 experts of 48 rows",
}


@pytest.mark.parametrize(("spoil", "message"), BROKEN.items(), ids=lambda value: getattr(value, "__name__", ""))
def test_tensors_that_contradict_the_config_are_refused_in_one_line(spoil, message, tmp_path):
    weights = random_weights(TINY_MOE)
    spoil(weights)
    with pytest.raises(Qwen3Error, match=message) as error:
        load_model(write_checkpoint(tmp_path, TINY_MOE, weights))
    assert "\n" not in str(error.value)


def test_experts_that_are_packed_in_different_ways_are_refused(tmp_path):
    size = {"hidden_size": 64, "moe_intermediate_size": 64, "head_dim": 32}
    convert(write_checkpoint(tmp_path / "source", TINY_MOE, **size), tmp_path / "out", quantize="affine4")
    weights, config = (
        mx.load(str(tmp_path / "out" / "model.safetensors")),
        json.loads((tmp_path / "out" / "config.json").read_text()),
    )
    name = "model.layers.0.mlp.switch_mlp.up_proj"
    leaves = ("weight", "scales", "biases")
    whole = [weights.pop(f"{name}.{leaf}") for leaf in leaves]
    for expert in range(E):
        values = mx.dequantize(*(leaf[expert] for leaf in whole), group_size=64, bits=4)
        parts = mx.quantize(values, group_size=64, bits=8 if expert == 2 else 4)
        own = f"model.layers.0.mlp.experts.{expert}.up_proj"
        weights |= {f"{own}.{leaf}": part for leaf, part in zip(leaves, parts, strict=True)}
    mx.save_safetensors(str(tmp_path / "out" / "model.safetensors"), weights)
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"layers\.0\.mlp\.experts\.gate_up_proj: its experts are packed in diff"):
        load_model(tmp_path / "out")


MANY = {
    **TINY_MOE,
    "num_hidden_layers": 4,
    "mlp_only_layers": [],
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "hidden_size": 64,
    "moe_intermediate_size": 32,
    "head_dim": 16,
}


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """1,536 matrices of experts in any order in 16 files."""
    return write_shards(write_checkpoint(tmp_path_factory.mktemp("many"), MANY), 16)


def test_each_of_16_files_is_opened_once(many, tmp_path, monkeypatch):
    opened: list[str] = []
    real = os.open

    def counting(path, *arguments, **options):
        opened.append(Path(path).name)
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, "open", counting)
    load_model(many)
    assert sorted(name for name in opened if name.endswith(".safetensors")) == sorted(
        path.name for path in many.glob("*.safetensors")
    )
    opened.clear()
    convert(many, tmp_path / "out", divergence=False)
    shards = [name for name in opened if name.startswith("model-")]
    assert len(shards) == len(set(shards)) == 16


def test_native_and_back_from_16_files(many, tmp_path):
    convert(many, tmp_path / "native", divergence=False)
    convert(tmp_path / "native", tmp_path / "hf", layout="hf", divergence=False)
    assert stored(tmp_path / "hf") == stored(many)


MEMORY = """
import pathlib, sys
from mlx_qwen3.conversion.convert import convert
from mlx_qwen3.model.load import load_model
peak = lambda: int(pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024
source, out, task = sys.argv[1:]
if task == "load":
    load_model(source, "fp32")
else:
    convert(source, out, divergence=task == "compared")
print(peak())
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from Linux's /proc")
@pytest.mark.parametrize(("task", "megabytes"), [("convert", 150), ("compared", 200), ("load", 700)])
def test_memory_is_bounded_by_a_matrix_and_not_by_the_stack(task, megabytes, tmp_path):
    """Stacks of 201 and 101 MB in bf16, matrices of 1.6 MB; the model takes 620 MB in float32, the process alone 60."""
    sizes = {"hidden_size": 1024, "moe_intermediate_size": 768, "num_experts": 64, "num_hidden_layers": 1}
    config = {**MANY, **sizes, "torch_dtype": "bfloat16"}
    source = write_checkpoint(tmp_path / "source", config, {"none": np.zeros(1, np.float32)})
    weights = {name: mx.array(value).astype(mx.bfloat16) for name, value in random_weights(config).items()}
    mx.save_safetensors(str(source / "model.safetensors"), weights)
    command = [sys.executable, "-c", MEMORY, str(source), str(tmp_path / "out"), task]
    output = subprocess.run(command, capture_output=True, check=True).stdout
    assert int(output) / 1e6 < megabytes
