"""Every layout of a checkpoint gives the same parameters, and one that does not add up is refused."""

import json
import re
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from arrays import as_numpy
from checkpoints import TINY, random_weights, shapes, write_checkpoint
from mlx.utils import tree_flatten
from safetensors.numpy import load_file, save_file

from mlx_qwen3.conversion.convert import convert
from mlx_qwen3.errors import CheckpointError, ConfigError, Qwen3Error, UsageError
from mlx_qwen3.files.checkpoint import Checkpoint
from mlx_qwen3.files.layout import NAME_MAP
from mlx_qwen3.model.load import load_model


def parameters(folder: Path) -> dict[str, np.ndarray]:
    return {name: np.array(array) for name, array in tree_flatten(load_model(folder, "fp32").parameters())}


def fused(weights: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the parameters must be, by hand: parts stacked along the rows in the order q, k, v and gate, up."""
    result = {name.removeprefix("model."): value for name, value in weights.items()}
    for i in range(TINY["num_hidden_layers"]):
        for whole, names in (("self_attn.qkv", "qkv"), ("mlp.gate_up", ("gate", "up"))):
            block = f"layers.{i}.{whole.split('.')[0]}"
            parts = [result.pop(f"{block}.{name}_proj.weight") for name in names]
            result[f"layers.{i}.{whole}_proj.weight"] = np.concatenate(parts)
    return result


def assert_same(ours: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(ours[name], value, err_msg=name)


def sharded(folder: Path, weights: dict[str, np.ndarray], count: int, seed: int) -> None:
    """The tensors over `count` files in random order."""
    names = list(np.random.default_rng(seed).permutation(list(weights)))
    places = {}
    for number in range(count):
        file = f"model-{number + 1:05}-of-{count:05}.safetensors"
        mine = names[number::count]
        save_file({name: weights[name] for name in mine}, folder / file)
        places |= dict.fromkeys(mine, file)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def test_hugging_face(tiny):
    assert_same(parameters(tiny), fused(random_weights(TINY)))


def test_untied(untied):
    assert_same(parameters(untied), fused(random_weights({**TINY, "tie_word_embeddings": False})))


def test_keys_without_the_model_prefix(tmp_path):
    weights = {name.removeprefix("model."): value for name, value in random_weights(TINY).items()}
    assert_same(parameters(write_checkpoint(tmp_path, weights=weights)), fused(random_weights(TINY)))


@pytest.mark.parametrize("count", [1, 2, 7])
def test_shards_with_tensors_in_any_order(tmp_path, count):
    sharded(write_checkpoint(tmp_path), random_weights(TINY), count, seed=count)
    assert_same(parameters(tmp_path), fused(random_weights(TINY)))


@pytest.mark.parametrize(("dtype", "mlx_dtype"), [("bf16", mx.bfloat16), ("fp16", mx.float16), ("fp32", mx.float32)])
def test_every_float_dtype_is_read_and_given(tmp_path, dtype, mlx_dtype):
    folder = write_checkpoint(tmp_path)
    weights = {name: mx.array(value).astype(mlx_dtype) for name, value in random_weights(TINY).items()}
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    model = load_model(folder, dtype)
    assert {array.dtype for _, array in tree_flatten(model.parameters())} == {mlx_dtype}
    assert mx.array_equal(model.layers[1].mlp.down_proj.weight, weights["model.layers.1.mlp.down_proj.weight"])


def test_a_cpu_computes_in_float32_by_default(tmp_path):
    folder = write_checkpoint(tmp_path)
    weights = {name: mx.array(value).astype(mx.bfloat16) for name, value in random_weights(TINY).items()}
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    expected = mx.float32 if mx.default_device().type == mx.cpu else mx.bfloat16
    assert load_model(folder).norm.weight.dtype == expected


def test_a_repeated_lm_head_of_a_tied_checkpoint_is_the_embedding(tmp_path):
    weights = random_weights(TINY)
    repeated = {**weights, "lm_head.weight": weights["model.embed_tokens.weight"]}
    assert_same(parameters(write_checkpoint(tmp_path, weights=repeated)), fused(weights))


def test_native(tiny, tmp_path):
    convert(tiny, tmp_path / "native")
    assert_same(parameters(tmp_path / "native"), fused(random_weights(TINY)))


PACKABLE = {"hidden_size": 128, "head_dim": 32, "intermediate_size": 192}
PACKINGS: dict[str, dict[str, Any]] = {
    "affine 2": {"mode": "affine", "bits": 2, "group_size": 64},
    "affine 3": {"mode": "affine", "bits": 3, "group_size": 32},
    "affine 4": {"mode": "affine", "bits": 4, "group_size": 64},
    "affine 6": {"mode": "affine", "bits": 6, "group_size": 64},
    "affine 8": {"mode": "affine", "bits": 8, "group_size": 32},
    "mxfp4": {"mode": "mxfp4", "bits": 4, "group_size": 32},
    "mxfp8": {"mode": "mxfp8", "bits": 8, "group_size": 32},
    "nvfp4": {"mode": "nvfp4", "bits": 4, "group_size": 16},
}
MIXED = {"bits": 6, "group_size": 64, "mode": "affine"}


def mixed(path: str, module: Any) -> Any:
    """Other bits for v and one MLP, as mlx-lm's recipes mix them, and one part left in float."""
    if not hasattr(module, "to_quantized") or "layers.1.mlp.gate" in path:
        return False
    return MIXED if "v_proj" in path or "layers.0.mlp" in path else True


@pytest.fixture(params=[*PACKINGS, "mixed", "mixed untied"])
def packed(request, tmp_path):
    """A checkpoint that mlx-lm quantized and saved."""
    utils = pytest.importorskip("mlx_lm.utils")
    changes = {**PACKABLE, "tie_word_embeddings": request.param != "mixed untied"}
    model, config = utils.load_model(write_checkpoint(tmp_path / "source", **changes))
    packing = PACKINGS.get(request.param, PACKINGS["affine 4"])
    predicate = mixed if "mixed" in request.param else None
    model, config = utils.quantize_model(
        model, config, packing["group_size"], packing["bits"], packing["mode"], quant_predicate=predicate
    )
    (tmp_path / "packed").mkdir()
    utils.save_model(tmp_path / "packed", model)
    utils.save_config(config, tmp_path / "packed" / "config.json")
    return tmp_path / "packed"


def test_what_mlx_lm_quantized_gives_its_logits(packed, ids):
    from mlx_lm.utils import load_model as mlx_lm_load_model

    theirs = as_numpy(mlx_lm_load_model(packed)[0](mx.array(ids)))
    ours = as_numpy(load_model(packed, "fp32")(mx.array(ids)))
    # Measured 4e-7: fused and separate products of packed rows add up in the same order, attention does not.
    assert np.linalg.norm(ours - theirs) / np.linalg.norm(theirs) < 2e-6


def test_quantized_survives_native_and_back(packed, tmp_path):
    convert(packed, tmp_path / "native")
    convert(tmp_path / "native", tmp_path / "hf", layout="hf")
    before, after = load_file(packed / "model.safetensors"), load_file(tmp_path / "hf" / "model.safetensors")
    assert_same(after, before)


def test_quantized_hf_output_is_what_mlx_lm_wrote(packed, tmp_path, ids):
    from mlx_lm.utils import load_model as mlx_lm_load_model

    convert(packed, tmp_path / "native")
    convert(tmp_path / "native", tmp_path / "hf", layout="hf")
    before, after = (mlx_lm_load_model(folder)[0](mx.array(ids)) for folder in (packed, tmp_path / "hf"))
    assert mx.array_equal(before, after)


def test_logits_have_the_dtype_asked_for(packed, ids):
    """The fp4 and fp8 modes dequantize to bfloat16 by themselves."""
    assert load_model(packed, "fp16")(mx.array(ids)).dtype == mx.float16


def test_quantized_weights_stay_packed(packed):
    stored = sum(tensor.nbytes for tensor in Checkpoint(packed).tensors.values())
    loaded = sum(array.nbytes for _, array in tree_flatten(load_model(packed, "fp32").parameters()))
    assert loaded <= stored * 1.01


def test_a_packing_that_the_tensors_contradict_is_refused(packed):
    config = json.loads((packed / "config.json").read_text())
    config.pop("quantization_config")
    wrong = {"mode": "affine", "bits": 5, "group_size": 128}
    config["quantization"] = {**wrong, "model.layers.0.mlp.up_proj": wrong}  # without a name the shapes decide
    (packed / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"config\.json gives|expected"):
        load_model(packed)


def test_scales_without_a_quantization_in_the_config_are_refused(packed):
    config = json.loads((packed / "config.json").read_text())
    del config["quantization"], config["quantization_config"]
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
    "missing layer": (lambda w: None, {"num_hidden_layers": 3}, r"lacks layers\.2.* and 10 more tensors; .*3 layers"),
    "extra layer": (lambda w: None, {"num_hidden_layers": 1}, r"holds layers\.1.* and 10 more tensors"),
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
        "lora_A.weight, an adapter, .*merge_and_unload",
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


@pytest.mark.parametrize("keep", [0, 7, 100, 3000, -1])
def test_a_truncated_file_is_refused(tmp_path, keep):
    path = write_checkpoint(tmp_path) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not a whole safetensors file"):
        load_model(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.pt", "model.pth"])
def test_pickle_weights_are_refused_by_name(tmp_path, name):
    (write_checkpoint(tmp_path) / "model.safetensors").rename(tmp_path / name)
    with pytest.raises(CheckpointError, match=f"{re.escape(name)}, a pickle file"):
        load_model(tmp_path)


def test_a_folder_without_weights_says_so(tmp_path):
    (write_checkpoint(tmp_path) / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has no model\*\.safetensors"):
        load_model(tmp_path)


def spoiled_index(folder: Path, change: Any) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update({"model.norm.weight": "model-00009-of-00003.safetensors"}), "lacks model-00009"),
        (
            lambda m: m.update({"ghost.weight": "model-00001-of-00003.safetensors"}),
            "ghost.weight is in .*but in no file",
        ),
        (lambda m: m.update({"model.norm.weight": "../elsewhere.safetensors"}), "names the file '../elsewhere"),
        (lambda m: [m.pop(k) for k, v in list(m.items()) if "00002" in v], "has model-00002.*does not list"),
        (lambda m: m.clear(), "has no weight_map"),
    ],
)
def test_an_index_that_lies_is_refused(tmp_path, change, message):
    sharded(write_checkpoint(tmp_path), random_weights(TINY), 3, seed=0)
    spoiled_index(tmp_path, change)
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path)


def test_a_tensor_in_two_files_is_refused(tmp_path):
    write_checkpoint(tmp_path)
    save_file({"model.norm.weight": np.ones(48, np.float32)}, tmp_path / "model-extra.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight is stored twice"):
        load_model(tmp_path)


def test_float16_that_overflows_is_refused(tmp_path):
    weights = random_weights(TINY)
    weights["model.layers.0.mlp.down_proj.weight"][3, 5] = 1e5
    with pytest.raises(CheckpointError, match=r"down_proj\.weight reaches 100000, past float16's 65504"):
        load_model(write_checkpoint(tmp_path, weights=weights), "fp16")


def test_an_unknown_dtype_is_refused(tiny):
    with pytest.raises(UsageError, match="dtype is 'int8'; expected bf16, fp16, fp32"):
        load_model(tiny, "int8")


def test_the_parts_are_what_hugging_face_stores(tiny):
    parts = Checkpoint(tiny).parts
    assert {f"model.{name}.weight" for name in parts} == shapes(TINY).keys()
    assert {name for names in NAME_MAP.values() for name in names} < {name.split(".", 2)[-1] for name in parts}
