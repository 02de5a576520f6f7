"""Rotary embeddings in config.json. The frequencies are compared in tests/model/test_rope.py."""

from copy import deepcopy
from typing import Any

import pytest
from checkpoints import TINY, YARN

from mlx_qwen3.errors import ConfigError, Qwen3Warning
from mlx_qwen3.files.config import Qwen3Config
from mlx_qwen3.files.rope import KEYS, Linear, Yarn

THETA = TINY["rope_theta"]
DEFAULT = {"rope_type": "default", "rope_theta": THETA}


def config(**changes: Any) -> dict[str, Any]:
    return {key: value for key, value in deepcopy({**TINY, **changes}).items() if value is not ...}


def scaling(**changes: Any):
    return Qwen3Config.from_hf(config(**changes)).rope_scaling


@pytest.mark.parametrize("kind", [None, YARN, {**YARN, "attention_factor": 1.2}, {"rope_type": "linear", "factor": 2}])
def test_the_styles_of_transformers_4_and_5_say_the_same(kind):
    old = config(rope_scaling=kind)
    new = config(rope_theta=..., torch_dtype=..., dtype="float32", layer_types=["full_attention"] * 2)
    new["rope_parameters"] = {"rope_type": "default", **(kind or {}), "rope_theta": THETA}
    assert Qwen3Config.from_hf(old) == Qwen3Config.from_hf(new)


def test_old_files_say_type_for_rope_type():
    renamed = {("type" if key == "rope_type" else key): value for key, value in YARN.items()}
    assert scaling(rope_scaling=renamed) == scaling(rope_scaling=YARN)
    assert scaling(rope_scaling={**YARN, "type": "yarn"}) == scaling(rope_scaling=YARN)


def test_deepseeks_key_of_yarn_is_read_as_transformers_reads_it():
    """DeepSeek-R1-0528-Qwen3-8B has attn_factor, which transformers ignores: its factor is 0.1 ln(4) + 1."""
    yarn = scaling(rope_scaling={**YARN, "attn_factor": 0.8782488562869419})
    assert yarn.attention_factor == pytest.approx(1.1386294)


def original(**changes: Any) -> int:
    """What transformers takes for original_max_position_embeddings."""
    transformers = pytest.importorskip("transformers")
    theirs = transformers.Qwen3Config(**config(**changes))
    theirs.standardize_rope_params()
    return theirs.rope_parameters["original_max_position_embeddings"]


PLACES = {
    "in neither place": ({}, {}, 40960),
    "null": ({"original_max_position_embeddings": None}, {}, 40960),
    "in the settings": ({"original_max_position_embeddings": 10240}, {}, 10240),
    "in config.json": ({}, {"original_max_position_embeddings": 20480}, 20480),
    "in both places": (
        {"original_max_position_embeddings": 10240},
        {"original_max_position_embeddings": 20480},
        20480,
    ),
}


@pytest.mark.parametrize(("inside", "outside", "expected"), PLACES.values(), ids=PLACES.keys())
def test_yarn_where_the_original_length_stands(inside, outside, expected):
    changes = {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, **inside}, **outside}
    found = scaling(**changes)
    assert found.original_max_position_embeddings == expected
    if inside.get("original_max_position_embeddings", 0) is not None:
        assert original(**changes) == expected


def test_the_context_length():
    def length(**changes: Any) -> int:
        return Qwen3Config.from_hf(config(**changes)).context_length

    assert length() == 40960
    assert length(rope_scaling={**YARN, "original_max_position_embeddings": 32768}) == 131072
    assert length(rope_scaling={"rope_type": "yarn", "factor": 4.0}) == 4 * 40960
    assert length(rope_scaling={"rope_type": "linear", "factor": 4.0}) == 40960
    assert length(rope_scaling={"rope_type": "dynamic", "factor": 4.0}) == 40960


AGREE = {
    "the same twice": ({**YARN, "rope_theta": THETA}, YARN),
    "theta alone": ({"rope_theta": THETA}, YARN),
    "integers": ({**YARN, "rope_theta": THETA}, {**YARN, "factor": 4, "rope_theta": int(THETA)}),
    "null is not given": ({**YARN, "rope_theta": THETA, "truncate": None}, {**YARN, "attention_factor": None}),
    "empty": ({**YARN, "rope_theta": THETA}, {}),
    "older names": ({**YARN, "rope_theta": THETA}, {**YARN, "rope_type": None, "type": "yarn"}),
}


@pytest.mark.parametrize(("parameters", "pasted"), AGREE.values(), ids=AGREE.keys())
@pytest.mark.parametrize("theta", [THETA, ...], ids=["theta", "no theta"])
def test_a_rope_scaling_that_is_pasted_in_may_repeat_what_is_there(parameters, pasted, theta):
    expected = scaling(rope_scaling=YARN)
    assert scaling(rope_parameters=parameters, rope_scaling=pasted, rope_theta=theta) == expected


DISAGREE = {
    "the model card's": (DEFAULT, YARN, "rope_type is 'default' in rope_parameters and 'yarn' in rope_scaling"),
    "another factor": ({**YARN, "factor": 2.0}, YARN, "factor is 2.0 in rope_parameters and 4.0 in rope_scaling"),
    "one setting more": (
        YARN,
        {**YARN, "truncate": False},
        "truncate is not given in rope_parameters and False in rope_scaling",
    ),
    "one setting less": (
        YARN,
        {"rope_type": "yarn", "factor": 4.0},
        "original_max_position_embeddings is 10240 in rope_parameters and not given in rope_scaling",
    ),
}


