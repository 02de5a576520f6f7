"""Quantization: the result is that of mlx-lm, bit for bit, and its error is measured."""

import json
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from arrays import as_numpy
from checkpoints import TINY, random_weights, stored, write_checkpoint
from mlx.utils import tree_flatten
from quantizing import GROUPS, MODES, MOE, PACKABLE, in_mlx_terms, source_in

from mlx_qwen3.conversion import quantize, shards
from mlx_qwen3.conversion.convert import convert
from mlx_qwen3.conversion.plan import Options, make_plan
from mlx_qwen3.conversion.quantize import parse
from mlx_qwen3.conversion.shards import write_shard
from mlx_qwen3.engine.decode import generate_batch
from mlx_qwen3.errors import CheckpointError, UsageError
from mlx_qwen3.files.checkpoint import Checkpoint
from mlx_qwen3.files.names import NAME_MAP
from mlx_qwen3.files.quantization import Quantization
from mlx_qwen3.model.load import load_model
from mlx_qwen3.progress import Stage, silent


def by_mlx_lm(source: Path, folder: Path, **how: Any) -> Path:
    """A folder that mlx-lm quantized and saved."""
    utils = pytest.importorskip("mlx_lm.utils")
    model, config = utils.load_model(source, lazy=True)
    model, config = utils.quantize_model(model, config, how["group_size"], how["bits"], mode=how["mode"])
    folder.mkdir()
    utils.save_model(folder, model)
    utils.save_config(config, folder / "config.json")
    return folder


def stacked(tensors: dict[str, Any]) -> dict[str, Any]:
    """Hugging Face tensors (dtype, shape, bytes) as the native layout has them, by hand."""
    result = {name.removeprefix("model."): value for name, value in tensors.items()}
    for layer in range(TINY["num_hidden_layers"]):
        for whole, names in NAME_MAP.items():
            for leaf in ("weight", "scales", "biases"):
                parts = [result.pop(f"layers.{layer}.{name}.{leaf}", None) for name in names]
                if parts[0] is not None:
                    shape = (sum(part[1][0] for part in parts), *parts[0][1][1:])
                    raw = b"".join(part[2] for part in parts)
                    result[f"layers.{layer}.{whole}.{leaf}"] = (parts[0][0], shape, raw)
    return result


@pytest.mark.parametrize("spec", MODES)
def test_the_result_is_that_of_mlx_lm_bit_for_bit(spec, tmp_path):
    source = source_in(tmp_path / "source", mx.bfloat16)
    theirs = stored(by_mlx_lm(source, tmp_path / "theirs", **in_mlx_terms(spec)))
    convert(source, tmp_path / "hf", quantize=spec, layout="hf", divergence=False)
    convert(source, tmp_path / "native", quantize=spec, layout="native", divergence=False)
    assert stored(tmp_path / "hf") == theirs
    assert stored(tmp_path / "native") == stacked(theirs)


@pytest.mark.parametrize("spec", ["affine4", "affine3g32", "mxfp4", "mxfp8", "nvfp4"])
@pytest.mark.parametrize("dtype", [mx.float32, mx.float16], ids=str)
@pytest.mark.parametrize("tied", [True, False])
def test_so_it_is_from_other_dtypes_and_untied(spec, dtype, tied, tmp_path):
    source = source_in(tmp_path / "source", dtype, tie_word_embeddings=tied)
    theirs = stored(by_mlx_lm(source, tmp_path / "theirs", **in_mlx_terms(spec)))
    convert(source, tmp_path / "hf", quantize=spec, layout="hf", divergence=False)
    assert stored(tmp_path / "hf") == theirs


