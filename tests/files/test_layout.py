"""Which tensor is which parameter: a checkpoint that does not add up is refused."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from checkpoints import PACKABLE, PACKINGS, TINY, random_weights, shapes, write_checkpoint, write_packed
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from mlx_qwen3.conversion.convert import convert
from mlx_qwen3.errors import CheckpointError, ConfigError, Qwen3Error
from mlx_qwen3.files.checkpoint import Checkpoint
from mlx_qwen3.files.dtypes import STORED
from mlx_qwen3.files.layout import locate_parts
from mlx_qwen3.files.names import NAME_MAP
from mlx_qwen3.model.load import load_model


@pytest.fixture(params=[*PACKINGS, "mixed"])
def packed(request, tmp_path):
    """In the layout of mlx-lm; mixed has other bits for one module."""
    packing = PACKINGS.get(request.param, PACKINGS["affine 4"])
    changes = {"layers.0.mlp.down_proj": PACKINGS["affine 6"]} if request.param == "mixed" else None
    return write_packed(tmp_path, packing, changes)


def test_a_packing_that_the_tensors_contradict_is_refused(packed):
    config = json.loads((packed / "config.json").read_text())
    wrong = {"mode": "affine", "bits": 5, "group_size": 128}
    config["quantization"] = {**wrong, "model.layers.0.mlp.up_proj": wrong}  # without a name the shapes decide
    (packed / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"config\.json gives|expected"):
        load_model(packed)


def test_scales_without_a_quantization_in_the_config_are_refused(packed):
    config = json.loads((packed / "config.json").read_text())
    del config["quantization"]
    (packed / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"\.scales is stored, but config.json has no quantization"):
        load_model(packed)


def without(name):
    return lambda weights: weights.pop(name)


def replaced(name, value):
    return lambda weights: weights.update({name: value})


ATTENTION = "model.layers.1.self_attn"
TWIN = "tie_word_embeddings is true, but lm_head.weight differs"
BROKEN: dict[str, tuple[Any, dict[str, Any], str]] = {
    "missing": (without(f"{ATTENTION}.k_proj.weight"), {}, r"lacks layers\.1\.self_attn\.k_proj\.weight"),
    "missing norm": (without(f"{ATTENTION}.q_norm.weight"), {}, r"lacks layers\.1\.self_attn\.q_norm\.weight"),
    "missing layer": (lambda w: None, {"num_hidden_layers": 3}, r"lacks layers\.2.* and 10 more; .*3 layers"),
    "extra layer": (lambda w: None, {"num_hidden_layers": 1}, r"holds layers\.1.* and 10 more"),
    "extra": (replaced("visual.weight", np.zeros((1, 48), np.float32)), {}, "holds visual.weight, which a Qwen3 with"),
    "value head": (
        replaced("v_head.summary.weight", np.zeros((1, 48), np.float32)),
        {},
        r"holds v_head\.summary\.weight, a value head of reinforcement learning, .*save_pretrained",
    ),
    "classifier": (
        replaced("score.weight", np.zeros((2, 48), np.float32)),
        {},
        "score.weight, a classification head",
    ),
    "classifier without lm_head": (
        replaced("score.weight", np.zeros((2, 48), np.float32)),
        {"tie_word_embeddings": False},
        r"score\.weight, a classification head, .*use the model that it was trained from",
    ),
    "adapter": (
        replaced(f"base_model.{ATTENTION}.q_proj.lora_A.weight", np.zeros((2, 48), np.float32)),
        {},
        "lora_A.weight, an adapter; .*merge_and_unload",
    ),
    "bias": (replaced(f"{ATTENTION}.q_proj.bias", np.zeros(120, np.float32)), {}, r"holds .*q_proj\.bias"),
    "shape": (
        replaced(f"{ATTENTION}.o_proj.weight", np.zeros((48, 48), np.float32)),
        {},
        r"o_proj\.weight has shape \[48, 48\], but config.json gives \[48, 120\] by \[hidden_size, .* head_dim\]",
    ),
    "transposed": (
        replaced("model.layers.0.mlp.up_proj.weight", np.zeros((48, 80), np.float32)),
        {},
        r"up_proj\.weight has shape \[48, 80\], but config.json gives \[80, 48\]",
    ),
    "integers": (
        replaced("model.norm.weight", np.zeros(48, np.uint8)),
        {},
        "model.norm.weight has dtype U8; expected F32",
    ),
    "float64": (
        replaced("model.norm.weight", np.zeros(48)),
        {},
        "model.norm.weight has dtype F64; expected F32, F16, BF16",
    ),
    "head_dim": (
        lambda w: None,
        {"head_dim": 8},
        r"head_dim is 8 in config.json, but .*_norm.weight has shape \[20\]",
    ),
    "vocabulary": (lambda w: None, {"vocab_size": 157}, r"embed_tokens.weight has shape \[151, 48\].*\[157, 48\]"),
    "no lm_head": (
        lambda w: None,
        {"tie_word_embeddings": False},
        "lacks lm_head.weight; tie_word_embeddings is false",
    ),
    "packed lm_head": (replaced("lm_head.weight", np.zeros((151, 48), np.uint8)), {}, TWIN),
    "narrow lm_head": (replaced("lm_head.weight", np.zeros((150, 48), np.float32)), {}, TWIN),
    "both prefixes": (replaced("norm.weight", np.ones(48, np.float32)), {}, "norm.weight is stored with and without"),
    "fused and split": (
        replaced("layers.0.mlp.gate_up_proj.weight", np.zeros((160, 48), np.float32)),
        {},
        r"holds layers\.0\.mlp\.gate_up_proj\.weight",
    ),
}


@pytest.mark.parametrize(("spoil", "changes", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_tensors_that_do_not_add_up_are_refused_in_one_line(spoil, changes, message, tmp_path):
    weights = random_weights(TINY)
    spoil(weights)
    write_checkpoint(tmp_path, weights=weights, **changes)
    with pytest.raises(Qwen3Error, match=message) as error:
        load_model(tmp_path)
    assert "\n" not in str(error.value)


def test_a_fused_tensor_of_another_height_is_refused(tiny, tmp_path):
    convert(tiny, tmp_path / "native")
    weights = load_file(tmp_path / "native" / "model.safetensors")
    weights["layers.1.self_attn.qkv_proj.weight"] = np.zeros((120, 48), np.float32)
    save_file(weights, tmp_path / "native" / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"qkv_proj\.weight has shape \[120, 48\], but config.json gives 200 rows"
    ):
        load_model(tmp_path / "native")


def test_the_parts_are_what_hugging_face_stores(tiny):
    parts = Checkpoint(tiny).parts
    assert {f"model.{name}.weight" for name in parts} == shapes(TINY).keys()
    assert {name for names in NAME_MAP.values() for name in names} < {name.split(".", 2)[-1] for name in parts}


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_tensor_of_another_form_is_refused_in_one_line(several, data):
    """With another shape or dtype, another name or none, the parts are found all the same, or one error says why."""
    checkpoint = data.draw(st.sampled_from(several))
    name = data.draw(st.sampled_from(sorted(checkpoint.tensors)))
    tensor = checkpoint.tensors[name]
    changed = {key: value for key, value in checkpoint.tensors.items() if key != name}
    sizes = st.lists(st.sampled_from([0, 1, 2, 48, 151]), max_size=3)
    shape = data.draw(st.one_of(st.just(tensor.shape), sizes.map(tuple)))
    dtype = data.draw(st.sampled_from([tensor.dtype, *STORED.values()]))
    other = data.draw(st.sampled_from([name, *checkpoint.tensors, "lm_head.weight", "lm_head.scales", "x", "model."]))
    if data.draw(st.booleans()):
        changed[other] = replace(tensor, name=other, shape=shape, dtype=dtype)
    try:
        assert locate_parts(checkpoint.folder, changed, checkpoint.config).keys() == checkpoint.parts.keys()
    except Qwen3Error as error:
        refusal = str(error)
    else:
        refusal = ""
    assert "\n" not in refusal


@pytest.fixture(scope="module")
def several(tiny, untied, tmp_path_factory):
    """Split and fused, tied and untied, plain and packed."""
    folders = [tiny, untied]
    for options in ({}, {"quantize": "affine4"}, {"quantize": "mxfp4"}, {"quantize": "affine4", "layout": "native"}):
        source = write_checkpoint(tmp_path_factory.mktemp("source"), **PACKABLE)
        folders.append(tmp_path_factory.mktemp("several") / "out")
        convert(source, folders[-1], divergence=False, **options)
    return [Checkpoint(folder) for folder in folders]
