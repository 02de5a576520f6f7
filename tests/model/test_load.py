"""Every layout of a checkpoint gives the same parameters, and mlx-lm's quantized folders give mlx-lm's logits."""

import os
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from arrays import as_numpy
from checkpoints import (
    AFFINE_4,
    PACKABLE,
    PACKINGS,
    TINY,
    TINY_MOE,
    random_weights,
    write_checkpoint,
    write_packed,
    write_shards,
)
from mlx.utils import tree_flatten
from safetensors.numpy import load_file

import mlx_qwen3
from mlx_qwen3.conversion.convert import convert
from mlx_qwen3.errors import CheckpointError, UsageError
from mlx_qwen3.files.checkpoint import Checkpoint
from mlx_qwen3.files.filling import Fill
from mlx_qwen3.model.linear import ConcatLinear
from mlx_qwen3.model.load import Loading, load_model
from mlx_qwen3.model.qwen3 import Qwen3
from mlx_qwen3.text import tokenizer


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


def test_hugging_face(tiny):
    assert_same(parameters(tiny), fused(random_weights(TINY)))


def test_untied(untied):
    assert_same(parameters(untied), fused(random_weights({**TINY, "tie_word_embeddings": False})))


def test_keys_without_the_model_prefix(tmp_path):
    weights = {name.removeprefix("model."): value for name, value in random_weights(TINY).items()}
    assert_same(parameters(write_checkpoint(tmp_path, weights=weights)), fused(random_weights(TINY)))


@pytest.mark.parametrize("count", [1, 2, 7])
def test_shards_with_tensors_in_any_order(tmp_path, count):
    write_shards(write_checkpoint(tmp_path), count, seed=count)
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


def test_unpacked_weights_are_fused_whatever_their_bits(tmp_path, ids):
    """Parts of other bits, which lie side by side if they stay packed, share one matrix of values."""
    changes = {"up_proj": PACKINGS["affine 8"], "v_proj": PACKINGS["mxfp4"]}
    folder = write_packed(tmp_path, AFFINE_4, changes, tie_word_embeddings=False)
    packed, unpacked = load_model(folder, "fp32"), load_model(folder, "fp32", unpack=True)
    assert isinstance(packed.layers[0].mlp.gate_up_proj, ConcatLinear)
    assert [name for name, _ in tree_flatten(unpacked.parameters())] == [
        name for name, _ in tree_flatten(Qwen3(unpacked.config).parameters())
    ]
    a, b = (as_numpy(model(mx.array(ids))) for model in (packed, unpacked))
    assert np.linalg.norm(a - b) / np.linalg.norm(a) < 5e-6  # measured 3e-7: a BLAS adds up in another order


def test_unpacked_experts_compute_what_packed_ones_do(tmp_path, ids):
    folder = write_packed(tmp_path, AFFINE_4, **{**TINY_MOE, **PACKABLE, "moe_intermediate_size": 64})
    packed, unpacked = load_model(folder, "fp32"), load_model(folder, "fp32", unpack=True)
    assert (packed.unpacked, unpacked.unpacked) == (False, True)
    experts = unpacked.layers[0].mlp.experts
    assert experts.gate_up_proj.weight.shape == (TINY_MOE["num_experts"], 128, 128)
    a, b = (as_numpy(model(mx.array(ids))) for model in (packed, unpacked))
    assert np.linalg.norm(a - b) / np.linalg.norm(a) < 5e-6


def test_unpacking_needs_no_memory_beside_the_result(packed):
    mx.clear_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    model = load_model(packed, "fp32", unpack=True)
    assert mx.get_peak_memory() - before <= 1.01 * model.nbytes


def test_a_plain_checkpoint_has_nothing_to_unpack(tiny):
    plain, same = load_model(tiny), load_model(tiny, unpack=True)
    assert not same.unpacked
    assert same.fingerprint == plain.fingerprint


def test_float16_that_overflows_is_refused(tmp_path):
    weights = random_weights(TINY)
    weights["model.layers.0.mlp.down_proj.weight"][3, 5] = 1e5
    with pytest.raises(CheckpointError, match=r"down_proj\.weight reaches 100000, past float16's 65504"):
        load_model(write_checkpoint(tmp_path, weights=weights), "fp16")


def test_an_unknown_dtype_is_refused(tiny):
    with pytest.raises(UsageError, match="dtype is 'int8'; expected bf16, fp16, fp32"):
        load_model(tiny, "int8")


def test_an_error_of_the_weights_comes_before_one_of_the_tokenizer(tmp_path, monkeypatch):
    """They are read while the tokenizer is parsed. Here it cannot be, and meanwhile the file becomes shorter."""
    file = write_checkpoint(tmp_path) / "model.safetensors"

    def no_tokenizer(checkpoint):
        os.truncate(file, file.stat().st_size - 100)
        raise CheckpointError("no tokenizer")

    monkeypatch.setattr(tokenizer, "Tokenizer", no_tokenizer)
    with pytest.raises(CheckpointError, match=r"model\.safetensors ends inside"):
        mlx_qwen3.load(tmp_path)


def test_a_load_that_is_left_reads_no_further(tiny, monkeypatch):
    stopped = []
    monkeypatch.setattr(Fill, "stop", lambda fill: stopped.append(fill))
    with pytest.raises(KeyboardInterrupt), Loading(Checkpoint(tiny)):
        raise KeyboardInterrupt
    assert len(stopped) == 1
