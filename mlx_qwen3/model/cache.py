"""The KV cache: the sole owner of position."""

from collections.abc import Sequence

import mlx.core as mx

STEP = 256  # tokens by which a buffer grows; a write inside the buffer is in place


class KVCache:
    """Keys and values of every layer, one buffer (2, B, K, capacity, D) each of which `offset` tokens are filled.

    Rows of a batch are aligned at their ends: row b starts with `padding[b]` tokens that no other token attends to
    and that do not count as positions.
    """

    def __init__(self, batch: int = 1, padding: Sequence[int] | None = None):
        padding = [0] * batch if padding is None else list(padding)
        if len(padding) != batch or min(padding) < 0:
            raise ValueError(f"padding is {padding}; expected {batch} numbers of tokens, one for each row of the batch")
        self.batch = batch
        self.offset = 0
        self.padding = mx.array(padding)
        self.buffers: list[mx.array] = []  # of the layers written so far; evaluate them where a prefill is cut
        self._most_padding = max(padding)

    @property
    def positions(self) -> int | mx.array:
        """Position of the next token: one for all rows or, with padding, (B,)."""
        return self.offset - self.padding if self._most_padding else self.offset

    def mask(self, length: int) -> mx.array | str | None:
        """What `length` new queries may see of offset + length keys, as scaled_dot_product_attention takes it."""
        if not self._most_padding:
            return "causal" if length > 1 else None
        queries = mx.arange(self.offset, self.offset + length)[:, None]
        keys = mx.arange(self.offset + length)
        visible = (keys <= queries) & (keys >= self.padding[:, None, None, None])
        # A padding query sees itself: a softmax over nothing is 0 / 0, and where a kernel lets that be NaN it would
        # reach every later layer through the values.
        return visible | (keys == queries)

    def update(self, layer: int, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Write new keys and values (B, K, L, D) of one layer; returns all of them so far, (B, K, S, D)."""
        B, K, L, D = keys.shape
        end = self.offset + L
        if layer == len(self.buffers):
            self.buffers.append(mx.zeros((2, B, K, 0, D), keys.dtype))
        buffer = self.buffers[layer] = _with_capacity(self.buffers[layer], end)
        buffer[0, :, :, self.offset : end] = keys
        buffer[1, :, :, self.offset : end] = values
        return buffer[0, :, :, :end], buffer[1, :, :, :end]

    def reserve(self, length: int) -> None:
        """Make room for `length` more tokens."""
        self.buffers = [_with_capacity(buffer, self.offset + length) for buffer in self.buffers]

    def advance(self, length: int) -> None:
        """Move on, once every layer has been given its `length` new tokens."""
        self.offset += length

    def trim(self, length: int) -> None:
        """Forget the last `length` tokens."""
        if not 0 <= length <= max(0, self.offset - self._most_padding):
            raise ValueError(f"cannot trim {length} of {self.offset} tokens, {self._most_padding} of them padding")
        self.offset -= length


def _with_capacity(buffer: mx.array, needed: int) -> mx.array:
    filled = buffer.shape[3]
    if filled >= needed:
        return buffer
    extra = mx.zeros((*buffer.shape[:3], -(-needed // STEP) * STEP - filled, buffer.shape[4]), buffer.dtype)
    return mx.concatenate([buffer, extra], axis=3) if filled else extra