@pytest.mark.parametrize("option", ["bf16", "fp16", None])
@pytest.mark.parametrize("spec", ["affine4", "mxfp4", "mxfp8", "nvfp4"])
def test_a_dtype_is_cast_to_before_packing_as_mlx_lm_does(spec, option, tmp_path):
    """mlx_lm.convert itself, from float32 to what config.json or its option says."""
    module = pytest.importorskip("mlx_lm.convert")
    source = source_in(tmp_path / "source", mx.float32)
    long = {"bf16": "bfloat16", "fp16": "float16", None: None}[option]
    from mlx_lm import utils

    patch = pytest.MonkeyPatch()
    patch.setattr(
        module, "load", lambda path, **_: (*(lambda m: (m[0], None, m[1]))(utils.load_model(Path(path), lazy=True)),)
    )
    saved = {}
    patch.setattr(
        module, "save", lambda out, path, model, tokenizer, config: saved.update(tree_flatten(model.parameters()))
    )
    with patch.context():
        module.convert(
            str(source),
            str(tmp_path / "none"),
            quantize=True,
            q_mode=spec.rstrip("4") if spec == "affine4" else spec,
            dtype=long,
        )
    patch.undo()
    convert(source, tmp_path / "ours", quantize=spec, dtype=option, layout="hf", divergence=False)
    ours = mx.load(str(tmp_path / "ours" / "model.safetensors"))
    assert ours.keys() == saved.keys()
    for name, array in saved.items():
        assert array.dtype == ours[name].dtype, name
        assert mx.array_equal(array, ours[name]), name


def test_mlx_lm_loads_the_hf_layout_and_computes_the_same(tmp_path, ids):
    utils = pytest.importorskip("mlx_lm.utils")
    source = source_in(tmp_path / "source", mx.float32)
    for spec in ("affine4", "mxfp8", "mixed"):
        convert(source, tmp_path / f"{spec} hf", quantize=spec, layout="hf", divergence=False)
        convert(source, tmp_path / spec, quantize=spec, layout="native", divergence=False)
        theirs = as_numpy(utils.load_model(tmp_path / f"{spec} hf")[0](mx.array(ids)))
        ours = as_numpy(load_model(tmp_path / spec, "fp32")(mx.array(ids)))
        assert np.abs(ours - theirs).max() < 5e-5


def test_norms_stay_in_float_and_every_matrix_is_packed(tmp_path):
    source = source_in(tmp_path / "source", mx.bfloat16, tie_word_embeddings=False)
    certificate = convert(source, tmp_path / "out", quantize="affine4", layout="native")
    for record in certificate.tensors:
        norm = "norm" in record.name
        assert record.made == "copied" if norm else "quantized affine 4 bits, groups of 64" in record.made
        assert record.dtype == ("U32" if record.name.endswith("weight") and not norm else "BF16")
    assert {r.name.rsplit(".", 1)[0] for r in certificate.tensors if r.dtype == "U32"} >= {"embed_tokens", "lm_head"}


def test_rows_of_incomplete_groups_stay_in_float_as_in_mlx_lm_and_the_certificate_says_so(tmp_path):
    source = source_in(tmp_path / "source", mx.bfloat16, intermediate_size=96)
    theirs = stored(by_mlx_lm(source, tmp_path / "theirs", **in_mlx_terms("affine4")))
    certificate = convert(source, tmp_path / "hf", quantize="affine4", layout="hf")
    assert stored(tmp_path / "hf") == theirs
    notes = {record.name: record.note for record in certificate.tensors if record.note}
    expected = "not quantized: 96 columns are not a multiple of 64"
    assert notes == {f"model.layers.{i}.mlp.down_proj.weight": expected for i in (0, 1)}
    assert mx.array_equal(
        load_model(tmp_path / "hf")(mx.array([[1, 2]])), load_model(tmp_path / "theirs")(mx.array([[1, 2]]))
    )


def test_an_odd_number_of_groups_of_nvfp4_stays_in_float(tmp_path):
    """MLX packs two groups at a time: its own quantize fails on 151 x 112, and so does mlx-lm."""
    with pytest.raises(ValueError, match="reshape"):
        mx.quantize(mx.zeros((151, 112)), mode="nvfp4")
    source = source_in(tmp_path / "source", mx.bfloat16, hidden_size=112)
    certificate = convert(source, tmp_path / "out", quantize="nvfp4")
    notes = {record.name: record.note for record in certificate.tensors if record.note}
    assert notes["model.embed_tokens.weight"] == "not quantized: 112 columns are not a multiple of 32"
    assert {name.split(".")[-2] for name in notes} == set("embed_tokens q_proj k_proj v_proj gate_proj up_proj".split())
    load_model(tmp_path / "out")(mx.array([[1, 2, 3]]))


