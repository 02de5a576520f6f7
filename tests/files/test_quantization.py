"""Quantization maps: what they mean, and what mlx-lm writes."""

import json
import shutil
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from arrays import as_numpy
from checkpoints import AFFINE_4, PACKABLE, TINY, VOCABULARY, write_checkpoint, write_packed, write_tokenizer

from mlx_qwen3.errors import CheckpointError, ConfigError
from mlx_qwen3.files.checkpoint import Checkpoint
from mlx_qwen3.files.config import Qwen3Config
from mlx_qwen3.files.quantization import QUANTIZATION_MODES, Quantization, inferred
from mlx_qwen3.model.load import load_model


def read(**changes: Any) -> Qwen3Config:
    return Qwen3Config.from_hf({**TINY, **changes})


def of(config: Qwen3Config, module: str) -> Quantization | None:
    return config.quantization_overrides.get(module, config.quantization)


def test_exceptions_by_module():
    settings = {"bits": 4, "group_size": 64, "model.embed_tokens": {"bits": 8, "group_size": 32}, "lm_head": False}
    for raw in (
        {"quantization": settings, "quantization_config": settings},
        {"mlx_qwen3": {"format": 1, "quantization": {"mode": "affine", **settings}}},
    ):
        config = read(**raw)
        assert of(config, "layers.0.mlp.up_proj") == Quantization("affine", 4, 64)
        assert of(config, "embed_tokens") == Quantization("affine", 8, 32)
        assert of(config, "lm_head") is None


DEFAULTS = {"affine": (4, 64), "mxfp4": (4, 32), "mxfp8": (8, 32), "nvfp4": (4, 16)}


@pytest.mark.parametrize("mode", QUANTIZATION_MODES)
@pytest.mark.parametrize("given", [{}, {"bits": None, "group_size": None}], ids=["absent", "null"])
def test_null_is_the_default_of_the_mode(mode, given):
    expected = Quantization(mode, *DEFAULTS[mode])
    assert read(quantization={"mode": mode, **given}).quantization == expected
    exception = read(quantization={"bits": 2, "group_size": 32, "lm_head": {"mode": mode, **given}})
    assert of(exception, "lm_head") == expected


def test_a_module_may_be_true():
    config = read(quantization={"bits": 8, "group_size": 32, "model.layers.0.mlp.up_proj": True, "lm_head": {}})
    assert config.quantization_overrides == {"layers.0.mlp.up_proj": Quantization("affine", 8, 32), "lm_head": None}


