"""This package, by the functions that its users call."""

from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import mlx_qwen3  # before MLX, since its __init__ loads a BLAS

# isort: split
import mlx.core as mx
import numpy as np

from mlx_qwen3 import blas
from mlx_qwen3.engine.decode import decode
from mlx_qwen3.engine.memory import default_budget
from mlx_qwen3.engine.rows import Row
from mlx_qwen3.engine.runner import prefill
from mlx_qwen3.engine.sampler import Sampler
from mlx_qwen3.engine.sampling import SamplingParams
from mlx_qwen3.engine.scheduler import Scheduler
from mlx_qwen3.engine.weights import check, choose
from mlx_qwen3.files.adapters import open_adapter
from mlx_qwen3.files.checkpoint import Checkpoint
from mlx_qwen3.model.load import load_model

from .limits import measure
from .on_mlx import OnMlx, as_numpy
from .serve import Emit, EmitOfRow


class Engine(OnMlx):
    def __init__(self) -> None:
        super().__init__()
        self.versions["mlx-qwen3"] = mlx_qwen3.__version__
        self.blas = blas.in_use or self.blas

    def load(
        self, folder: str, dtype: str | None, weights: str | None = None, adapters: Sequence[str] = ()
    ) -> dict[str, Any]:
        checkpoint, kind = Checkpoint(Path(folder)), getattr(mx, dtype) if dtype else None
        opened = [open_adapter(adapter, checkpoint.config) for adapter in adapters]
        [chosen] = choose([checkpoint], kind, weights, budget := default_budget(), adapters=opened)
        check([chosen], budget)
        self._model = load_model(checkpoint, kind, opened, chosen.unpack)
        self._dtype = self._model.norm.weight.dtype
        c = self._model.config
        values = 2 * c.num_hidden_layers * c.num_key_value_heads * c.head_dim
        described = self.describe(self._model, self._dtype, c.tie_word_embeddings, c.moe, values)
        return described | {"weight_bytes": self._model.step_bytes, "notes": [chosen.note] if chosen.note else []}

    def generate(self, ids: list[int], count: int, emit: Emit) -> None:
        for token in decode(self._model, ids, SamplingParams(temperature=0), max_tokens=count):
            emit(token)

    def batch(self, prompts: list[list[int]], count: int, emit: EmitOfRow) -> None:
        # A gap of any length: prompts are computed as fast as they can be, however long rows that run wait for it.
        vocabulary = self._model.config.vocab_size
        scheduler = Scheduler(self._model, vocabulary, max_rows=len(prompts), max_gap=1e9)
        for number, ids in enumerate(prompts):
            scheduler.add(Row(ids, SamplingParams(temperature=0), count, number=number))
        for row, event in scheduler.run():
            if isinstance(event, Exception):
                raise event
            emit(row.number, event)

    def logits(self, ids: list[int], last: int) -> np.ndarray:
        cache, prompt = self._model.make_cache(), mx.array([ids])
        if len(ids) > last:
            mx.eval(prefill(self._model, prompt[:, :-last], cache))
        return as_numpy(self._model(prompt[:, -last:], cache)[0])

    def sampler(self, logits: np.ndarray) -> Callable[[], int]:
        values, sampler = mx.array(logits).astype(self._dtype), Sampler(SamplingParams(), [[0]], logits.shape[1])
        positions = count()
        return lambda: sampler.next(values, next(positions)).item()  # type: ignore[return-value]

    def limits(self) -> dict[str, float]:
        return measure(self._dtype)
