"""What the tests of `inspect` share, here and in cli/: a healthy checkpoint and a sick one."""

import math
from pathlib import Path

import pytest
from checkpoints import TINY, VOCABULARY, random_weights, write_checkpoint, write_tokenizer

FOUR = {**TINY, "num_hidden_layers": 4, "vocab_size": VOCABULARY}


@pytest.fixture(scope="session")
def four_layers(tmp_path_factory) -> Path:
    return write_tokenizer(write_checkpoint(tmp_path_factory.mktemp("inspected") / "chat", FOUR))


@pytest.fixture(scope="session")
def sick(tmp_path_factory) -> Path:
    """A NaN in layer 2."""
    weights = random_weights(FOUR)
    weights["model.layers.2.mlp.up_proj.weight"][0, 0] = math.nan
    folder = tmp_path_factory.mktemp("inspected") / "a <b>sick</b> one"
    return write_tokenizer(write_checkpoint(folder, FOUR, weights))
