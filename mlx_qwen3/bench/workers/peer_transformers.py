"""transformers' Qwen3 by `model.generate`: on mps if there is one, else on cuda, else on the CPU."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
import transformers
from transformers import AutoModelForCausalLM, GenerationConfig
from transformers.generation.logits_process import (
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation.streamers import BaseStreamer

from .serve import Emit, step_bytes

transformers.utils.logging.disable_progress_bar()


class Engine:
    versions: ClassVar = {"torch": torch.__version__, "transformers": transformers.__version__}
    blas = "of torch (MKL)" if torch.backends.mkl.is_available() else "of torch"

    def __init__(self) -> None:
        mps, cuda = torch.backends.mps.is_available(), torch.cuda.is_available()
        self._device = "mps" if mps else "cuda" if cuda else "cpu"
        # On the CPU the calling thread computes, and with CUDA it waits by spinning.
        self.host_time = self._device == "mps"

    def load(self, folder: str, dtype: str | None, adapters: Sequence[str] = ()) -> dict[str, Any]:
        options = {"dtype": getattr(torch, dtype)} if dtype else {}
        read: Any = AutoModelForCausalLM.from_pretrained
        self._model = read(folder, **options)
        self._model.generation_config = GenerationConfig(
            do_sample=False
        )  # no end token, so that all make the same number of tokens
        for adapter in adapters:
            from peft import PeftModel

            self._model = PeftModel.from_pretrained(self._model, adapter)
        self._model = self._model.to(self._device).eval()
        c = self._model.config
        sizes = ((name, weight.nbytes) for name, weight in self._model.named_parameters())  # a tied matrix counts once
        return {
            "dtype": str(self._model.dtype).removeprefix("torch."),
            "device": self._device,
            "weight_bytes": step_bytes(sizes, c.tie_word_embeddings, c),
            "cache_bytes": 2 * c.num_hidden_layers * c.num_key_value_heads * c.head_dim * self._model.dtype.itemsize,
        }

    def generate(self, ids: list[int], count: int, emit: Emit) -> None:
        prompt = torch.tensor([ids], device=self._device)
        self._model.generate(
            prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=count, streamer=_Streamer(emit)
        )

    @torch.no_grad()
    def logits(self, ids: list[int], last: int) -> np.ndarray:
        output = self._model(torch.tensor([ids], device=self._device), logits_to_keep=last)
        return output.logits[0].float().cpu().numpy()

    def sampler(self, logits: np.ndarray) -> Callable[[], int]:
        values = torch.from_numpy(logits).to(self._device, self._model.dtype)
        none = torch.empty((1, 0), dtype=torch.long, device=self._device)
        filters: Any = LogitsProcessorList([TemperatureLogitsWarper(0.6), TopKLogitsWarper(20), TopPLogitsWarper(0.95)])

        def draw() -> int:
            # float32, as `generate` has them at this point
            kept = filters(none, values.to(torch.float32, copy=True))
            return int(torch.multinomial(kept.softmax(-1), 1).item())

        return draw

    def reset_peak(self) -> None:
        if self._device == "cuda":
            torch.cuda.reset_peak_memory_stats()

    def peak(self) -> int | None:
        return torch.cuda.max_memory_allocated() if self._device == "cuda" else None


class _Streamer(BaseStreamer):
    """Calls `emit` for every token but the prompt's, which come first."""

    def __init__(self, emit: Emit) -> None:
        self._emit, self._seen_prompt = emit, False

    def put(self, value: torch.Tensor) -> None:
        if self._seen_prompt:
            self._emit(int(value.item()))
        self._seen_prompt = True

    def end(self) -> None:
        pass