@pytest.mark.parametrize("quantize", ["affine4", "mxfp4", "mixed"])
def test_a_model_that_nothing_fits_is_an_error(quantize, tmp_path):
    source = write_checkpoint(tmp_path / "source")
    message = "no width is a multiple of that: they are 48, 80, 120; this model cannot be quantized"
    with pytest.raises(CheckpointError, match=message) as error:
        convert(source, tmp_path / "out", quantize=quantize)
    assert error.value.exit_code == 1
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_smaller_groups_are_the_remedy_if_they_fit(tmp_path):
    source = write_checkpoint(tmp_path / "source", hidden_size=96, intermediate_size=96, num_attention_heads=2)
    with pytest.raises(CheckpointError, match="they are 40, 96; use groups of 32, affine4g32"):
        convert(source, tmp_path / "out", quantize="affine4")
    convert(source, tmp_path / "out", quantize="affine4g32", divergence=False)


@pytest.mark.parametrize("spec", [*MODES, "mixed"])
def test_what_is_quantized_has_the_layout_that_mlx_lm_reads(spec, tmp_path, ids):
    """Unless another is asked for."""
    utils = pytest.importorskip("mlx_lm.utils")
    source = source_in(tmp_path / "source", mx.float32)
    assert convert(source, tmp_path / "out", quantize=spec, divergence=False).layout == "hf"
    theirs = as_numpy(utils.load_model(tmp_path / "out")[0](mx.array(ids)))
    assert np.isfinite(theirs).all()
    assert convert(source, tmp_path / "native", quantize=spec, layout="native", divergence=False).layout == "native"
    assert convert(source, tmp_path / "plain", divergence=False).layout == "native"


@pytest.mark.parametrize("spec", ["affine4", "affine3", "mxfp4", "mxfp8", "nvfp4"])
def test_unpacking_gives_what_mlx_lm_dequantizes(spec, tmp_path):
    source = source_in(tmp_path / "source", mx.bfloat16)
    packed = by_mlx_lm(source, tmp_path / "packed", **in_mlx_terms(spec))
    from mlx_lm import utils

    model = utils.dequantize_model(utils.load_model(packed)[0])
    theirs = dict(tree_flatten(model.parameters()))
    convert(packed, tmp_path / "native", divergence=False)
    for start in (packed, tmp_path / "native"):
        out = tmp_path / f"from {start.name}"
        certificate = convert(start, out, quantize="none", layout="hf")
        ours = mx.load(str(out / "model.safetensors"))
        assert ours.keys() == theirs.keys()
        assert all(mx.array_equal(array, theirs[name]) for name, array in ours.items())
        assert {array.dtype for array in ours.values()} == {mx.bfloat16}
        assert certificate.dtype == "bfloat16"
        assert certificate.quantize == "none"
        assert "quantization" not in json.loads((out / "config.json").read_text())
        assert certificate.divergence.kl_mean < 1e-4  # roundings to bfloat16


def test_unpacking_to_another_dtype_rounds_once(tmp_path):
    source = source_in(tmp_path / "source", mx.float32)
    convert(source, tmp_path / "packed", quantize="affine5", layout="hf", divergence=False)
    packed = mx.load(str(tmp_path / "packed" / "model.safetensors"))
    convert(tmp_path / "packed", tmp_path / "out", quantize="none", dtype="bf16", layout="native", divergence=False)
    name = "model.layers.1.mlp.down_proj"
    exact = mx.dequantize(*(packed[f"{name}.{leaf}"] for leaf in ("weight", "scales", "biases")), 64, 5)
    result = mx.load(str(tmp_path / "out" / "model.safetensors"))["layers.1.mlp.down_proj.weight"]
    assert mx.array_equal(result, exact.astype(mx.bfloat16))


