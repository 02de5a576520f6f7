import os
import signal

# MLX, torch and transformers read these variables when they are imported. One thread each: tests run in a process for
# each core, and more threads than cores are much slower. No test reaches the network.
os.environ |= {"MKL_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
import mlx_qwen3  # noqa: F401 - before MLX, so that a fast BLAS serves the tests too, if there is one

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # pytest was started in the background, by a shell
    signal.signal(signal.SIGINT, signal.default_int_handler)  # or all that the tests start would ignore Ctrl-C

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benching import at_once, bench_chat, bench_report, nothing_runs  # noqa: F401 - fixtures
from checkpoints import TINY, TINY_MOE, write_checkpoint
from inspecting import four_layers, sick  # noqa: F401

from mlx_qwen3.compare import divergence


@pytest.fixture(scope="session", autouse=True)
def short_text() -> Iterator[None]:
    """Cut the text that conversions are measured on: it is long for a tokenizer with one token for each byte."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(divergence, "TEXT", divergence.TEXT[-150:])
        yield


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float32 checkpoint of two layers, tied."""
    return write_checkpoint(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("untied"), tie_word_embeddings=False)


@pytest.fixture(scope="session")
def tiny_moe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float32 checkpoint of three layers, the first and the last with experts."""
    return write_checkpoint(tmp_path_factory.mktemp("tiny_moe"), TINY_MOE)


@pytest.fixture(scope="session")
def ids() -> np.ndarray:
    """Token ids (2, 37)."""
    return np.random.default_rng(1).integers(0, TINY["vocab_size"], (2, 37))


@pytest.fixture
def transformers_model() -> Callable[..., Any]:
    """transformers' model of a folder; skips if torch or transformers is not installed."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    transformers.utils.logging.disable_progress_bar()

    def load(folder: Path, dtype: str = "float32") -> Any:
        return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval()

    return load


@pytest.fixture
def transformers_states() -> Callable[..., tuple[list[np.ndarray], np.ndarray]]:
    """Of a transformers model and ids (B, L): states after the embedding and each layer, and logits, as float32."""
    torch = pytest.importorskip("torch")

    def run(model: Any, ids: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        states: list[Any] = []
        watched = [model.model.embed_tokens, *model.model.layers]
        hooks = [m.register_forward_hook(lambda _m, _in, out: states.append(out)) for m in watched]
        with torch.no_grad():
            logits = model(torch.tensor(ids)).logits
        for hook in hooks:
            hook.remove()
        return [state.float().numpy() for state in states], logits.float().numpy()

    return run
