"""A setting of the tokenizer that is not followed is named."""

import json
import warnings

import pytest
from checkpoints import VOCABULARY, write_checkpoint, write_tokenizer

from mlx_qwen3.errors import Qwen3Warning
from mlx_qwen3.text.ignored import NEUTRAL
from mlx_qwen3.text.tokenizer import Tokenizer


@pytest.fixture
def opened(tmp_path):
    def open_with(**settings):
        folder = write_tokenizer(write_checkpoint(tmp_path / "model", vocab_size=VOCABULARY))
        path = folder / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))
        return Tokenizer(folder)

    return open_with


@pytest.mark.parametrize("name", NEUTRAL)
def test_it_is_named(opened, name):
    value = ["tokenizer.4.0.json"] if name == "fast_tokenizer_files" else True
    with pytest.warns(Qwen3Warning, match=f"{name} is .* in tokenizer_config.json, which is not followed"):
        opened(**{name: value})


def test_values_that_change_nothing_are_not(opened):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        opened(clean_up_tokenization_spaces=True, **{name: values[0] for name, values in NEUTRAL.items()})