SAME = [
    ({"bits": 4, "group_size": 64}, {"bits": 4, "group_size": 64, "mode": "affine"}),
    ({"bits": 4, "group_size": None}, {"bits": 4, "group_size": 64}),
    ({"bits": 4, "group_size": 64, "mode": None}, {"bits": 4, "group_size": 64}),
    (
        {"bits": 4, "group_size": 64, "lm_head": True},
        {"bits": 4, "group_size": 64, "lm_head": {"bits": 4, "group_size": 64}},
    ),
    ({"bits": 4, "group_size": 64, "model.norm": False}, {"bits": 4, "group_size": 64, "model.norm": None}),
    ({"mode": "mxfp4"}, {"quant_method": "mxfp4"}),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_two_copies_that_mean_the_same(one, other):
    both = read(quantization=one, quantization_config=other)
    assert both == read(quantization=one)
    assert both.quantization is not None


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "bits": ({"quantization": {"bits": 7, "group_size": 64}}, "quantization.bits is 7; affine has 2, 3, 4, 5, 6, 8"),
    "mode": ({"quantization": {"mode": "int4", "bits": 4, "group_size": 64}}, "quantization.mode is 'int4'"),
    "mode of another type": ({"quantization": {"mode": ["affine"]}}, r"quantization.mode is \['affine'\]"),
    "bits true": ({"quantization": {"bits": True, "group_size": 64}}, "quantization.bits is True"),
    "bits 4.0": ({"quantization": {"bits": 4.0, "group_size": 64}}, "quantization.bits is 4.0"),
    "group of another mode": ({"quantization": {"mode": "nvfp4", "group_size": 32}}, "group_size is 32; nvfp4 has 16"),
    "two that differ": (
        {"quantization": {"bits": 4, "group_size": 64}, "quantization_config": {"bits": 8, "group_size": 64}},
        "quantization is .*4.* but quantization_config .*8",
    ),
    "of another type": ({"quantization": [1]}, r"quantization is \[1\] in config.json; expected an object"),
    "module of another type": ({"quantization": {"bits": 4, "lm_head": 4}}, "lm_head is 4; expected an object"),
    "module with more": ({"quantization": {"bits": 4, "lm_head": {"zero": 1}}}, "lm_head.zero is 1, which is not"),
    "true without a default": ({"quantization": {"lm_head": True}}, "lm_head is true in quantization, which gives no"),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_read_is_refused_by_name(changes, message):
    with pytest.raises(ConfigError, match=message):
        read(**changes)


@pytest.mark.parametrize("mode", QUANTIZATION_MODES)
def test_a_packing_by_its_shapes(mode):
    for bits in QUANTIZATION_MODES[mode]["bits"]:
        for group_size in QUANTIZATION_MODES[mode]["group_size"]:
            weight, scales, *_ = mx.quantize(mx.zeros((8, 384)), group_size, bits, mode)
            found = inferred(384, weight.shape[1], scales.shape[1], scales.dtype == mx.uint8)
            assert found == Quantization(mode, bits, group_size)
    assert inferred(384, 48, 0, True) is None
    assert inferred(384, 48, 5, False) is None
    assert inferred(384, 7 * 12, 6, False) is None


OTHER = {"mode": "affine", "bits": 8, "group_size": 32}


def test_a_module_that_the_map_does_not_name(ids, tmp_path):
    """mlx-lm finds its packing by the shapes, and so do we."""
    folder = write_packed(tmp_path / "model", AFFINE_4, {"down_proj": OTHER, "embed_tokens": {"mode": "mxfp8"}})
    named = as_numpy(load_model(folder)(mx.array(ids)))
    config = json.loads((folder / "config.json").read_text())
    removed = [name for name in config["quantization"] if "." in name]
    assert len(removed) == 3
    config["quantization"] = {key: value for key, value in config["quantization"].items() if key not in removed}
    (folder / "config.json").write_text(json.dumps(config))
    assert Checkpoint(folder).parts["layers.1.mlp.down_proj"].quantization == Quantization(**OTHER)
    np.testing.assert_array_equal(as_numpy(load_model(folder)(mx.array(ids))), named)
    assert np.abs(mlx_lm_logits(folder, ids) - named).max() < 1e-4


def test_shapes_that_no_packing_has_are_those_of_another_model(tmp_path):
    folder = write_packed(tmp_path / "model", AFFINE_4)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "hidden_size": 384}))
    with pytest.raises(CheckpointError, match="are of different models"):
        _ = Checkpoint(folder).parts


def mlx_lm_logits(folder, ids) -> np.ndarray:
    utils = pytest.importorskip("mlx_lm.utils")
    model, _ = utils.load_model(folder)
    return as_numpy(model(mx.array(ids)).astype(mx.float32))


# Folders that mlx-lm wrote


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def source(request, tmp_path_factory):
    """Eight layers, of which mlx-lm's recipes give some more bits."""
    folder = tmp_path_factory.mktemp("source")
    sizes = {**PACKABLE, "num_hidden_layers": 8, "vocab_size": VOCABULARY}
    return write_tokenizer(write_checkpoint(folder, tie_word_embeddings=request.param, **sizes))


RECIPES = ("mixed_2_6", "mixed_3_4", "mixed_3_6", "mixed_4_6")
WRITTEN: dict[str, dict[str, Any]] = {
    **{f"{recipe} g{group}": {"quant_predicate": recipe, "q_group_size": group} for recipe in RECIPES
       for group in (None, 32, 64)},
    **{f"affine {bits} g{group}": {"q_bits": bits, "q_group_size": group} for bits in (None, 2, 3, 5, 6, 8)
       for group in (None, 32)},
    **{mode: {"q_mode": mode} for mode in QUANTIZATION_MODES},
    **{f"{mode} spelled out": {"q_mode": mode, "q_bits": bits, "q_group_size": group}
       for mode, (bits, group) in DEFAULTS.items()},
}  # fmt: skip


@pytest.mark.parametrize("options", WRITTEN.values(), ids=WRITTEN.keys())
def test_every_folder_that_mlx_lm_writes_gives_its_logits(options, source, ids, tmp_path, capsys):
    convert = pytest.importorskip("mlx_lm.convert").convert
    out = tmp_path / "written"
    convert(str(source), str(out), quantize=True, dtype="float32", **options)
    ours = as_numpy(load_model(out, "fp32")(mx.array(ids)))
    # Measured 2.6e-5 at |logit| up to 8.
    assert np.abs(ours - mlx_lm_logits(out, ids)).max() < 2e-4
    shutil.rmtree(out)
