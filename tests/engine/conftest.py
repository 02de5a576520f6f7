import pytest
from checkpoints import VOCABULARY, write_checkpoint, write_tokenizer

from mlx_qwen3.model.load import load_model
from mlx_qwen3.text.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def chat(tmp_path_factory):
    """(model, tokenizer) of a checkpoint with random weights."""
    folder = write_checkpoint(tmp_path_factory.mktemp("chat"), vocab_size=VOCABULARY, eos_token_id=258)
    return load_model(write_tokenizer(folder), "fp32"), Tokenizer(folder)
