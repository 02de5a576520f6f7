from pathlib import Path

import pytest
from checkpoints import VOCABULARY, write_checkpoint, write_tokenizer


@pytest.fixture(scope="session")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_checkpoint(tmp_path_factory.mktemp("chat"), vocab_size=VOCABULARY, eos_token_id=258)
    return write_tokenizer(folder)