def test_unpacking_stacks_parts_that_were_packed_in_different_ways(tmp_path):
    utils = pytest.importorskip("mlx_lm.utils")
    source = source_in(tmp_path / "source", mx.bfloat16)
    model, config = utils.load_model(source, lazy=True)

    def predicate(path, module):
        if "k_proj" in path:
            return False
        return {"mode": "affine", "bits": 6, "group_size": 32} if "v_proj" in path else True

    model, config = utils.quantize_model(model, config, 64, 4, quant_predicate=predicate)
    (tmp_path / "packed").mkdir()
    utils.save_model(tmp_path / "packed", model)
    utils.save_config(config, tmp_path / "packed" / "config.json")
    theirs = dict(tree_flatten(utils.dequantize_model(utils.load_model(tmp_path / "packed")[0]).parameters()))
    certificate = convert(tmp_path / "packed", tmp_path / "out", quantize="none", layout="native")
    ours = mx.load(str(tmp_path / "out" / "model.safetensors"))
    expected = mx.concatenate([theirs[f"model.layers.1.self_attn.{name}_proj.weight"] for name in "qkv"])
    assert mx.array_equal(ours["layers.1.self_attn.qkv_proj.weight"], expected)
    made = {record.name: record.made for record in certificate.tensors}
    assert made["layers.1.self_attn.qkv_proj.weight"] == "fused, dequantized"


@pytest.mark.parametrize("spec", ["affine4", "mxfp4", "mixed"])
def test_a_packed_source_is_not_packed_again(spec, tmp_path):
    source = source_in(tmp_path / "source", mx.bfloat16)
    convert(source, tmp_path / "packed", quantize="affine8", divergence=False)
    message = r"is packed already \(affine, 8 bits, groups of 64\); .* --quantize none"
    with pytest.raises(UsageError, match=message):
        convert(tmp_path / "packed", tmp_path / "out", quantize=spec)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("spec", ["affine", "affine7", "affine1", "affine4g16", "affine4g", "int4", "4", "mxfp6", ""])
def test_an_unknown_mode_is_refused(spec, tiny, tmp_path):
    with pytest.raises(UsageError, match=r"expected affine.*mxfp4, mxfp8, nvfp4, mixed"):
        convert(tiny, tmp_path / "out", quantize=spec)


@pytest.mark.parametrize("spec", MODES)
def test_modes_in_words(spec):
    assert parse(spec) == Quantization(**in_mlx_terms(spec))


# --- experts

EXPERT_MODES = ["affine2", "affine3g32", "affine4", "affine4g128", "affine5", "affine6", "affine8", *GROUPS]


def greedy_by_mlx_lm(folder: Path, prompt: list[int], count: int) -> list[int]:
    model = pytest.importorskip("mlx_lm.utils").load_model(folder)[0]
    ids = list(prompt)
    for _ in range(count):
        ids.append(mx.argmax(model(mx.array([ids]))[0, -1]).item())
    return ids[len(prompt) :]


def packings_of(folder: Path) -> dict[str, Quantization | None]:
    return {name: part.quantization for name, part in Checkpoint(folder).parts.items()}


@pytest.mark.parametrize("spec", EXPERT_MODES)
def test_experts_are_packed_as_by_mlx_lm_and_all_folders_say_the_same(spec, tmp_path):
    """Bits, packings and tokens: mlx-lm's folder, ours in its layout, and ours in the native layout."""
    source = source_in(tmp_path / "source", mx.float32, **MOE)
    folders = [by_mlx_lm(source, tmp_path / "theirs", **in_mlx_terms(spec))]
    for layout in ("hf", "native"):
        convert(source, tmp_path / layout, quantize=spec, layout=layout, divergence=False)
        folders.append(tmp_path / layout)
    assert stored(folders[1]) == stored(folders[0])
    assert packings_of(folders[2]) == packings_of(folders[1]) == packings_of(folders[0])
    expected = greedy_by_mlx_lm(folders[0], [5, 17, 101], 16)
    assert greedy_by_mlx_lm(folders[1], [5, 17, 101], 16) == expected
    for folder in folders:
        assert generate_batch(load_model(folder, "fp32"), [[5, 17, 101]], max_tokens=16) == [expected]


