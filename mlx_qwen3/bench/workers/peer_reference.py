"""reference.py: float32 on the CPU, without a cache. So every token costs a forward pass of all tokens before it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import mlx_qwen3

# isort: split
import numpy as np
import torch

from mlx_qwen3.compare.reference import load_reference
from mlx_qwen3.files.adapted import AdaptedCheckpoint
from mlx_qwen3.files.adapters import open_adapter
from mlx_qwen3.files.checkpoint import Checkpoint

from .serve import Emit, step_bytes


class Engine:
    versions: ClassVar = {"mlx-qwen3": mlx_qwen3.__version__, "torch": torch.__version__}
    blas = "of torch (MKL)" if torch.backends.mkl.is_available() else "of torch"
    host_time = False

    def load(self, folder: str, dtype: str | None, adapters: Sequence[str] = ()) -> dict[str, Any]:
        base = Checkpoint(Path(folder))
        opened = [open_adapter(adapter, base.config) for adapter in adapters]
        self._reference = load_reference(AdaptedCheckpoint(base, opened) if opened else base)
        tied = self._reference.config.tie_word_embeddings
        sizes = ((name, weight.nbytes) for name, weight in self._reference.weights.items())
        return {
            "dtype": "float32",
            "device": "cpu",
            "weight_bytes": step_bytes(sizes, tied, self._reference.config.moe),
            "cache_bytes": 0,
        }

    def generate(self, ids: list[int], count: int, emit: Emit) -> None:
        sequence = list(ids)
        for _ in range(count):
            sequence.append(int(self._reference(torch.tensor([sequence]))[0, -1].argmax()))
            emit(sequence[-1])

    def logits(self, ids: list[int], last: int) -> np.ndarray:
        return self._reference(torch.tensor([ids]))[0, -last:].numpy()

    def sampler(self, logits: np.ndarray) -> Callable[[], int] | None:
        return None

    def reset_peak(self) -> None:
        pass

    def peak(self) -> int | None:
        return None
