"""What runs the model: the prompt's passes in chunks, and the decode step, whose graph is built once and replayed.

B batch, L tokens, V vocabulary
"""

import weakref
from collections.abc import Sequence
from functools import partial
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from ..model import kernels, native
from ..model.cache import KVCache
from ..model.kv_format import KVFormat
from ..model.qwen3 import Qwen3
from ..model.view import Listener, ReplayView

# Tokens of one forward pass. They limit the memory of activations. On a CPU, MKL copies a weight for each product with
# it, so that short passes take longer (dev/LOG.md).
PREFILL_CHUNK = {mx.gpu: 2048, mx.cpu: 512}


def prefill_chunk() -> int:
    """Tokens of one pass on the default device."""
    return PREFILL_CHUNK[mx.default_device().type]


def prefill(model: Qwen3, ids: mx.array, cache: KVCache, chunk: int | None = None) -> mx.array:
    """Feed token ids (B, L) to the cache, `chunk` at a time; logits (B, V) of the last position only."""
    L, chunk = ids.shape[1], chunk or prefill_chunk()
    for start in range(0, L - chunk, chunk):
        model.ends(ids[:, start : start + chunk], cache, 0)
        mx.eval(cache.buffers)
    rest = ids[:, (L - 1) // chunk * chunk :]
    return model.logits(model.ends(rest, cache, 1)[:, 0])


class DecodeStep:
    """One new token per row: what `model(tokens[:, None], cache)` computes, as a graph that is replayed.

    A step that a CPU computes at once has no graph.

    Position and cache are arguments of the graph, so that one trace serves all tokens until the cache grows; the
    weights are its constants.
    """

    def __init__(self, model: Qwen3):
        self._model = weakref.ref(model)  # the model holds this step
        self._weights = _weights(model)
        self.weight_bytes = model.step_bytes
        self._steps: dict[KVFormat, kernels.Replayed] = {}

    def __call__(self, tokens: mx.array, cache: KVCache, watch: Listener | None = None) -> mx.array:
        """Logits (B, V) of the tokens (B,) that follow the prompt in the cache. A watched step is built anew."""
        model = self._model()
        assert model is not None, "the caller holds the model"
        if watch is None and steps_at_once(model, cache):
            with native.at_once(True):
                return model.logits(model.ends(tokens[:, None], cache, 1)[:, 0])
        arrays = cache.arrays()
        if watch is None:
            if (step := self._steps.get(cache.kv_format)) is None:
                step = self._steps[cache.kv_format] = kernels.Replayed(partial(_step, self._model, cache.kv_format))
            logits, *buffers = step(tokens, *arrays)
        else:
            logits, *buffers = _step(self._model, cache.kv_format, tokens, *arrays, watch=watch)
        cache.commit(buffers, 1)
        return logits

    def fits(self, model: Qwen3) -> bool:
        """Whether this step has the model's present weights. A trace keeps the weights that it was made with."""
        weights = _weights(model)
        same = len(weights) == len(self._weights) and all(a is b for a, b in zip(weights, self._weights, strict=True))
        return same and self._model() is model


def _step(
    model: weakref.ref[Qwen3],
    kv_format: KVFormat,
    tokens: mx.array,
    *arrays: mx.array,
    watch: Listener | None = None,
) -> list[mx.array]:
    """Logits (B, V) and the cache's new buffers, as a function of arrays alone."""
    alive = model()
    assert alive is not None, "the caller holds the model"
    view = ReplayView(*arrays, watch=watch, kv_format=kv_format)
    logits = alive.head(alive.states(tokens, view))  # not `logits`, which may compute them at once
    if watch is not None:
        watch("logits", logits[:, None])
    return [logits, *view.buffers]


def steps_at_once(model: Qwen3, cache: KVCache) -> bool:
    """Whether a call of the decode step computes it, and does not only build it."""
    # A CPU would copy the filled part of a packed buffer.
    return cache.kv_format.reads_parts() and model.computes_at_once(cache.batch, 1, cache.end)


def decode_step(model: Qwen3) -> DecodeStep:
    """The model's decode step. It is made at first use, and again if weights have been replaced since."""
    step = getattr(model, "decode_step", None)
    if step is None or not step.fits(model):
        step = model.decode_step = DecodeStep(model)
    return step


def known_cache(model: Qwen3, ids: mx.array, tokens: mx.array) -> KVCache:
    """A cache with prompts (B, L) and the beginnings (B, N) of their replies, computed as decoding computes them."""
    cache, step = model.make_cache(ids.shape[0]), decode_step(model)
    mx.eval(prefill(model, ids, cache), cache.buffers)
    for place in range(tokens.shape[1]):
        mx.eval(step(tokens[:, place], cache), cache.buffers)
    return cache


def _weights(model: Qwen3) -> list[Any]:
    return list(dict(tree_flatten(model.parameters())).values())


class Prefill:
    """Computes prompts into a cache, chunk by chunk: that of one row, or the ends of several in one pass."""

    def __init__(self, model: Qwen3, prompts: Sequence[Sequence[int]], caches: Sequence[KVCache]):
        """Each cache has one row and may hold the first tokens of its prompt already, but not all of them."""
        most = max(map(len, prompts))
        self._model = model
        self._ids = mx.array([[0] * (most - len(prompt)) + [*prompt] for prompt in prompts])
        if len(prompts) == 1:
            [self.cache] = caches
            self.cache.reserve(most - self.cache.end)  # of a known beginning, for all chunks at once
        else:
            new = max(len(prompt) - cache.end for prompt, cache in zip(prompts, caches, strict=True))
            self.cache = KVCache.gathered(caches, [len(prompt) for prompt in prompts], new)
        self.logits: mx.array | None = None  # (rows, V), once the prompts are computed; not evaluated

    @property
    def rows(self) -> int:
        return len(self._ids)

    @property
    def left(self) -> int:
        """Tokens of each row that are not computed yet."""
        return self._ids.shape[1] - self.cache.end

    def run(self, tokens: int) -> None:
        """Compute the next `tokens` tokens of each row, or all that are left."""
        first, last = self.cache.end, self.left <= tokens
        ends = self._model.ends(self._ids[:, first : first + tokens], self.cache, int(last))
        if last:
            self.logits = self._model.logits(ends[:, 0])
        else:
            mx.eval(self.cache.buffers)