@pytest.mark.parametrize("spec", [*EXPERT_MODES, "mixed"])
def test_the_router_has_8_bits_in_every_mode(spec, tmp_path):
    convert(source_in(tmp_path / "source", mx.bfloat16, **MOE), tmp_path / "out", quantize=spec, divergence=False)
    parts = packings_of(tmp_path / "out")
    for layer in (0, 2):
        assert parts[f"layers.{layer}.mlp.gate"] == Quantization("affine", 8, 64)
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization"]
    assert config.get("model.layers.2.mlp.gate", config)["bits"] == 8


def test_a_router_of_a_width_for_groups_of_32_has_them(tmp_path):
    """mlx-lm fails on it."""
    source = source_in(tmp_path / "source", mx.bfloat16, **MOE, hidden_size=96)
    convert(source, tmp_path / "out", quantize="affine4g32")
    parts = packings_of(tmp_path / "out")
    assert parts["layers.0.mlp.gate"] == Quantization("affine", 8, 32)
    assert parts["layers.0.mlp.experts.3.up_proj"] == Quantization("affine", 4, 32)


def test_if_only_gate_and_up_fit_all_experts_are_in_the_stacks_of_mlx_lm(tmp_path, ids):
    source = source_in(tmp_path / "source", mx.float32, **{**MOE, "moe_intermediate_size": 96})
    theirs = by_mlx_lm(source, tmp_path / "theirs", **in_mlx_terms("affine4"))
    certificate = convert(source, tmp_path / "hf", quantize="affine4")
    assert stored(tmp_path / "hf") == stored(theirs)
    notes = {record.name: record.note for record in certificate.tensors if record.note}
    expected = "not quantized: 96 columns are not a multiple of 64"
    assert notes == {f"model.layers.{i}.mlp.switch_mlp.down_proj.weight": expected for i in (0, 2)}
    convert(source, tmp_path / "native", quantize="affine4", layout="native", divergence=False)
    model = pytest.importorskip("mlx_lm.utils").load_model(theirs)[0]
    for folder in (theirs, tmp_path / "hf", tmp_path / "native"):
        assert np.abs(as_numpy(load_model(folder)(ids)) - as_numpy(model(mx.array(ids)))).max() < 5e-5


@pytest.mark.parametrize("spec", ["affine4", "mxfp4", "nvfp4"])
def test_packed_experts_of_mlx_lm_go_to_native_and_back_and_are_unpacked_as_by_mlx_lm(spec, tmp_path):
    source = source_in(tmp_path / "source", mx.bfloat16, **MOE)
    theirs = by_mlx_lm(source, tmp_path / "theirs", **in_mlx_terms(spec))
    convert(theirs, tmp_path / "native", layout="native", divergence=False)
    convert(tmp_path / "native", tmp_path / "back", layout="hf", divergence=False)
    assert stored(tmp_path / "back") == stored(theirs)
    assert "layers.0.mlp.experts.gate_up_proj.scales" in stored(tmp_path / "native")
    utils = pytest.importorskip("mlx_lm.utils")
    values = dict(tree_flatten(utils.dequantize_model(utils.load_model(theirs)[0]).parameters()))
    for start in (theirs, tmp_path / "native"):
        out = tmp_path / f"from {start.name}"
        convert(start, out, quantize="none", layout="hf", divergence=False)
        ours = mx.load(str(out / "model.safetensors"))
        assert ours.keys() == random_weights({**TINY, **PACKABLE, **MOE}).keys()  # each expert by itself, as released
        for layer, expert, name in ((0, 0, "gate_proj"), (0, 6, "up_proj"), (2, 3, "down_proj")):
            prefix = f"model.layers.{layer}.mlp"
            expected = values[f"{prefix}.switch_mlp.{name}.weight"][expert]
            assert mx.array_equal(ours[f"{prefix}.experts.{expert}.{name}.weight"], expected)
        assert mx.array_equal(ours["model.layers.2.mlp.gate.weight"], values["model.layers.2.mlp.gate.weight"])


