"""config.json as a whole: sizes, styles, and values that are refused by name."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from checkpoints import TINY, YARN

from mlx_qwen3.errors import CheckpointError, ConfigError
from mlx_qwen3.files.checkpoint import Checkpoint
from mlx_qwen3.files.config import Qwen3Config
from mlx_qwen3.files.names import part_shapes

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


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "another model": ({"model_type": "llama"}, "model_type is 'llama'; .*'qwen3'"),
    "an earlier mixture of experts": ({"model_type": "qwen2_moe"}, "model_type is 'qwen2_moe'; .*'qwen3_moe'"),
    "no model type": ({"model_type": ...}, "model_type is None"),
    "no head_dim": ({"head_dim": ...}, "head_dim is missing"),
    "head_dim null": ({"head_dim": None}, "head_dim is missing"),
    "odd head_dim": ({"head_dim": 21}, "head_dim 21 is odd"),
    "text for a number": ({"hidden_size": "48"}, "hidden_size is '48' in config.json; expected a positive integer"),
    "a list for a number": (
        {"vocab_size": [151]},
        r"vocab_size is \[151\] in config.json; expected a positive integer",
    ),
    "1.5 for a count": ({"intermediate_size": 1.5}, "intermediate_size is 1.5"),
    "a float for a count": ({"intermediate_size": 80.0}, "intermediate_size is 80.0"),
    "zero layers": ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
    "minus one": ({"max_position_embeddings": -1}, "max_position_embeddings is -1"),
    "layers without end": ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000 .* at most 10,000"),
    "a size without end": ({"vocab_size": 10**1000}, "vocab_size is 1000.* characters"),
    "true for a number": ({"num_hidden_layers": True}, "num_hidden_layers is True"),
    "heads": ({"num_key_value_heads": 4}, "num_attention_heads 6 is not a multiple of num_key_value_heads 4"),
    "tied unknown": ({"tie_word_embeddings": ...}, "tie_word_embeddings is missing"),
    "tied as text": ({"tie_word_embeddings": "true"}, "tie_word_embeddings is 'true' in config.json; expected true or"),
    "eos": ({"eos_token_id": "im_end"}, "eos_token_id is 'im_end'"),
    "eos nested": ({"eos_token_id": [[3]]}, r"eos_token_id is \[\[3\]\]"),
    "epsilon": ({"rms_norm_eps": 10**400}, "rms_norm_eps is 1000.*expected a positive number"),
    "epsilon as text": ({"rms_norm_eps": "1e-06"}, "rms_norm_eps is '1e-06'"),
    "not a number": ({"rms_norm_eps": float("nan")}, "rms_norm_eps is nan"),
    "our format": ({"mlx_qwen3": {"format": 99}}, "mlx_qwen3.format is 99"),
    "ours of another type": ({"mlx_qwen3": "x"}, "mlx_qwen3 is 'x' in config.json; expected an object"),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refused_in_one_line_that_names_the_key_and_the_value(changes, message):
    with pytest.raises(ConfigError, match=message) as error:
        Qwen3Config.from_hf(config(**changes))
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "does not exist"), ("{", "is not valid JSON"), ("[]", "holds a list"), (b"\xff\xfe", "is not valid JSON")],
)
def test_a_broken_file_is_named(content, message, tmp_path):
    path = tmp_path / "config.json"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CheckpointError, match=message) as error:
        assert Checkpoint(tmp_path).config
    assert str(path) in str(error.value)


def test_as_many_kv_heads_as_heads_may_be_null():
    transformers = pytest.importorskip("transformers")
    assert transformers.Qwen3Config(**config(num_key_value_heads=None)).num_key_value_heads == 6
    assert Qwen3Config.from_hf(config(num_key_value_heads=None)).num_key_value_heads == 6


def test_what_transformers_saves_is_read(tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    transformers.Qwen3Config(**{**TINY, "rope_scaling": dict(YARN)}).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert "rope_parameters" in saved
    assert Qwen3Config.from_hf(saved) == Qwen3Config.from_hf(config(rope_scaling=YARN))
