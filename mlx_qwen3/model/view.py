"""What a forward pass sees of a cache of keys and values: a view.

B batch, L new tokens, S cached + new, H query heads, K key/value heads, D head_dim, T = B * L
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import mlx.core as mx

from . import kernels
from .buffers import empty
from .kv_format import PLAIN, KVFormat

if TYPE_CHECKING:
    from .cache import KVCache

# Called with the name of a step of the forward pass and its arrays. It must not change them.
Listener = Callable[..., None]


class View:
    """What one forward pass of B rows and L tokens sees of a cache. It also carries the pass's listener.

    `positions` (B, L) are those of the new tokens within their rows.
    """

    traced = False  # whether the graph of the pass may be compiled, so that no value can be read while it is built

    def __init__(self, positions: mx.array, length: int, watch: Listener | None = None, kv_format: KVFormat = PLAIN):
        self.positions = positions
        self.kv_format = kv_format
        self.shape = positions.shape[0], length
        self.watch = watch

    def attend(self, layer: int, q: mx.array, kv: mx.array, scale: float) -> mx.array:
        """Attention of queries (B, H, L, D) over the cached and the new keys and values, (B, H, L, D).

        Writes `kv` (2, B, K, L, D), the new keys and values of the layer, to the cache.
        """
        raise NotImplementedError

    def show(self, step: str, *arrays: mx.array) -> None:
        """Show arrays (T, any) to the listener, if there is one, as (B, L, any)."""
        if self.watch is not None:
            self.watch(step, *(array.reshape(*self.shape, *array.shape[1:]) for array in arrays))

    def _attend(self, q: mx.array, stored: Sequence[mx.array], scale: float, mask: kernels.Mask) -> mx.array:
        if self.watch is not None:
            kv = self.kv_format.unpack(stored)
            self.watch("cache", kv[0, :], kv[1, :])
        if q.shape[2] == 0:
            return q
        if isinstance(mask, mx.array):  # only the last queries may be asked for
            mask = mask[:, :, mask.shape[2] - q.shape[2] :]
        return self.kv_format.attend(q, stored, scale, mask)


class NoCache(View):
    """The view of a pass without a cache: it keeps no keys and values."""

    def __init__(self, batch: int, length: int, watch: Listener | None = None):
        super().__init__(mx.broadcast_to(mx.arange(length), (batch, length)), length, watch)
        self._mask = "causal" if length > 1 else None

    def attend(self, layer: int, q: mx.array, kv: mx.array, scale: float) -> mx.array:
        return self._attend(q, (kv,), scale, self._mask)


class EagerView(View):
    """The view of a pass whose graph is built for this pass alone: slices by integers, and no mask without padding."""

    def __init__(self, cache: "KVCache", length: int, watch: Listener | None = None):
        positions = mx.arange(cache.end, cache.end + length) - cache.start[:, None]
        super().__init__(positions, length, watch, cache.kv_format)
        cache.reserve(length)
        self.buffers = cache.buffers
        self._capacity = cache.capacity or cache.capacity_for(cache.end + length)
        self._first, self._end = cache.end, cache.end + length
        self._mask = cache.mask(length)

    def attend(self, layer: int, q: mx.array, kv: mx.array, scale: float) -> mx.array:
        stored, first = [], layer * self.kv_format.arrays
        for index, new in enumerate(self.kv_format.pack(kv), first):
            if index == len(self.buffers):
                self.buffers.append(empty((*new.shape[:3], self._capacity, new.shape[4]), new.dtype))
            buffer = self.buffers[index]
            buffer[:, :, :, self._first : self._end] = new
            stored.append(buffer[:, :, :, : self._end])
        return self._attend(q, stored, scale, self._mask)


class ReplayView(View):
    """The view of a decode step, whose graph is built once and replayed: what changes between steps is an array.

    A step has one token of each row. `end` is the number of slots filled before it, `start` (B,) the first slot of each
    row. It attends to the window `slots`, which are the numbers of the first slots, as many as its shape says; the mask
    hides those that are not filled.
    """

    traced = True

    def __init__(
        self,
        end: mx.array,
        start: mx.array,
        slots: mx.array,
        *buffers: mx.array,
        watch: Listener | None = None,
        kv_format: KVFormat = PLAIN,
    ):
        super().__init__((end - start)[:, None], 1, watch, kv_format)
        self.buffers = list(buffers)
        self._end = end
        self._window = len(slots)
        self._mask = (slots <= end) & (slots >= start[:, None, None, None])

    def attend(self, layer: int, q: mx.array, kv: mx.array, scale: float) -> mx.array:
        first, last = layer * self.kv_format.arrays, (layer + 1) * self.kv_format.arrays
        stored = self.buffers[first:last]
        stored = [
            mx.slice_update(buffer, new, self._end, (3,))
            for buffer, new in zip(stored, self.kv_format.pack(kv), strict=True)
        ]
        self.buffers[first:last] = stored
        if self._window < stored[0].shape[3]:
            stored = [buffer[:, :, :, : self._window] for buffer in stored]
        return self._attend(q, stored, scale, self._mask)
