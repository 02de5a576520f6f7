import os
from pathlib import Path
from typing import Any

import pytest
from chats import TOKENS

from mlx_qwen3.text.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def real_folder() -> Path:
    folder = os.environ.get("QWEN3_TOKENIZER")
    if not folder:
        pytest.skip("QWEN3_TOKENIZER names no folder with the real Qwen3 tokenizer files")
    return Path(folder)


@pytest.fixture(scope="session")
def qwen(real_folder: Path) -> Tokenizer:
    return Tokenizer(real_folder)


@pytest.fixture(scope="session")
def theirs(real_folder: Path) -> Any:
    return pytest.importorskip("transformers").AutoTokenizer.from_pretrained(real_folder)


@pytest.fixture(scope="session")
def reference() -> Any:
    """transformers' tokenizer class with an almost empty vocabulary, to render any template."""
    import tokenizers

    transformers = pytest.importorskip("transformers")
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({text: i for i, text in enumerate(TOKENS.values())}, []))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **TOKENS)

    def render(source: str, messages: Any, **options: Any) -> str:
        options = {"add_generation_prompt": "continue_final_message" not in options, **options}
        return tokenizer.apply_chat_template(messages, chat_template=source, tokenize=False, **options)

    return render
