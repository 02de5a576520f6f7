"""Packed releases, value by value against what their formats define, and against transformers for FP8."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from arrays import as_numpy
from checkpoints import TINY_MOE, write_checkpoint
from oracle import logits
from releases import SIZES, Release, rename_dtype, write_awq, write_compressed, write_fp8, write_gptq

from mlx_qwen3.conversion.convert import convert
from mlx_qwen3.errors import CheckpointError, ConfigError, Qwen3Warning
from mlx_qwen3.files.checkpoint import Checkpoint
from mlx_qwen3.files.quantization import Quantization
from mlx_qwen3.files.values import read_rows
from mlx_qwen3.model.load import load_model

WIDE = {"num_attention_heads": 4, "num_key_value_heads": 4, "intermediate_size": 256}  # 128 divides every row
# name -> (writer, its arguments, the group in MLX's form)
AFFINE: dict[str, tuple[Callable[..., Release], dict[str, Any], int]] = {
    "gptq 4": (write_gptq, {}, 32),
    "gptq 8": (write_gptq, {"bits": 8}, 32),
    "gptq symmetric": (write_gptq, {"sym": True}, 32),
    "gptq without a format": (write_gptq, {"version": None}, 32),
    "gptq_v2": (write_gptq, {"version": "gptq_v2", "order": None}, 32),
    "gptq 64": (write_gptq, {"group_size": 64, **WIDE}, 64),
    "gptq 128": (write_gptq, {"group_size": 128, "bits": 8, **WIDE}, 128),
    "gptq of whole rows": (write_gptq, {"group_size": -1, **WIDE}, 128),
    "gptq whose last group is short": (write_gptq, {"group_size": 64, "head_dim": 16, "hidden_size": 96}, 32),
    "gptq in blocks": (write_gptq, {"order": "blocks"}, 32),
    "awq": (write_awq, {}, 32),
    "awq 128": (write_awq, {"group_size": 128, **WIDE}, 128),
    "compressed 4": (write_compressed, {}, 32),
    "compressed 8": (write_compressed, {"bits": 8, "symmetric": False}, 32),
    "compressed 4 with zeros": (write_compressed, {"symmetric": False, "group_size": 128, **WIDE}, 128),
    "compressed by row": (write_compressed, {"symmetric": False, "group_size": -1, **WIDE}, 128),
}
FLOAT: dict[str, tuple[Callable[..., Release], dict[str, Any]]] = {
    "gptq act-order": (write_gptq, {"order": "shuffled"}),
    "gptq 8 act-order": (write_gptq, {"order": "shuffled", "bits": 8}),
    "gptq 16": (write_gptq, {"group_size": 16}),
    "compressed act-order": (write_compressed, {"order": "shuffled", "symmetric": False}),
}
FP8: dict[str, dict[str, Any]] = {
    "fp8": {},
    "fp8 with ragged edges": {"block": (48, 80)},
    "fp8 with scales in float32": {"block": (32, 32), "scale_dtype": mx.float32},
    "fp8 with modules in bf16": {"block": (64, 64), "skip": ("layers.0.self_attn.k_proj", "layers.1.mlp.down_proj")},
    "fp8 with one scale": {"block": "scalar", "scale_dtype": mx.float32},
    "compressed fp8 by rows": {"block": "channel", "compressed": True},
    "compressed fp8 by matrices": {"block": "tensor", "compressed": True, "scheme": "static"},
}


def check_values(release: Release) -> None:
    """Every value, read as a whole and in blocks, is the one that the format defines."""
    parts = Checkpoint(release.folder).parts
    for name, expected in release.weights.items():
        part = parts[name.removeprefix("model.").removesuffix(".weight")]
        np.testing.assert_array_equal(read_rows(part.leaves, part.quantization, 0, len(expected)), expected, name)
        first, count = len(expected) // 3, len(expected) // 2
        np.testing.assert_array_equal(
            read_rows(part.leaves, part.quantization, first, count), expected[first : first + count], name
        )


def check_logits(release: Release, ids: list[list[int]]) -> None:
    config = json.loads((release.folder / "config.json").read_text())
    expected = logits(config, release.weights, ids)
    found = as_numpy(load_model(release.folder, "fp32")(mx.array(ids)))
    # rounding of float32; measured: 7.2e-7 of the norm
    assert np.linalg.norm(found - expected) / np.linalg.norm(expected) < 5e-6


@pytest.mark.parametrize("name", AFFINE)
def test_integers_in_groups_become_affine_without_a_second_rounding(tmp_path, ids, name):
    write, arguments, group = AFFINE[name]
    release = write(tmp_path / "release", **arguments)
    check_values(release)
    packings = {part.quantization for part in Checkpoint(release.folder).parts.values()}
    assert packings == {None, Quantization("affine", arguments.get("bits", 4), group)}
    check_logits(release, ids)


@pytest.mark.parametrize("name", FLOAT)
def test_integers_whose_groups_mlx_does_not_have_are_unpacked_and_this_is_said(tmp_path, ids, name):
    write, arguments = FLOAT[name]
    release = write(tmp_path / "release", **arguments)
    with pytest.warns(Qwen3Warning, match="14 of the 14 .* matrices are unpacked"):
        check_values(release)
    with pytest.warns(Qwen3Warning, match="unpacked"):
        check_logits(release, ids)


@pytest.mark.parametrize("name", FP8)
def test_fp8_is_unpacked_exactly(tmp_path, ids, name):
    release = write_fp8(tmp_path / "release", **FP8[name])
    check_values(release)
    check_logits(release, ids)


def test_fp8_equals_transformers_to_the_bit(tmp_path):
    torch = pytest.importorskip("torch")
    fp8 = pytest.importorskip("transformers.integrations.finegrained_fp8")
    from safetensors.torch import load_file

    release = write_fp8(tmp_path / "release", block=(32, 32))  # transformers takes no ragged edges
    tensors = load_file(release.folder / "model.safetensors")
    parts = Checkpoint(release.folder).parts
    matrices = [name for name in tensors if tensors[name].dtype == torch.float8_e4m3fn]
    assert len(matrices) == 14
    for name in matrices:
        scales = tensors[f"{name}_scale_inv"]
        expected = fp8.Fp8Dequantize(None)._dequantize_one(tensors[name], scales, torch.float32).numpy()
        part = parts[name.removeprefix("model.").removesuffix(".weight")]
        found = read_rows(part.leaves, None, 0, len(expected))
        np.testing.assert_array_equal(found.view(np.uint32), expected.view(np.uint32))


def test_every_code_of_fp8_means_what_torch_says(tmp_path):
    torch = pytest.importorskip("torch")
    from mlx_qwen3.files.packed import FP8_VALUES

    expected = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().numpy()
    np.testing.assert_array_equal(FP8_VALUES, expected)


def test_activation_scales_are_left_out(tmp_path):
    release = write_fp8(tmp_path / "release", scheme="static")
    check_values(release)


def test_the_dtype_of_an_fp8_release_is_that_of_its_other_weights(tmp_path):
    release = write_fp8(tmp_path / "release")
    part = Checkpoint(release.folder).parts["layers.0.mlp.down_proj"]
    assert (part.leaves["weight"].dtype, part.leaves["weight"].kept) == (mx.float32, mx.bfloat16)
    model = load_model(release.folder, "bf16")
    weight = model.layers[0].mlp.down_proj.weight
    assert weight.dtype == mx.bfloat16
    rounded = mx.array(release.weights["model.layers.0.mlp.down_proj.weight"]).astype(mx.bfloat16)
    assert mx.array_equal(weight, rounded)  # rounded once


def test_fused_parts_share_a_matrix_if_they_can(tmp_path):
    same = load_model(write_gptq(tmp_path / "same").folder)
    assert same.layers[0].self_attn.qkv_proj.weight.shape == (6 * 32 + 2 * 2 * 32, 128 * 4 // 32)
    mixed = load_model(write_fp8(tmp_path / "mixed", skip=("k_proj",)).folder)
    assert mixed.layers[0].self_attn.qkv_proj.weight.shape == (6 * 32 + 2 * 2 * 32, 128)


def changed(folder: Path, change: Callable[[dict[str, mx.array]], Any], **settings: Any) -> Checkpoint:
    """A GPTQ release whose tensors were changed."""
    release = write_gptq(folder, **settings)
    path = release.folder / "model.safetensors"
    tensors = mx.load(str(path))
    change(tensors)
    mx.save_safetensors(str(path), tensors, {"format": "pt"})
    return Checkpoint(release.folder)


Q = "model.layers.0.self_attn.q_proj"
BROKEN: dict[str, tuple[Callable[[dict[str, mx.array]], Any], str]] = {
    "no scales": (lambda t: t.pop(f"{Q}.scales"), "q_proj.scales is missing"),
    "no zeros": (lambda t: t.pop(f"{Q}.qzeros"), "q_proj.qzeros is missing"),
    "a bias": (lambda t: t.update({f"{Q}.bias": mx.ones((192,))}), "holds .*q_proj.bias"),
    "other rows": (lambda t: t.update({f"{Q}.qweight": mx.zeros((16, 200), mx.int32)}), r"shape \[16, 200\]"),
    "other bits": (lambda t: t.update({f"{Q}.qweight": mx.zeros((32, 192), mx.int32)}), "bits is 4 .*qweight has 8"),
    "3 bits": (
        lambda t: t.update({f"{Q}.qweight": mx.zeros((12, 192), mx.int32)}),
        "3 bits a column; supported: 4 and",
    ),
    "other groups": (lambda t: t.update({f"{Q}.scales": mx.zeros((8, 192))}), "group_size is 32 .*4 groups .* has 8"),
    "zeros of another dtype": (lambda t: t.update({f"{Q}.qzeros": mx.zeros((4, 24))}), "dtype F32; expected I32"),
    "a group too high": (lambda t: t.update({f"{Q}.g_idx": mx.full((128,), 4, mx.int32)}), "names group 4 or 4, of 4"),
    "a group below": (lambda t: t.update({f"{Q}.g_idx": mx.full((128,), -1, mx.int32)}), "names group -1"),
    "a scalar": (lambda t: t.update({f"{Q}.qweight": mx.array(1, mx.int32)}), "a tensor without rows"),
}


@pytest.mark.parametrize(("change", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_tensors_that_contradict_config_json_are_named(tmp_path, change, message):
    with pytest.raises((CheckpointError, ConfigError), match=message):
        _ = changed(tmp_path / "release", change).parts


def test_act_order_needs_its_list(tmp_path):
    with pytest.raises(CheckpointError, match=r"desc_act is true .*g_idx is missing"):
        _ = changed(tmp_path / "release", lambda t: [t.pop(n) for n in list(t) if "g_idx" in n], order="blocks").parts


def test_modules_may_differ_if_config_json_says_so(tmp_path):
    release = write_gptq(tmp_path / "release", bits=8)
    path = release.folder / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"] |= {"bits": 4, "group_size": 128}
    path.write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="bits is 4 in quantization_config, but"):
        _ = Checkpoint(release.folder).parts
    config["quantization_config"]["dynamic"] = {r"+:.*": {"bits": 8, "group_size": 32}}
    path.write_text(json.dumps(config))
    check_values(release)


@pytest.mark.parametrize(
    ("leaf", "shape", "message"),
    [
        ("weight_scale_inv", (192, 2), r"q_proj.weight_scale_inv has shape \[192, 2\], but config.json gives \[2, 1\]"),
        ("weight_scale", (2,), r"q_proj.weight_scale has shape \[2\], but config.json gives \[2, 1\]"),
        ("weight_scale", (), r"holds .*q_proj.weight_scale, which"),
    ],
)
def test_scales_of_fp8_that_do_not_fit_are_named(tmp_path, leaf, shape, message):
    path = write_fp8(tmp_path / "release").folder / "model.safetensors"
    rename_dtype(path, {"weight": "U8"}, "F8_E4M3")
    tensors = mx.load(str(path))
    if shape:  # in place of the other
        del tensors[f"{Q}.weight_scale_inv"]
    mx.save_safetensors(str(path), {**tensors, f"{Q}.{leaf}": mx.ones(shape)}, {"format": "pt"})
    rename_dtype(path, {"weight": "F8_E4M3"})
    with pytest.raises(CheckpointError, match=message):
        _ = Checkpoint(path.parent).parts


@pytest.mark.parametrize(
    ("writer", "how"),
    [
        (write_gptq, {"bits": 8}),
        (write_gptq, {"group_size": 64, "head_dim": 16, "hidden_size": 96}),  # the last group is short
        (write_awq, {"group_size": 128, **WIDE}),
        (write_gptq, {"group_size": -1, **WIDE}),
    ],
)
def test_bits_and_groups_that_config_json_leaves_out_are_in_the_tensors(tmp_path, writer, how):
    release = writer(tmp_path / "release", **how)
    path = release.folder / "config.json"
    config = json.loads(path.read_text())
    for key in ("bits", "group_size"):
        del config["quantization_config"][key]
    path.write_text(json.dumps(config))
    check_values(release)


def test_fp8_without_scales_is_named(tmp_path):
    release = write_fp8(tmp_path / "release", skip=("q_proj",))
    path = release.folder / "model.safetensors"
    rename_dtype(path, {"weight": "U8"}, "F8_E4M3")
    tensors = mx.load(str(path))
    del tensors[f"{Q}.weight"]
    mx.save_safetensors(str(path), {**tensors, f"{Q}.weight": mx.zeros((192, 128), mx.uint8)}, {"format": "pt"})
    rename_dtype(path, {"weight": "F8_E4M3"})
    with pytest.raises(CheckpointError, match=r"q_proj is packed, but .*q_proj.weight_scale_inv is missing"):
        _ = Checkpoint(release.folder).parts


def test_a_plain_checkpoint_is_left_alone(tmp_path):
    folder = write_checkpoint(tmp_path / "plain")
    assert all(not leaf.made for part in Checkpoint(folder).parts.values() for leaf in part.leaves.values())


def test_a_packed_head_and_the_embedding_that_it_is_not_tied_to(tmp_path, ids):
    release = write_gptq(tmp_path / "release", head=True, tie_word_embeddings=False, vocab_size=160)
    check_values(release)
    check_logits(release, ids)
    assert Checkpoint(release.folder).parts["lm_head"].quantization == Quantization("affine", 4, 32)


MOE = {**TINY_MOE, **SIZES, "moe_intermediate_size": 64}


@pytest.mark.parametrize("write", [write_fp8, write_gptq, write_awq, write_compressed])
def test_experts_are_packed_too(tmp_path, ids, write):
    release = write(tmp_path / "release", **MOE)
    check_values(release)
    check_logits(release, ids)


@pytest.mark.parametrize("layout", ["native", "hf"])
@pytest.mark.parametrize("write", [write_fp8, write_gptq])
def test_experts_are_converted(tmp_path, layout, write):
    release = write(tmp_path / "release", **MOE)
    convert(release.folder, tmp_path / "out", layout=layout, dtype="fp32")
    check_values(Release(tmp_path / "out", release.weights))
