"""What a quantized cache costs: one model with it and without it, over the same tokens.

B batch, L tokens, V vocabulary
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from ..engine.runner import prefill_chunk
from ..model.cache import KVCache
from ..model.qwen3 import Qwen3

POSITIONS = 128  # whose logits are computed at once


@dataclass(frozen=True)
class LayerCost:
    """Relative differences of one layer from the pass with the unquantized cache, ||a - b|| / ||b||.

    They compare the stored keys and values of the layer, and the residual stream after it. They include the errors of
    the layers before it.
    """

    keys: float
    values: float
    residual: float


@dataclass(frozen=True)
class CacheCost:
    kv_bits: int
    tokens: int  # of all rows
    token_bytes: int  # of a token in all layers
    unquantized_bytes: int
    layers: tuple[LayerCost, ...]
    kl_mean: float  # KL(unquantized || quantized) of the next token, in nats
    kl_max: float
    top1_agreement: float  # share of positions


def cache_cost(model: Qwen3, rows: Sequence[mx.array], kv_bits: int, chunk: int | None = None) -> CacheCost:
    """Run several arrays of token ids (B, L) through the model with both caches, in passes of `chunk` tokens.

    Raises UsageError if the model's head_dim does not allow `kv_bits`.
    """
    sums = _Sums(len(model.layers))
    for ids in rows:
        caches = model.make_cache(ids.shape[0]), model.make_cache(ids.shape[0], kv_bits=kv_bits)
        for start in range(0, ids.shape[1], chunk := chunk or prefill_chunk()):
            _pass(model, ids[:, start : start + chunk], caches, sums)
        for layer in range(len(model.layers)):
            keys, values = zip(*(_stored(cache, layer) for cache in caches), strict=True)
            sums.add(layer, "keys", *keys)
            sums.add(layer, "values", *values)
    return sums.cost(kv_bits, *(_token_bytes(cache) for cache in caches))


def _pass(model: Qwen3, ids: mx.array, caches: tuple[KVCache, KVCache], sums: "_Sums") -> None:
    views = [cache.view(ids.shape[1]) for cache in caches]
    streams = zip(*(model.residuals(ids, view) for view in views), strict=True)
    for layer, states in enumerate(streams, -1):  # the first are the embeddings
        if layer >= 0:
            sums.add(layer, "residual", *states)
    for cache, view in zip(caches, views, strict=True):
        cache.commit(view.buffers, ids.shape[1])
    hidden = [model.norm(state) for state in states]
    for first in range(0, ids.shape[1], POSITIONS):
        sums.add_logits(*(model.logits(x[:, first : first + POSITIONS]) for x in hidden))


def _stored(cache: KVCache, layer: int) -> tuple[mx.array, mx.array]:
    """Keys and values (B, K, L, D) as attention reads them."""
    arrays = cache.kv_format.arrays
    kv = cache.kv_format.unpack([buffer[:, :, :, : cache.end] for buffer in cache.buffers[layer * arrays :][:arrays]])
    return kv[0], kv[1]


def _token_bytes(cache: KVCache) -> int:
    return sum(buffer.nbytes // (buffer.shape[1] * buffer.shape[3]) for buffer in cache.buffers)


def _number(array: mx.array) -> float:
    value: float = array.item()  # type: ignore[assignment]
    return value


class _Sums:
    def __init__(self, layers: int):
        self._layers = [{name: [0.0, 0.0] for name in ("keys", "values", "residual")} for _ in range(layers)]
        self._tokens = self._same = 0
        self._kl, self._kl_max = 0.0, 0.0

    def add(self, layer: int, name: str, right: mx.array, found: mx.array) -> None:
        right, found = right.astype(mx.float32), found.astype(mx.float32)
        squares = self._layers[layer][name]
        squares[0] += _number(mx.square(found - right).sum())
        squares[1] += _number(mx.square(right).sum())

    def add_logits(self, right: mx.array, found: mx.array) -> None:
        wide = (logits.astype(mx.float32) for logits in (right, found))
        p, q = (logits - mx.logsumexp(logits, axis=-1, keepdims=True) for logits in wide)
        kl = mx.maximum((mx.exp(p) * (p - q)).sum(-1), 0)
        self._kl += _number(kl.sum())
        self._kl_max = max(self._kl_max, _number(kl.max()))
        self._same += int(_number((p.argmax(-1) == q.argmax(-1)).sum()))
        self._tokens += kl.size

    def cost(self, kv_bits: int, unquantized_bytes: int, token_bytes: int) -> CacheCost:
        layers = [
            LayerCost(**{name: math.sqrt(error / size) if size else 0.0 for name, (error, size) in layer.items()})
            for layer in self._layers
        ]
        return CacheCost(
            kv_bits=kv_bits,
            tokens=self._tokens,
            token_bytes=token_bytes,
            unquantized_bytes=unquantized_bytes,
            layers=tuple(layers),
            kl_mean=self._kl / self._tokens,
            kl_max=self._kl_max,
            top1_agreement=self._same / self._tokens,
        )
