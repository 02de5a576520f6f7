"""Which keys of config.json are errors, which are named in a warning, and which are accepted silently."""

import dataclasses
import json
from typing import Any

import pytest
from checkpoints import TINY

from mlx_qwen3.engine import generation_config
from mlx_qwen3.errors import ConfigError, Qwen3Warning
from mlx_qwen3.files import config_keys
from mlx_qwen3.files.config import Qwen3Config

REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "attention bias": ({"attention_bias": True}, "attention_bias is True; only False"),
    "sliding window": ({"use_sliding_window": True}, "use_sliding_window is True; only False"),
    "sliding layer": (
        {"layer_types": ["full_attention", "sliding_attention"]},
        r"layer_types\[1\] is 'sliding_attention'",
    ),
    "activation": ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; only 'silu'"),
    "partial rotary": ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5; only 1.0"),
    "not causal": ({"is_causal": False}, "is_causal is False; only True"),
    "layers of their own": ({"per_layer_config": {"0": {"head_dim": 10}}}, "per_layer_config is .*head_dim"),
    "mlx-lm's activations": ({"quantize_activations": True}, "quantize_activations is True"),
    "mlx-lm's own code": ({"model_file": "model.py"}, "model_file is 'model.py'"),
    "layer types of another type": (
        {"layer_types": 5},
        "layer_types is 5; expected one for each of num_hidden_layers 2",
    ),
    "too few layer types": ({"layer_types": ["full_attention"]}, "layer_types is .*num_hidden_layers 2"),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_changes_the_forward_pass_is_refused_by_name(changes, message):
    with pytest.raises(ConfigError, match=message):
        Qwen3Config.from_hf({**TINY, **changes})


LEFT_BEHIND: dict[str, Any] = {
    # of transformers, in all its versions
    "_attn_implementation_autoset": True,
    "attn_implementation": "flash_attention_2",
    "architectures": ["Qwen3ForSequenceClassification"],
    "gradient_checkpointing": True,
    "is_decoder": True,
    "layer_types": ["attention", "full_attention"],
    "hidden_act": "swish",
    "loss_type": "ForCausalLM",
    "name_or_path": "Qwen/Qwen3-0.6B",
    "num_labels": 2,
    "output_attentions": True,
    "pretraining_tp": 1,
    "sliding_window": 4096,
    "tokenizer_class": "Qwen2Tokenizer",
    "use_cache": False,
    # of generation
    "do_sample": True,
    "max_length": 4096,
    "no_repeat_ngram_size": 3,
    "return_dict_in_generate": True,
    "temperature": 0.6,
    "top_k": 20,
    # of training programs
    "model_name": "unsloth/Qwen3-0.6B",
    "unsloth_fixed": True,
    "unsloth_version": "2025.5.1",
    "unsloth_training_tricks": {"a": 1},
    "group_size_ratio": 0.25,
    "tokenizer_model_max_length": 2048,
    "tokenizer_padding_side": "right",
    "use_liger_kernel": True,
    "summary_dropout_prob": 0.1,
}


@pytest.mark.parametrize("key", LEFT_BEHIND)
def test_what_cannot_change_the_forward_pass_is_silent(key):
    assert Qwen3Config.from_hf({**TINY, key: LEFT_BEHIND[key]}) == Qwen3Config.from_hf(TINY)


@pytest.mark.parametrize("setting", ["attention_bias", "use_sliding_window", "layer_types", "is_causal", "hidden_act"])
def test_null_is_absent(setting):
    assert Qwen3Config.from_hf({**TINY, setting: None}) == Qwen3Config.from_hf(TINY)


@pytest.mark.parametrize(("key", "value"), [("logit_softcap", 30.0), ("mlp_bias", True), ("my_flag", [1])])
def test_an_unknown_key_is_a_warning_that_names_it(key, value):
    with pytest.warns(Qwen3Warning, match=f"^{key} in config.json"):
        assert Qwen3Config.from_hf({**TINY, key: value}) == Qwen3Config.from_hf(TINY)


@pytest.mark.parametrize("key", ["logit_softcap", "pruned_heads"])
@pytest.mark.parametrize("value", [None, False, 0, {}, [], ""])
def test_an_unknown_setting_that_is_off_changes_nothing(key, value):
    assert Qwen3Config.from_hf({**TINY, key: value}) == Qwen3Config.from_hf(TINY)


def test_every_attribute_of_transformers_config_is_decided():
    """Of a new release each attribute must be put into one of the lists."""
    theirs = pytest.importorskip("transformers").Qwen3Config
    known = config_keys.READ | config_keys.FIXED.keys() | config_keys.SILENT
    attributes = {field.name for field in dataclasses.fields(theirs)} | theirs().to_dict().keys()
    assert attributes - known == set()
    lists = [config_keys.READ, config_keys.FIXED.keys(), config_keys.TRANSFORMERS, config_keys.GENERATION]
    assert sum(map(len, lists)) == len(set().union(*lists)), "a key stands in two lists"


def test_the_forward_pass_of_transformers_reads_nothing_that_is_silent():
    """Its source, without training: every attribute of a config that it names is read or fixed here."""
    import inspect
    import re

    modeling = pytest.importorskip("transformers.models.qwen3.modeling_qwen3")
    masks = pytest.importorskip("transformers.masking_utils")
    source = "".join(map(inspect.getsource, (modeling.Qwen3ForCausalLM, modeling.Qwen3Model, modeling.Qwen3Attention)))
    source += "".join(map(inspect.getsource, (modeling.Qwen3MLP, modeling.Qwen3DecoderLayer)))
    source += inspect.getsource(modeling.Qwen3RotaryEmbedding) + inspect.getsource(masks.create_causal_mask)
    named = set(re.findall(r"config\.(\w+)|config, \"(\w+)\"", source))
    harmless = {"_attn_implementation", "attention_dropout", "pad_token_id", "sliding_window", "initializer_range"}
    read = {first or second for first, second in named} - harmless
    assert read <= config_keys.READ | config_keys.FIXED.keys()
    assert {"rope_parameters", "is_causal", "attention_bias", "head_dim"} <= read


def test_the_settings_of_generation_are_those_of_its_own_file():
    special_tokens = {"eos_token_id", "bos_token_id", "pad_token_id", "decoder_start_token_id"}
    of_both = {"use_cache", "output_attentions", "output_hidden_states", "transformers_version", "_commit_hash"}
    own = generation_config.READ | generation_config.NEUTRAL.keys() | generation_config.INERT
    assert own - special_tokens - of_both == config_keys.GENERATION


def test_what_transformers_saves_is_silent(tmp_path):
    transformers = pytest.importorskip("transformers")
    settings = {key: value for key, value in TINY.items() if key != "model_type"}
    transformers.Qwen3Config(**settings).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert Qwen3Config.from_hf(saved) == Qwen3Config.from_hf(TINY)
    whole = transformers.Qwen3Config(**settings).to_dict() | {"dtype": "float32"}
    assert Qwen3Config.from_hf(whole) == Qwen3Config.from_hf(TINY)