def test_mixed_gives_each_group_of_experts_its_bits(tmp_path, ids):
    """One outlier in every group of one expert's down projection: that stack gets more bits than the others."""
    source = source_in(tmp_path / "source", mx.float32, **MOE)
    weights = mx.load(str(source / "model.safetensors"))
    name = "model.layers.2.mlp.experts.5.down_proj.weight"
    weights[name][:, ::64] *= 20
    mx.save_safetensors(str(source / "model.safetensors"), weights, {"format": "pt"})
    for layout in ("hf", "native"):
        made = convert(source, tmp_path / layout, quantize="mixed", bits=5.4, layout=layout, divergence=False)
        assert 4.9 < made.bits_per_weight <= 5.4
    bits = bits_of(tmp_path / "hf")
    assert bits == bits_of(tmp_path / "native")
    assert bits["layers.2.mlp.experts.5.down_proj"] > bits["layers.0.mlp.experts.5.down_proj"]
    for layer in (0, 2):
        assert len({bits[f"layers.{layer}.mlp.experts.{expert}.down_proj"] for expert in range(7)}) == 1
        both = [f"layers.{layer}.mlp.experts.{expert}.{part}_proj" for expert in range(7) for part in ("gate", "up")]
        assert len({bits[part] for part in both}) == 1
    theirs = as_numpy(pytest.importorskip("mlx_lm.utils").load_model(tmp_path / "hf")[0](mx.array(ids)))
    for layout in ("hf", "native"):
        assert np.abs(as_numpy(load_model(tmp_path / layout)(ids)) - theirs).max() < 5e-5


def test_the_next_blocks_are_started_before_one_is_measured():
    started: list[int] = []
    items = (started.append(index) or index for index in range(5))
    assert [(item, len(started)) for item in quantize._ahead(items)] == [(0, 3), (1, 4), (2, 5), (3, 5), (4, 5)]


def test_several_threads_convert_at_once(tmp_path):
    """MLX's streams belong to a thread, so each packs on its own."""
    source = source_in(tmp_path / "source", mx.float32)
    folders = [tmp_path / str(number) for number in range(3)]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda out: convert(source, out, quantize="affine4", divergence=False), folders[:2]))
    convert(source, folders[2], quantize="affine4", divergence=False)
    assert stored(folders[0]) == stored(folders[1]) == stored(folders[2])


def test_the_memory_of_packing_a_stack_is_that_of_a_block(tmp_path, monkeypatch):
    """Not of the stack, nor of its scales: here these take 16.8 and 1.0 MB, a block 0.07 MB."""
    monkeypatch.setattr(quantize, "READ_BYTES", 1 << 16)
    monkeypatch.setattr(shards, "READ_BYTES", 1 << 16)
    source = source_in(tmp_path / "source", mx.float32, **{**MOE, "num_experts": 64, "hidden_size": 256})
    for layout in ("hf", "native"):
        plan = make_plan(Checkpoint(source), Options(layout=layout, quantize="affine8g32"))
        mx.clear_cache()
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        tracemalloc.start()
        folder = tmp_path / layout
        folder.mkdir()
        write_shard(folder, plan.shards[0], "pt", silent, Stage("", 1, ""))
        _, python = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert python + mx.get_peak_memory() - before < 1.2e6  # measured: 0.63e6


# --- mixed


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    """One layer's value projection has an outlier in every group, so that few bits give it the largest error."""
    config = {**TINY, **PACKABLE, "num_hidden_layers": 3}
    weights = random_weights(config)
    name = "model.layers.1.self_attn.v_proj.weight"
    weights[name][:, ::64] *= 20
    return write_checkpoint(tmp_path_factory.mktemp("uneven"), config, weights)


