import json
import math

import pytest
from adapting import write_mlx_lm, write_peft

from mlx_qwen3.errors import CheckpointError, ConfigError
from mlx_qwen3.files.adapter_config import read_config, what_it_is

Q0, K1 = "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.k_proj"


def config(tmp_path, **settings):
    return read_config(write_peft(tmp_path, **settings))


def test_the_scale_of_peft(tmp_path):
    assert config(tmp_path / "a", rank=4, lora_alpha=12).scaling(Q0) == (4, 3.0)
    assert config(tmp_path / "b", rank=4, lora_alpha=12, use_rslora=True).scaling(Q0) == (4, 6.0)


def test_patterns_are_for_the_ends_of_names_and_the_first_that_fits_counts(tmp_path):
    found = config(
        tmp_path,
        rank_pattern={r"layers\.1\.self_attn\.k_proj": 2, "k_proj": 8, "proj": 9},
        alpha_pattern={r"model\.layers\.\d\.self_attn\.q_proj": 5},
    )
    assert found.scaling(K1) == (2, 8 / 2)
    assert found.scaling("model.layers.0.self_attn.k_proj") == (8, 1.0)
    assert found.scaling(Q0) == (4, 5 / 4)  # `proj` alone is no end after a dot


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"target_modules": ["q_proj"]}, {Q0}),
        ({"target_modules": ["proj"]}, set()),
        ({"target_modules": [K1]}, {K1}),
        ({"target_modules": r".*\.1\..*_proj"}, {K1}),
        ({"target_modules": r"layers\.1\..*_proj"}, set()),  # the whole name has to match
        ({"target_modules": "all-linear"}, {Q0, K1}),
        ({"target_modules": "all-linear", "exclude_modules": ["q_proj"]}, {K1}),
        ({"target_modules": "all-linear", "exclude_modules": r".*\.0\..*"}, {K1}),
        ({"target_modules": ["q_proj", "k_proj"], "layers_to_transform": 1}, {K1}),
        ({"target_modules": ["q_proj", "k_proj"], "layers_to_transform": [0], "layers_pattern": "layers"}, {Q0}),
        ({"target_modules": ["q_proj", "k_proj"], "layers_to_transform": [0], "layers_pattern": ["h"]}, set()),
        ({"target_modules": ["q_proj", K1], "layers_to_transform": [5]}, {K1}),  # a whole name is not compared with it
        ({"target_modules": ["q_proj", "k_proj"], "modules_to_save": ["q_proj"]}, {K1}),
    ],
)
def test_the_modules_of_peft(settings, expected, tmp_path):
    found = config(tmp_path, **settings)
    assert {name for name in (Q0, K1) if found.targets(name, 2)} == expected


