from pathlib import Path

import pytest
from checkpoints import VOCABULARY, write_checkpoint, write_tokenizer
from screens import Screen

from mlx_qwen3 import blas


@pytest.fixture(autouse=True)
def no_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    """No command in this process prints the advice to install a BLAS, which appears on some machines only."""
    monkeypatch.setattr(blas, "advice", lambda _=None: None)


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    """A terminal of 80 columns with colours, to be given as the stream."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "80")
    return Screen()


@pytest.fixture(scope="session")
def chat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_checkpoint(tmp_path_factory.mktemp("chat"), vocab_size=VOCABULARY, eos_token_id=258)
    return write_tokenizer(folder)