def bits_of(folder: Path) -> dict[str, int]:
    parts = Checkpoint(folder).parts
    return {name: part.quantization.bits for name, part in parts.items() if part.quantization}


@pytest.mark.parametrize("budget", [3.2, 4.2, 5.0, 6.3, 7.5, 30])
@pytest.mark.parametrize("layout", ["native", "hf"])
def test_mixed_keeps_to_its_budget(uneven, budget, layout, tmp_path):
    # float32 scales: 1 bit a weight more than the codes
    certificate = convert(uneven, tmp_path / "out", quantize="mixed", bits=budget, layout=layout, divergence=False)
    size = sum(record.bytes for record in certificate.tensors) * 8
    weights = sum(np.prod(array.shape) for array in mx.load(str(uneven / "model.safetensors")).values())
    assert certificate.bits_per_weight == pytest.approx(size / weights)
    assert size / weights <= budget
    if budget < 9:
        assert size / weights > budget - 0.5  # and uses it: no step costs more than a fifth of the model by a bit
    else:
        assert set(bits_of(tmp_path / "out").values()) == {8}


def test_mixed_gives_more_bits_where_the_error_is_larger(uneven, tmp_path):
    convert(uneven, tmp_path / "out", quantize="mixed", bits=5.2, divergence=False)
    bits = bits_of(tmp_path / "out")
    assert bits["layers.1.self_attn.v_proj"] > bits["layers.0.self_attn.v_proj"]
    assert bits["layers.1.self_attn.v_proj"] == max(bits.values())


def test_what_is_fused_shares_its_packing(uneven, tmp_path):
    convert(uneven, tmp_path / "out", quantize="mixed", bits=5.2, layout="native", divergence=False)
    names = {name.rsplit(".", 1)[0] for name in stored(tmp_path / "out")}
    assert {f"layers.{i}.{fused}" for i in range(3) for fused in NAME_MAP} < names
    bits = bits_of(tmp_path / "out")
    assert len(set(bits.values())) > 1
    for layer in range(3):
        for parts in NAME_MAP.values():
            assert len({bits[f"layers.{layer}.{part}"] for part in parts}) == 1


def test_mixed_is_the_same_each_time_and_in_both_layouts(uneven, tmp_path):
    for name, layout in (("a", "native"), ("b", "native"), ("hf", "hf")):
        convert(uneven, tmp_path / name, quantize="mixed", bits=5.2, layout=layout, divergence=False)
    assert stored(tmp_path / "a") == stored(tmp_path / "b")
    assert bits_of(tmp_path / "a") == bits_of(tmp_path / "hf")
    assert mx.allclose(
        load_model(tmp_path / "a")(mx.array([[1, 2]])), load_model(tmp_path / "hf")(mx.array([[1, 2]])), atol=1e-5
    )


def test_a_larger_budget_never_takes_bits_from_a_module(uneven, tmp_path):
    budgets = [3.6, 4.6, 5.6, 6.6]
    results = []
    for budget in budgets:
        convert(uneven, tmp_path / str(budget), quantize="mixed", bits=budget, divergence=False)
        results.append(bits_of(tmp_path / str(budget)))
    for less, more in pairwise(results):
        assert sum(less.values()) < sum(more.values())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantize": "mixed", "bits": float("nan")}, "bits is nan; expected bits per weight"),
        ({"quantize": "mixed", "bits": float("inf")}, "bits is inf; expected bits per weight"),
        ({"quantize": "mixed", "bits": 1.5}, "bits is 1.5; this model needs 3.* at the least"),
        ({"quantize": "affine4", "bits": 4.5}, "bits is 4.5, but quantize is 'affine4'"),
        ({"bits": 4.5}, "bits is 4.5, but quantize is None"),
    ],
)
def test_a_wrong_budget(uneven, options, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        convert(uneven, tmp_path / "out", **options)
    assert list(tmp_path.iterdir()) == []


# --- the error of a tensor
