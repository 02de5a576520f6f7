"""mlx-lm, by its own loop with its own defaults."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.generate import BatchGenerator, generate_step, generation_stream, wired_limit
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.sample_utils import make_sampler
from mlx_lm.tuner.utils import load_adapters
from mlx_lm.utils import load_model

from .on_mlx import OnMlx, as_numpy
from .serve import Emit, EmitOfRow


class Engine(OnMlx):
    def __init__(self) -> None:
        super().__init__("mlx-lm")

    def load(self, folder: str, dtype: str | None, adapters: Sequence[str] = ()) -> dict[str, Any]:
        self._model, _ = load_model(Path(folder))
        for adapter in adapters:
            self._model = load_adapters(self._model, adapter)
        self._model.eval()
        if dtype:
            self._model.set_dtype(getattr(mx, dtype))
            mx.eval(self._model.parameters())
        self._dtype = self._model.model.norm.weight.dtype
        args = self._model.args
        values = 2 * args.num_hidden_layers * args.num_key_value_heads * args.head_dim
        return self.describe(self._model, self._dtype, args.tie_word_embeddings, args, values)

    def generate(self, ids: list[int], count: int, emit: Emit) -> None:
        stream: Any = generation_stream
        with wired_limit(self._model, [stream]):  # as its stream_generate does
            for token, _ in generate_step(mx.array(ids), self._model, max_tokens=count):
                emit(int(token))
        mx.synchronize(stream)

    def batch(self, prompts: list[list[int]], count: int, emit: EmitOfRow) -> None:
        generator = BatchGenerator(self._model, stop_tokens=[])
        uids = generator.insert(prompts, [count] * len(prompts))
        while responses := generator.next_generated():
            for response in responses:
                emit(uids.index(response.uid), int(response.token))
        generator.close()

    def logits(self, ids: list[int], last: int) -> np.ndarray:
        cache, prompt = make_prompt_cache(self._model), mx.array([ids])
        if len(ids) > last:
            self._model(prompt[:, :-last], cache=cache)
            mx.eval([layer.state for layer in cache])
        return as_numpy(self._model(prompt[:, -last:], cache=cache)[0])

    def sampler(self, logits: np.ndarray) -> Callable[[], int]:
        values = mx.array(logits).astype(self._dtype)
        values = values - mx.logsumexp(values, keepdims=True)  # what its loop hands to a sampler
        mx.eval(values)
        choose = make_sampler(temp=0.6, top_p=0.95, top_k=20)
        return lambda: choose(values).item()  # type: ignore[return-value]
