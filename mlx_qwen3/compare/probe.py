"""Watches a model's own forward pass: every step by layer and name, and the scores that fused attention hides."""

from typing import Protocol

import mlx.core as mx

from ..model.cache import KVCache
from ..model.qwen3 import Qwen3
from .flow import AFTER_LAYERS, EVENTS, Step
from .layer_steps import Blocks, score_maker


class Visitor(Protocol):
    """Gets the steps; it must not change an array. A layer of None means after the last layer."""

    def step(self, layer: int | None, step: Step, array: mx.array) -> None: ...

    def scores(self, layer: int, q: mx.array, blocks: Blocks, keys: int) -> None: ...


class Probe:
    """A listener to a model's passes with one cache. It counts the layers. Its visitor may be replaced at any time."""

    def __init__(self, model: Qwen3, cache: KVCache, visitor: Visitor):
        self._model, self._cache = model, cache
        self.visitor = visitor
        self._layer = -1
        self._q: mx.array | None = None

    def __call__(self, event: str, *arrays: mx.array) -> None:
        if event == "input":
            self._layer = (self._layer + 1) % len(self._model.layers)
        layer = None if event in AFTER_LAYERS else self._layer
        if event == "rope":
            self._q = arrays[0]
        elif event == "cache":
            arrays = self._filled(*arrays)
        for step, array in zip(EVENTS[event], arrays, strict=True):
            self.visitor.step(layer, step, array)
        if event == "cache":
            self._scores(arrays[0])

    def _filled(self, *arrays: mx.array) -> tuple[mx.array, ...]:
        """Keys or values without the empty end of the cache, which a replayed decode step also reads, and masks."""
        assert self._q is not None, "the model shows q before the cache"
        end = self._cache.end + self._q.shape[2]
        return tuple(array[:, :, :end] for array in arrays)

    def _scores(self, k: mx.array) -> None:
        q, self._q = self._q, None
        assert q is not None, "the model shows q before the cache"
        mask = self._cache.mask(q.shape[2])
        scale = self._model.layers[self._layer].self_attn.scale
        self.visitor.scores(self._layer, q, score_maker(q, k, scale, mask), k.shape[2])