def test_modules_to_save_are_compared_by_the_ends_of_names_and_hold_what_is_inside(tmp_path):
    found = config(tmp_path, modules_to_save=["norm", "layers.1.mlp"])
    saved = ("model.norm", "model.layers.0.self_attn.q_norm", "model.layers.1.mlp.up_proj")
    assert [found.saves(name, 2) for name in (*saved, "model.layers.0.mlp.up_proj", "lm_head")] == [True] * 3 + [
        False
    ] * 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
        ({"peft_type": None}, "peft_type is None"),
        ({"bias": "lora_only"}, "bias is 'lora_only'"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out is True"),
        ({"lora_bias": True}, "lora_bias is True"),
        ({"layer_replication": [[0, 2], [1, 2]]}, "layer_replication is"),
        ({"trainable_token_indices": [1, 2]}, "trainable_token_indices is"),
        ({"target_parameters": "gate_up_proj"}, "target_parameters is"),
        ({"megatron_config": {"a": 1}}, "megatron_config is"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens is"),
        ({"a_setting_of_tomorrow": 3}, "a_setting_of_tomorrow is 3"),
        ({"init_lora_weights": "pissa"}, "path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "loftq"}, "init_lora_weights is 'loftq'"),
        ({"r": 0}, "r is 0"),
        ({"r": 2.5}, "r is 2.5"),
        ({"lora_alpha": "8"}, "lora_alpha is '8'"),
        ({"lora_alpha": math.inf}, "lora_alpha is inf"),
        ({"use_dora": 1}, "use_dora is 1"),
        ({"target_modules": 3}, "target_modules is 3"),
        ({"target_modules": "(q_proj"}, "not a regular expression"),
        ({"modules_to_save": "lm_head"}, "modules_to_save is 'lm_head'"),
        ({"rank_pattern": {"q_proj": -1}}, "q_proj is -1"),
        ({"rank_pattern": {"(": 1}}, "rank_pattern has '\\('"),
        ({"alpha_pattern": [1]}, "alpha_pattern is"),
        ({"layers_to_transform": ["a"]}, "layers_to_transform is"),
    ],
)
def test_a_setting_that_cannot_be_honoured_is_refused_by_name(settings, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        config(tmp_path, **settings)


def test_settings_that_change_nothing_are_accepted(tmp_path):
    """As PEFT 0.21 writes them, with its defaults."""
    neutral = {"lora_dropout": 0.1, "inference_mode": True, "bias": "none", "init_lora_weights": "gaussian"}
    off = {"megatron_config": None, "loftq_config": {}, "layer_replication": None, "qalora_group_size": 16}
    assert config(tmp_path, **neutral, **off, task_type="CAUSAL_LM", peft_version="0.21.2").rank == 4


def mlx_lm(tmp_path, **settings):
    folder = write_mlx_lm(tmp_path)
    raw = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**raw, **settings}))
    return read_config(folder)


def test_the_modules_of_mlx_lm(tmp_path):
    found = mlx_lm(tmp_path, num_layers=1)
    assert found.scaling(Q0) == (4, 3.0)  # the scale itself, not alpha over rank
    assert [found.targets(name, 2) for name in (Q0, K1, "model.embed_tokens")] == [False, True, False]
    keys = {"rank": 4, "scale": 1, "keys": ["self_attn.q_proj", "model.embed_tokens"]}
    found = mlx_lm(tmp_path, num_layers=-1, lora_parameters=keys)
    assert [found.targets(name, 2) for name in (Q0, K1, "model.embed_tokens")] == [True, False, True]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fine_tune_type": "qlora"}, "fine_tune_type is 'qlora'"),
        ({"num_layers": "all"}, "num_layers is 'all'"),
        ({"lora_parameters": [1]}, "lora_parameters is"),
        ({"lora_parameters": {"rank": 4, "alpha": 8}}, "scale is None"),
        ({"lora_parameters": {"rank": 4, "scale": 8, "keys": "q_proj"}}, "lora_parameters.keys is"),
    ],
)
def test_a_setting_of_mlx_lm_that_cannot_be_read_is_refused_by_name(settings, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        mlx_lm(tmp_path, **settings)


def test_what_a_folder_is_in_words(tmp_path):
    said = what_it_is(write_peft(tmp_path / "a"), "a")
    assert said.startswith("a is a PEFT LoRA adapter of rank 4 for Qwen/Qwen3-0.6B, not a model;")
    assert said.endswith("mlx-qwen3 chat Qwen/Qwen3-0.6B --adapter a")
    assert "mlx-lm DoRA adapter of rank 4" in what_it_is(write_mlx_lm(tmp_path / "b", "dora"), "b")
    assert "a base that it does not name" in what_it_is(write_peft(tmp_path / "c", base_model_name_or_path=None), "c")
    assert "peft_type is 'IA3'" in what_it_is(write_peft(tmp_path / "d", peft_type="IA3"), "d")


def test_a_broken_file_is_refused_by_name(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(CheckpointError, match="is not valid JSON"):
        read_config(tmp_path)
