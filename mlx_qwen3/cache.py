"""The KV cache: the sole owner of position."""

from collections.abc import Sequence

import mlx.core as mx

STEP = 256  # tokens by which a buffer grows; a write inside the buffer is in place


class KVCache:
    """Keys and values of every layer, each a buffer (B, K, capacity, D) of which `offset` tokens are filled.

    Rows of a batch are aligned at their ends: row b starts with `padding[b]` tokens that no other token attends to
    and that do not count as positions.
    """

    def __init__(self, layers: int, batch: int = 1, padding: Sequence[int] | None = None):
        padding = [0] * batch if padding is None else list(padding)
        if len(padding) != batch or min(padding) < 0:
            raise ValueError(f"padding is {padding}; expected {batch} numbers of tokens, one for each row of the batch")
        self.batch = batch
        self.offset = 0
        self._most_padding = max(padding)
        self._padding = mx.array(padding) if any(padding) else None
        self._keys: list[mx.array | None] = [None] * layers
        self._values: list[mx.array | None] = [None] * layers

    @property
    def positions(self) -> int | mx.array:
        """Position of the next token: one for all rows or, with padding, (B,)."""
        return self.offset if self._padding is None else self.offset - self._padding

    @property
    def arrays(self) -> list[mx.array]:
        """All buffers, to be evaluated where a prefill is cut into chunks."""
        return [array for array in (*self._keys, *self._values) if array is not None]

    def mask(self, length: int) -> mx.array | str | None:
        """What `length` new queries may see of offset + length keys, as scaled_dot_product_attention takes it."""
        if self._padding is None:
            return "causal" if length > 1 else None
        queries = mx.arange(self.offset, self.offset + length)[:, None]
        keys = mx.arange(self.offset + length)
        visible = (keys <= queries) & (keys >= self._padding[:, None, None, None])
        # A padding query sees itself: a softmax over nothing is 0 / 0, and where a kernel lets that be NaN it would
        # reach every later layer through the values.
        return visible | (keys == queries)

    def update(self, layer: int, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Write new keys and values (B, K, L, D) of one layer; returns all of them so far, (B, K, S, D)."""
        return self._write(self._keys, layer, keys), self._write(self._values, layer, values)

    def _write(self, store: list[mx.array | None], layer: int, new: mx.array) -> mx.array:
        end = self.offset + new.shape[2]
        buffer = store[layer] = _with_capacity(store[layer], end, new)
        buffer[:, :, self.offset : end] = new
        return buffer[:, :, :end]

    def advance(self, length: int) -> None:
        """Move on, once every layer has been given its `length` new tokens."""
        self.offset += length

    def trim(self, length: int) -> None:
        """Forget the last `length` tokens."""
        if not 0 <= length <= max(0, self.offset - self._most_padding):
            raise ValueError(f"cannot trim {length} of {self.offset} tokens, {self._most_padding} of them padding")
        self.offset -= length


def _with_capacity(buffer: mx.array | None, needed: int, like: mx.array) -> mx.array:
    if buffer is not None and buffer.shape[2] >= needed:
        return buffer
    B, K, _, D = like.shape
    filled = 0 if buffer is None else buffer.shape[2]
    extra = mx.zeros((B, K, -(-needed // STEP) * STEP - filled, D), like.dtype)
    return extra if buffer is None else mx.concatenate([buffer, extra], axis=2)