@pytest.mark.parametrize(("parameters", "pasted", "message"), DISAGREE.values(), ids=DISAGREE.keys())
def test_one_that_says_something_else_is_refused_with_the_line_to_delete(parameters, pasted, message):
    with pytest.raises(
        ConfigError, match=f"{message} of config.json: delete the line rope_scaling .*move what it says"
    ):
        scaling(rope_parameters=parameters, rope_scaling=pasted, rope_theta=...)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no theta": ({"rope_theta": ...}, "rope_theta is missing"),
    "two thetas": (
        {"rope_parameters": {"rope_theta": 5e6}},
        "rope_theta is given twice in config.json, as 5000000.0 in rope_parameters and as 1000000.0 in config",
    ),
    "two types": (
        {"rope_scaling": {**YARN, "type": "linear"}},
        "rope_type is 'yarn' and type 'linear'.*delete the line",
    ),
    "another type": (
        {"rope_scaling": {"rope_type": "proportional", "factor": 8.0}},
        "rope_type is 'proportional'; supported .*'llama3'.*; set it to 'default' in config.json to run the model",
    ),
    "type of another type": ({"rope_scaling": {"rope_type": ["yarn"]}}, r"rope_type is \['yarn'\]"),
    "yarn without factor": ({"rope_scaling": {"rope_type": "yarn"}}, "factor is missing"),
    "yarn that shrinks": ({"rope_scaling": {**YARN, "factor": 0.5}}, "factor is 0.5 .* from 1 to 1e"),
    "yarn without end": ({"rope_scaling": {**YARN, "factor": 1e300}}, "factor is 1e.300 .* from 1 to 1e"),
    "yarn's truncate": ({"rope_scaling": {**YARN, "truncate": 1}}, "truncate is 1 in config.json; expected true or"),
    "yarn's beta": ({"rope_scaling": {**YARN, "beta_fast": "32"}}, "beta_fast is '32'"),
    "yarn's length": (
        {"rope_scaling": {**YARN, "original_max_position_embeddings": 1.5}},
        "original_max_position_embeddings is 1.5",
    ),
    "a length outside": ({"original_max_position_embeddings": "4096"}, "original_max_position_embeddings is '4096'"),
    "yarn without rotation": (
        {"rope_scaling": dict(YARN), "rope_theta": 1},
        "rope_theta is 1 .*YaRN needs more than 1",
    ),
    "linear without factor": ({"rope_scaling": {"rope_type": "linear"}}, "factor is missing"),
    "dynamic's factor": ({"rope_scaling": {"rope_type": "dynamic", "factor": True}}, "factor is True"),
    "llama3 without frequencies": ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor is miss"),
    "llama3 turned round": (
        {"rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 4, "high_freq_factor": 4}},
        "high_freq_factor is 4 in config.json; expected more than low_freq_factor 4",
    ),
    "longrope past its original length": (
        {"rope_scaling": {"rope_type": "longrope", "original_max_position_embeddings": 4096}},
        "rope_type is 'longrope'.* past 4096 tokens.*; set max_position_embeddings to 4096 in config.json to run texts",
    ),
    "longrope without factors": (
        {"rope_scaling": {"rope_type": "longrope"}},
        "short_factor is None .*a list of 10 num",
    ),
    "longrope's factors": (
        {"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0] * 9 + ["1"]}},
        "short_factor is '1'",
    ),
    "half of the head": (
        {"rope_parameters": {**DEFAULT, "partial_rotary_factor": 0.5}},
        "partial_rotary_factor is not 1.0",
    ),
    "one for each kind of layer": (
        {"rope_parameters": {"full_attention": DEFAULT}},
        "full_attention is .*; all layers need the same",
    ),
    "rope of another type": ({"rope_scaling": "yarn"}, "rope_scaling is 'yarn' in config.json; expected an object"),
    "theta as text": ({"rope_theta": "1000000"}, "rope_theta is '1000000'"),
    "theta as a list": ({"rope_theta": [1e6]}, r"rope_theta is \[1000000.0\]"),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_run_is_refused_by_name(changes, message):
    with pytest.raises(ConfigError, match=message):
        Qwen3Config.from_hf(config(**changes))


def test_a_setting_that_a_type_does_not_have_is_a_warning():
    """transformers warns about it too, and runs."""
    with pytest.warns(Qwen3Warning, match=r"long_factor in config.json is not a setting of rope_type 'yarn'"):
        assert isinstance(scaling(rope_scaling={**YARN, "long_factor": [1.0]}), Yarn)
    with pytest.warns(Qwen3Warning, match="mrope_section"):
        assert scaling(rope_scaling={"type": "default", "mrope_section": [4, 3, 3]}) is None


def test_lengths_of_other_types_are_silent():
    assert scaling(rope_scaling={**YARN, "rope_type": "linear"}) == Linear(4.0)


def test_every_type_of_transformers_is_run_or_refused():
    functions = pytest.importorskip("transformers.modeling_rope_utils").ROPE_INIT_FUNCTIONS
    assert functions.keys() - KEYS.keys() == {"proportional"}
