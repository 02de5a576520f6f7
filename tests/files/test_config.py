"""What config.json may say, and what is refused by name."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from checkpoints import TINY, YARN

from mlx_qwen3.errors import CheckpointError, ConfigError
from mlx_qwen3.files.config import Quantization, Qwen3Config
from mlx_qwen3.files.layout import part_shapes
from mlx_qwen3.files.reading import read_json

# From the model cards of the releases.
COLUMNS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "tie_word_embeddings")
RELEASES: dict[str, tuple[tuple[Any, ...], int]] = {
    "0.6B": ((1024, 28, 16, 3072, True), 596_049_920),
    "1.7B": ((2048, 28, 16, 6144, True), 1_720_574_976),
    "4B": ((2560, 36, 32, 9728, True), 4_022_468_096),
    "8B": ((4096, 36, 32, 12288, False), 8_190_735_360),
    "14B": ((5120, 40, 40, 17408, False), 14_768_307_200),
    "32B": ((5120, 64, 64, 25600, False), 32_762_123_264),
}


def config(**changes: Any) -> dict[str, Any]:
    return {key: value for key, value in {**TINY, **changes}.items() if value is not ...}


@pytest.mark.parametrize(("sizes", "parameters"), RELEASES.values(), ids=RELEASES.keys())
def test_every_release_has_the_published_number_of_parameters(sizes, parameters):
    sizes = dict(zip(COLUMNS, sizes, strict=True))
    release = Qwen3Config.from_hf(config(vocab_size=151936, head_dim=128, num_key_value_heads=8, **sizes))
    assert sum(map(math.prod, part_shapes(release).values())) == parameters


@pytest.mark.parametrize("scaling", [None, YARN, {**YARN, "attention_factor": 1.2}])
def test_the_styles_of_transformers_4_and_5_say_the_same(scaling):
    old = config(rope_scaling=scaling)
    new = config(rope_theta=..., torch_dtype=..., dtype="float32", layer_types=["full_attention"] * 2)
    new["rope_parameters"] = {"rope_type": "default", **(scaling or {}), "rope_theta": TINY["rope_theta"]}
    assert Qwen3Config.from_hf(old) == Qwen3Config.from_hf(new)


def test_old_files_say_type_for_rope_type():
    renamed = {("type" if key == "rope_type" else key): value for key, value in YARN.items()}
    assert Qwen3Config.from_hf(config(rope_scaling=renamed)).yarn == Qwen3Config.from_hf(config(rope_scaling=YARN)).yarn


def test_yarn_lengthens_the_context():
    stretched = config(rope_scaling={**YARN, "original_max_position_embeddings": 32768})
    assert Qwen3Config.from_hf(stretched).context_length == 131072
    assert Qwen3Config.from_hf(TINY).context_length == 40960


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another model": ({"model_type": "llama"}, "model_type is 'llama'; .*'qwen3'"),
    "mixture of experts": ({"model_type": "qwen3_moe"}, "model_type is 'qwen3_moe'; .*'qwen3'"),
    "no model type": ({"model_type": ...}, "model_type is None"),
    "attention bias": ({"attention_bias": True}, "attention_bias is True; only False"),
    "sliding window": ({"use_sliding_window": True}, "use_sliding_window is True; only False"),
    "sliding layer": (
        {"layer_types": ["full_attention", "sliding_attention"]},
        r"layer_types\[1\] is 'sliding_attention'",
    ),
    "activation": ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; only 'silu'"),
    "unknown setting": ({"logit_softcap": 30.0}, "logit_softcap is 30.0, a setting unknown"),
    "no head_dim": ({"head_dim": ...}, "head_dim is missing"),
    "head_dim null": ({"head_dim": None}, "head_dim is missing"),
    "odd head_dim": ({"head_dim": 21}, "head_dim 21 is odd"),
    "text for a number": ({"hidden_size": "48"}, "hidden_size is '48'; expected a positive integer"),
    "zero layers": ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
    "true for a number": ({"num_hidden_layers": True}, "num_hidden_layers is True"),
    "heads": ({"num_key_value_heads": 4}, "num_attention_heads 6 is not a multiple of num_key_value_heads 4"),
    "tied unknown": ({"tie_word_embeddings": ...}, "tie_word_embeddings is missing"),
    "no theta": ({"rope_theta": ...}, "rope_theta is missing"),
    "two thetas": ({"rope_parameters": {"rope_theta": 5e6}}, "rope_theta is given twice .* 5000000.0 and as 1000000.0"),
    "rope type": ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_type is 'llama3'; supported"),
    "yarn without factor": ({"rope_scaling": {**YARN, "factor": None}}, "factor is missing"),
    "yarn without original": (
        {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
        "original_max_position_embeddings is missing",
    ),
    "unknown in yarn": (
        {"rope_scaling": {**YARN, "long_factor": [1.0]}},
        "long_factor is .*unknown for rope_type 'yarn'",
    ),
    "partial rotary": ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5; only 1.0"),
    "eos": ({"eos_token_id": "im_end"}, "eos_token_id is 'im_end'"),
    "awq": ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "quant_method is 'awq'"),
    "bits": ({"quantization": {"bits": 7, "group_size": 64}}, "quantization.bits is 7; affine has 2, 3, 4, 5, 6, 8"),
    "mode": ({"quantization": {"mode": "int4", "bits": 4, "group_size": 64}}, "quantization.mode is 'int4'"),
    "bits true": ({"quantization": {"bits": True, "group_size": 64}}, "quantization.bits is True"),
    "bits 4.0": ({"quantization": {"bits": 4.0, "group_size": 64}}, "quantization.bits is 4.0"),
    "two quantizations": (
        {"quantization": {"bits": 4, "group_size": 64}, "quantization_config": {"bits": 8, "group_size": 64}},
        "quantization is .*4.* but quantization_config .*8",
    ),
    "quantization of another type": ({"quantization": [1]}, r"quantization is \[1\]; expected an object"),
    "rope of another type": ({"rope_scaling": "yarn"}, "rope_scaling is 'yarn'; expected an object"),
    "rope type of another type": ({"rope_scaling": {"rope_type": ["yarn"]}}, r"rope_type is \['yarn'\]"),
    "ours of another type": ({"mlx_qwen3": "x"}, "mlx_qwen3 is 'x'; expected an object"),
    "layer types of another type": (
        {"layer_types": 5},
        "layer_types is 5; expected one for each of num_hidden_layers 2",
    ),
    "too few layer types": ({"layer_types": ["full_attention"]}, "layer_types is .*num_hidden_layers 2"),
    "epsilon": ({"rms_norm_eps": 10**400}, "rms_norm_eps is 1000.*expected a positive number"),
    "our format": ({"mlx_qwen3": {"format": 99}}, "mlx_qwen3.format is 99"),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refused_in_one_line_that_names_the_key_and_the_value(changes, message):
    with pytest.raises(ConfigError, match=message) as error:
        Qwen3Config.from_hf(config(**changes))
    assert "\n" not in str(error.value)


INERT = {
    "_attn_implementation_autoset": True,
    "tokenizer_class": "Qwen2Tokenizer",
    "pretraining_tp": 1,
    "num_labels": 2,
}


@pytest.mark.parametrize("setting", INERT)
def test_settings_that_inference_does_not_read(setting):
    assert Qwen3Config.from_hf(config(**{setting: INERT[setting]})) == Qwen3Config.from_hf(TINY)


@pytest.mark.parametrize("setting", ["attention_bias", "use_sliding_window", "layer_types"])
def test_null_is_absent(setting):
    assert Qwen3Config.from_hf(config(**{setting: None})) == Qwen3Config.from_hf(TINY)


def test_deepseeks_key_of_yarn_is_read_as_transformers_reads_it():
    """DeepSeek-R1-0528-Qwen3-8B has attn_factor, which transformers ignores: its factor is 0.1 ln(4) + 1."""
    yarn = Qwen3Config.from_hf(config(rope_scaling={**YARN, "attn_factor": 0.8782488562869419})).yarn
    assert yarn.attention_factor == pytest.approx(1.1386294)


@pytest.mark.parametrize("key", ["logit_softcap", "pruned_heads"])
@pytest.mark.parametrize("value", [None, False, {}, []])
def test_an_unknown_setting_that_is_off_changes_nothing(key, value):
    assert Qwen3Config.from_hf(config(**{key: value})) == Qwen3Config.from_hf(TINY)


def test_quantization_of_every_module():
    special = {"bits": 8, "group_size": 32}
    settings = {"bits": 4, "group_size": 64, "model.embed_tokens": special, "lm_head": False}
    for raw in (
        config(quantization=settings, quantization_config=settings),
        config(mlx_qwen3={"format": 1, "quantization": {"mode": "affine", **settings}}),
    ):
        parsed = Qwen3Config.from_hf(raw)
        assert parsed.quantization_of("layers.0.mlp.up_proj") == Quantization("affine", 4, 64)
        assert parsed.quantization_of("embed_tokens") == Quantization("affine", 8, 32)
        assert parsed.quantization_of("lm_head") is None


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "does not exist"), ("{", "is not valid JSON"), ("[]", "holds a list"), (b"\xff\xfe", "is not valid JSON")],
)
def test_a_broken_file_is_named(content, message, tmp_path):
    path = tmp_path / "config.json"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CheckpointError, match=message) as error:
        read_json(path)
    assert str(path) in str(error.value)


def test_what_transformers_saves_is_read(tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    transformers.Qwen3Config(**{**TINY, "rope_scaling": YARN}).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert "rope_parameters" in saved
    assert Qwen3Config.from_hf(saved) == Qwen3Config.from_hf(config(rope_scaling=YARN))
