"""What generation_config.json decides, and that nothing in it is ignored in silence."""

import re
from functools import partial

import pytest

from mlx_qwen3.engine import generation_config
from mlx_qwen3.engine.generation_config import token_limit
from mlx_qwen3.engine.sampling import SamplingParams
from mlx_qwen3.errors import ConfigError, PromptError, Qwen3Warning

QWEN_THINKING = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "eos_token_id": [3]}


def read(raw, thinking=True):
    return SamplingParams.from_generation_config(raw, thinking)


def test_every_sampling_setting_is_read():
    raw = {
        "do_sample": True,
        "temperature": 0.9,
        "top_k": 7,
        "top_p": 0.7,
        "min_p": 0.1,
        "repetition_penalty": 1.05,
        "presence_penalty": 1.5,
        "frequency_penalty": 0.5,
    }
    expected = SamplingParams(0.9, 7, 0.7, 0.1, 1.05, presence_penalty=1.5, frequency_penalty=0.5)
    assert read(raw) == expected


def test_without_thinking_every_filter_is_qwens():
    raw = {"do_sample": True, "temperature": 0.9, "top_k": 7, "top_p": 0.7, "min_p": 0.1, "presence_penalty": 1.5}
    assert read(raw, thinking=False) == SamplingParams(0.7, 20, 0.8, 0.0, presence_penalty=1.5)
    assert read(QWEN_THINKING, thinking=False) == SamplingParams(0.7, 20, 0.8, 0.0)


def test_without_the_file_they_are_qwens():
    assert read({}) == SamplingParams(0.6, 20, 0.95, 0.0)
    assert read({}, thinking=False) == SamplingParams(0.7, 20, 0.8, 0.0)


@pytest.mark.parametrize("thinking", [True, False])
def test_a_checkpoint_that_does_not_sample_is_greedy(thinking):
    assert read({"do_sample": False}, thinking).temperature == 0
    assert read({"eos_token_id": 3}, thinking).temperature == 0
    assert read({"do_sample": None, "top_k": 5}, thinking).temperature == 0


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("num_beams", 4),
        ("typical_p", 0.9),
        ("no_repeat_ngram_size", 3),
        ("stop_strings", ["x"]),
        ("max_time", 3),
        ("token_healing", True),
        ("remove_invalid_values", True),
    ],
)
def test_settings_that_cannot_be_honoured_are_named(setting, value):
    with pytest.raises(ConfigError, match=rf"{setting} is {re.escape(repr(value))} in generation_config\.json"):
        read({**QWEN_THINKING, setting: value})


def test_their_neutral_values_are_fine():
    raw = {**QWEN_THINKING, "num_beams": 1, "typical_p": 1.0, "no_repeat_ngram_size": 0, "bad_words_ids": None}
    assert read(raw) == SamplingParams()


def test_an_unknown_setting_is_a_warning_that_names_it():
    with pytest.warns(Qwen3Warning, match=r"dry_multiplier in generation_config\.json"):
        assert read({**QWEN_THINKING, "dry_multiplier": 0.8}) == SamplingParams()
    assert read({**QWEN_THINKING, "dry_multiplier": None}) == SamplingParams()


def test_every_setting_of_transformers_is_decided():
    """Read, refused unless neutral, or inert: a new release's setting must be put into one of them."""
    config = pytest.importorskip("transformers").GenerationConfig()
    known = generation_config.READ | generation_config.NEUTRAL.keys() | generation_config.INERT
    theirs = set(vars(config)) | set(config._get_default_generation_params())
    assert theirs - known == set()


def test_transformers_defaults_are_neutral():
    config = pytest.importorskip("transformers").GenerationConfig()
    defaults = config._get_default_generation_params()
    sampling = {name: defaults.pop(name) for name in ("temperature", "top_k", "top_p", "repetition_penalty")}
    assert read({**defaults, **sampling, "do_sample": True}) == SamplingParams(1.0, 50, 1.0)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("temperature", "0.6"),
        ("temperature", float("nan")),
        ("top_k", 20.5),
        ("top_k", True),
        ("top_p", 2),
        ("top_p", [0.9]),
        ("min_p", {}),
        ("repetition_penalty", 0),
        ("presence_penalty", 3),
        ("frequency_penalty", "high"),
        ("do_sample", "yes"),
        ("do_sample", 1),
    ],
)
@pytest.mark.parametrize("thinking", [True, False])
def test_a_bad_value_names_setting_value_and_file(setting, value, thinking):
    with pytest.raises(ConfigError, match=rf"{setting} is {re.escape(repr(value))}.* generation_config\.json.*correct"):
        read({**QWEN_THINKING, setting: value}, thinking)


def test_what_a_file_that_does_not_sample_says_must_be_right_too():
    with pytest.raises(ConfigError, match="temperature is 'hot'"):
        read({"do_sample": False, "temperature": "hot"})


@pytest.mark.parametrize(
    ("raw", "limit"),
    [
        ({}, 90),
        ({"max_new_tokens": 7}, 7),
        ({"max_new_tokens": 700}, 90),
        ({"max_length": 30}, 20),
        ({"max_length": 300}, 90),
        ({"max_new_tokens": 7, "max_length": 5}, 7),
        ({"max_new_tokens": None, "max_length": None}, 90),
    ],
)
def test_the_limit_of_new_tokens(raw, limit):
    assert token_limit(raw, prompt=10, context=100) == limit


@pytest.mark.parametrize("setting", ["max_new_tokens", "max_length"])
@pytest.mark.parametrize("value", ["20", [20], {"a": 1}, 1.5, 20.0, 0, -1, True], ids=repr)
def test_a_limit_of_another_type_or_range_is_named(setting, value):
    with pytest.raises(ConfigError, match=rf"{setting} is {re.escape(repr(value))} in generation_config\.json"):
        token_limit({setting: value}, prompt=10, context=100)


def test_a_max_length_that_the_prompt_fills_is_named():
    with pytest.raises(PromptError, match=r"the prompt has 10 tokens and max_length is 10 in generation_config\.json"):
        token_limit({"max_length": 10}, prompt=10, context=100)


@pytest.mark.parametrize("setting", ["stop_strings", "max_new_tokens", "do_sample"])
def test_a_long_value_is_not_repeated_whole(setting):
    read_it = partial(token_limit, prompt=1, context=10) if setting == "max_new_tokens" else read
    with pytest.raises(ConfigError, match=rf"{setting} is .*yyy.* \([0-9]+ characters\)") as error:
        read_it({setting: "y" * 5000})
    assert len(str(error.value)) < 400
