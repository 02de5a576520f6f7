"""The numbers of a forward pass: shapes, statistics per layer and head, and the attention map of one head.

B batch, L new tokens, S cached + new
"""

from collections.abc import Mapping
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from ..compare.flow import ENTROPY, FIRST_TOKEN, K_SHARED, SCORES, SOFTMAX, V_SHARED, Step
from ..compare.layer_steps import Blocks
from ..compare.probe import Probe
from ..engine.runner import decode_step, known_cache, prefill_chunk
from ..files.dtypes import dtype_name
from ..model.qwen3 import Qwen3
from . import router
from .router import Router, RouterSteps
from .statistics import Accumulator, Statistics, grouped

LOGIT_POSITIONS = 128  # positions whose logits are computed at once; 78 MB for the vocabulary of Qwen3
MAP_CELLS = 192  # along each side of an attention map; in longer texts several tokens share a cell

Key = tuple[int | None, str]  # the layer, or None after the last one, and the step's name


@dataclass(frozen=True)
class Numbers:
    """The numbers of a forward pass of B rows of L tokens, which are the last of S."""

    batch: int
    length: int
    keys: int  # S
    shapes: dict[Key, tuple[int, ...]]
    dtypes: dict[Key, str]
    overall: dict[Key, Statistics]
    heads: dict[Key, list[Statistics]]  # only of the steps that have heads
    map_layer: int
    map_head: int
    # (cells of L, cells of S) of the first row: mean over a cell's queries, sum over its keys
    attention_map: np.ndarray
    routers: Mapping[int, Router]  # of the layers with experts


def measure(model: Qwen3, ids: mx.array, *, layer: int = 0, head: int = 0, chunk: int | None = None) -> Numbers:
    """Run token ids (B, L) through the model like `generate`, in passes of `chunk` tokens, and measure every step.

    `layer` and `head` choose the attention map. It needs the memory of one pass and one block of scores.
    """
    (B, L), chunk = ids.shape, chunk or prefill_chunk()
    collector = Collector(L, layer, head)
    cache = model.make_cache(B)
    probe = Probe(model, cache, collector)
    for start in range(0, L, chunk):
        hidden = model.hidden(ids[:, start : start + chunk], cache, probe)
        mx.eval(hidden, cache.buffers)
        for first in range(0, hidden.shape[1], LOGIT_POSITIONS):
            mx.eval(model.logits(hidden[:, first : first + LOGIT_POSITIONS], probe))
    return collector.result(B)


def measure_step(model: Qwen3, ids: mx.array, tokens: mx.array, *, layer: int = 0, head: int = 0) -> Numbers:
    """Measure the decode step whose input is the last of `tokens` (B, N), which follow prompts (B, L)."""
    cache = known_cache(model, ids, tokens[:, :-1])
    collector = Collector(1, layer, head, cache.end + 1)
    mx.eval(decode_step(model)(tokens[:, -1], cache, Probe(model, cache, collector)))
    return collector.result(len(ids))


class Collector:
    """A visitor of the probe that keeps statistics, and no arrays."""

    def __init__(self, length: int, map_layer: int, map_head: int, keys: int | None = None):
        """For the last `length` of `keys` tokens; by default all tokens."""
        self._length, self._keys = length, length if keys is None else keys
        self._map_layer, self._map_head = map_layer, map_head
        self._shapes: dict[Key, tuple[int, ...]] = {}
        self._dtypes: dict[Key, str] = {}
        self._sums: dict[Key, Accumulator] = {}
        self._with_heads: list[Key] = []
        self._map = _Map(self._length, self._keys)
        self._routers: dict[int, RouterSteps] = {}
        self._queries: dict[int, int] = {}  # how many queries of each layer have been seen

    def step(self, layer: int | None, step: Step, array: mx.array) -> None:
        self._note(layer, step, array.shape, array.dtype)
        if layer is not None and step.name in router.STEPS:
            self._routers.setdefault(layer, RouterSteps()).add(step.name, array)
        if not step.view:
            self._add(layer, step, array)

    def scores(self, layer: int, q: mx.array, blocks: Blocks, keys: int) -> None:
        B, H, L, D = q.shape
        for step in (K_SHARED, V_SHARED):
            self._note(layer, step, (B, H, keys, D), q.dtype)
        for step in (SCORES, SOFTMAX):
            self._note(layer, step, (B, H, L, keys), mx.float32)
        first = self._queries.get(layer, 0)
        for start, scores, weights, visible in blocks():
            self._add_block(layer, scores, weights, visible)
            if layer == self._map_layer:
                self._map.add(first + start, weights[0, self._map_head])
        self._queries[layer] = first + L

    def result(self, batch: int) -> Numbers:
        overall = {key: sums.overall() for key, sums in self._sums.items()}
        heads = {key: self._sums[key].each() for key in self._with_heads}
        attention_map = self._map.cells()
        place = (self._map_layer, self._map_head)
        sizes = (batch, self._length, self._keys)
        routers = {layer: steps.result() for layer, steps in self._routers.items()}
        return Numbers(*sizes, self._shapes, self._dtypes, overall, heads, *place, attention_map, routers)

    def _add_block(self, layer: int, scores: mx.array, weights: mx.array, visible: mx.array | None) -> None:
        self._add(layer, SCORES, scores, visible)
        # 0 log 0 counts as 0; NaN stays NaN
        entropy = -mx.where(weights == 0, 0, weights * mx.log(mx.where(weights == 0, 1, weights))).sum(-1)
        self._add(layer, ENTROPY, entropy)
        self._add(layer, FIRST_TOKEN, weights[..., 0])

    def _add(self, layer: int | None, step: Step, array: mx.array, visible: mx.array | None = None) -> None:
        key, axis = (layer, step.name), step.head_axis
        x = grouped(array, axis)
        if key not in self._sums:
            self._sums[key] = Accumulator(x.shape[0])
            if axis is not None:
                self._with_heads.append(key)
        self._sums[key].add(x, None if visible is None else grouped(mx.broadcast_to(visible, array.shape), axis))

    def _note(self, layer: int | None, step: Step, shape: tuple[int, ...], dtype: mx.Dtype) -> None:
        """Record the shape that all passes of a prompt have together, joined along the tokens."""
        key, axis = (layer, step.name), step.token_axis
        if (before := self._shapes.get(key)) and axis >= 0:
            shape = (*shape[:axis], before[axis] + shape[axis], *shape[axis + 1 :])
        self._shapes[key] = tuple(shape)
        self._dtypes[key] = dtype_name(dtype)


class _Map:
    """Attention weights of one head, averaged into at most MAP_CELLS cells a side."""

    def __init__(self, length: int, keys: int):
        self._tokens = -(-keys // MAP_CELLS)  # of one cell
        self._length = length
        self._sums = np.zeros((-(-length // self._tokens), -(-keys // self._tokens)))

    def add(self, first: int, weights: mx.array) -> None:
        """weights (C, S) of the queries from `first` on."""
        values = np.array(weights.astype(mx.float32))
        columns = np.add.reduceat(values, np.arange(0, values.shape[1], self._tokens), axis=1)
        rows = np.arange(first, first + len(values)) // self._tokens
        np.add.at(self._sums[:, : columns.shape[1]], rows, columns)

    def cells(self) -> np.ndarray:
        queries = np.bincount(np.arange(self._length) // self._tokens, minlength=len(self._sums))
        return self._sums / queries[:, None]
