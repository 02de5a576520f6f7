"""The cache of keys and values, whose rows come and go.

B batch, K key/value heads, D head_dim
"""

from collections.abc import Callable, Mapping, Sequence
from weakref import WeakSet

import mlx.core as mx

from . import buffers, kernels
from .buffers import STEP, rounded
from .kv_format import FORMATS, PLAIN, KVFormat
from .view import EagerView, Listener

# Bytes of new buffers that are made before the old ones are freed. Each wait for the device costs a fraction of a
# millisecond, as much as a small layer takes.
AT_ONCE = 4 << 20
_alive: "WeakSet[KVCache]" = WeakSet()


class KVCache:
    """Keys and values of every layer, in one buffer (2, B, K, capacity, D) a layer, or three if they are quantized.

    The rows of a batch end together: row b fills the slots from `starts[b]` to `end`. The slots before its start are
    padding, which no token of the row attends to and which does not count as positions.
    """

    def __init__(self, batch: int = 1, padding: Sequence[int] | None = None, kv_format: KVFormat = PLAIN):
        starts = [0] * batch if padding is None else list(padding)
        if len(starts) != batch or min(starts) < 0:
            raise ValueError(f"padding is {starts}; expected {batch} numbers of tokens, one for each row of the batch")
        self.kv_format = kv_format
        self.end = 0
        self.limit = 0  # tokens that the rows reach at most, so that room is made for all of them at once; 0: unknown
        self.starts = starts
        self.start = mx.array(starts)
        self.buffers: list[mx.array] = []  # of the layers written so far; evaluate them after each chunk of a prompt
        self._filled = 0  # slots that hold numbers, if they are more than `end`
        self._slots = mx.arange(0)  # of the last window
        _alive.add(self)

    @property
    def batch(self) -> int:
        return len(self.starts)

    @property
    def nbytes(self) -> int:
        return sum(buffer.nbytes for buffer in self.buffers)

    @property
    def capacity(self) -> int:
        """Slots of a buffer, filled or not."""
        return self.buffers[0].shape[3] if self.buffers else 0

    @property
    def idle_bytes(self) -> int:
        """Bytes of the slots that nothing was written to."""
        used = max(self.end, self._filled)
        return self.nbytes * (self.capacity - used) // self.capacity if self.capacity else 0

    def view(self, length: int, watch: Listener | None = None) -> EagerView:
        """The view of a pass over `length` new tokens. Call `commit` with its buffers after the pass."""
        return EagerView(self, length, watch)

    def arrays(self) -> list[mx.array]:
        """What a ReplayView takes: `end`, `start`, the window, and the buffers, which have room for one more token."""
        self.reserve(1)
        size = buffers.window(self.end + 1, self.batch, self.capacity)
        used = self.capacity if kernels.on_gpu() else max(self.end, self._filled)  # `empty` gives a GPU zeros
        if size > used:
            for buffer in self.buffers:
                buffer[:, :, :, used:size] = 0
            self._filled = size
        if size != len(self._slots):
            self._slots = mx.arange(size)
        return [mx.array(self.end), self.start, self._slots, *self.buffers]

    def commit(self, written: list[mx.array], length: int) -> None:
        """Take the buffers that a pass has written, and count its `length` tokens."""
        self.buffers = written
        self.end += length

    def trim(self, length: int) -> None:
        """Forget the last `length` tokens."""
        padding = max(self.starts)
        if not 0 <= length <= max(0, self.end - padding):
            raise ValueError(f"cannot trim {length} of {self.end} tokens, {padding} of them padding")
        self.end -= length

    def erase(self, length: int) -> None:
        """Forget the last `length` tokens and clear their slots: a mask only multiplies by 0, and 0 * NaN is NaN."""
        self.trim(length)
        for buffer in self.buffers:
            buffer[:, :, :, self.end : self.end + length] = 0

    def reserve(self, length: int) -> None:
        """Make room for `length` more tokens."""
        if self.buffers and self.capacity < self.end + length:
            capacity = self.capacity_for(self.end + length)
            self._replace(lambda buffer: buffers.with_capacity(buffer, self.end, capacity))

    def capacity_for(self, tokens: int) -> int:
        """The capacity of new buffers for this many tokens."""
        if not self.kv_format.reads_parts():
            return rounded(tokens, self.batch)
        return buffers.grown_capacity(tokens, self.batch, self.end, self.limit)

    def mask(self, length: int) -> kernels.Mask:
        """Which of end + length keys `length` new queries may see, as scaled_dot_product_attention takes it."""
        if not any(self.starts):
            return "causal" if length > 1 else None
        queries = mx.arange(self.end, self.end + length)[:, None]
        keys = mx.arange(self.end + length)
        visible = (keys <= queries) & (keys >= self.start[:, None, None, None])
        # A padding query sees itself: a softmax over no keys is 0 / 0. A NaN would reach every later layer through the
        # values.
        return visible | (keys == queries)

    # --- rows come and go

    @classmethod
    def gathered(cls, rows: Sequence["KVCache"], lengths: Sequence[int], new: int) -> "KVCache":
        """A cache for one pass over the last `new` tokens of several prompts of these lengths.

        Each of `rows` has one row, without padding, with the tokens before these of its prompt, and maybe more. A
        shorter prompt than `new` gets padding at its left.
        """
        most = max(lengths)
        cache = cls(len(rows), [most - length for length in lengths], rows[0].kv_format)
        cache.end = most - new
        known = next((row.buffers for row in rows if row.buffers), [])
        for layer, like in enumerate(known):
            _, _, K, _, D = like.shape
            made = mx.zeros((2, len(rows), K, rounded(most + 1, len(rows)), D), like.dtype)
            for slot, (row, start) in enumerate(zip(rows, cache.starts, strict=True)):
                if start < cache.end:
                    part = row.buffers[layer][:, :, :, : cache.end - start]
                    made[:, slot : slot + 1, :, start : cache.end] = part
            cache.buffers.append(made)
        return cache

    def admit(self, slot: int, source: "KVCache", index: int = 0) -> None:
        """Copy a row of another cache to a free slot, so that its end is the end of the other rows.

        Only some layers at a time are in memory twice, and only if the new row is the longest. The copy is not
        evaluated here, so that several rows are copied at once.
        """
        start = source.starts[index]
        length = source.end - start
        if length > self.end:
            self._copy(list(range(self.batch)), self.batch, 0, length - self.end)
        first = self.end - length
        for layer, buffer in enumerate(source.buffers):
            # An earlier row may have left NaN in the padding. A mask does not help: 0 times NaN is NaN.
            self.buffers[layer][:, slot : slot + 1, :, :first] = 0
            part = buffer[:, index : index + 1, :, start : source.end]
            self.buffers[layer][:, slot : slot + 1, :, first : self.end] = part
        self._set_starts([first if row == slot else start for row, start in enumerate(self.starts)])

    def retire(self, slot: int) -> None:
        """Empty a slot. In later steps its row sees only tokens from then on."""
        self._set_starts([self.end if row == slot else start for row, start in enumerate(self.starts)])

    def extract(self, slot: int, length: int | None = None, room: int = 0) -> "KVCache":
        """A copy of one row without padding: of all its tokens, or of the first `length`. It has `room` for more."""
        row, start = KVCache(kv_format=self.kv_format), self.starts[slot]
        row.end = self.end - start if length is None else length
        for buffer in self.buffers:
            part = buffer[:, slot : slot + 1, :, start : start + row.end]
            capacity = rounded(row.end + room, 1)
            row.buffers.append(buffers.with_capacity(part, row.end, capacity) if room else mx.contiguous(part))
        mx.eval(row.buffers)
        return row

    def copy(self, length: int) -> "KVCache":
        """The first `length` tokens of this cache, which has one row. What is written to one does not change the other.

        Nothing is copied before the first write, which is part of a pass that waits for the device anyway.
        """
        row = KVCache(kv_format=self.kv_format)
        row.end, row.buffers = length, [buffer[:, :, :, :length] for buffer in self.buffers]
        return row

    def fit(self) -> None:
        """Drop the unused slots of the only row."""
        self._replace(lambda buffer: mx.contiguous(buffer[:, :, :, : self.end]))

    def stored(self) -> dict[str, mx.array]:
        """The keys and values of the only row by name, without unused slots; `restored` makes a cache from them.

        The arrays are not evaluated here, so that not all of them need to be in memory twice.
        """
        names = self.kv_format.names(len(self.buffers))
        return {name: buffer[:, :, :, : self.end] for name, buffer in zip(names, self.buffers, strict=True)}

    @classmethod
    def restored(cls, arrays: Mapping[str, mx.array], length: int) -> "KVCache":
        """The cache of one row of `length` tokens, from the arrays of `stored`. It uses them without a copy.

        Raises ValueError if they are not the arrays of a cache.
        """
        kv_format = next((known for known in FORMATS if known.names(1)[0] in arrays), PLAIN)
        names = kv_format.names(len(arrays))
        if set(names) != set(arrays) or any(
            a.shape[:2] != (2, 1) or a.shape[3:4] != (length,) for a in arrays.values()
        ):
            raise ValueError(f"{list(arrays)[:3]} are not the arrays of a cache of {length} tokens")
        row = cls(kv_format=kv_format)
        row.buffers, row.end = [arrays[name] for name in names], length
        return row

    def resize(self, size: int, rows: Sequence[int]) -> None:
        """Keep only these rows, in this order, in the first of `size` slots. Drop the padding that they share."""
        self._copy(rows, size, min(self.starts[row] for row in rows), 0)

    def compact(self, rows: Sequence[int]) -> None:
        """Drop the padding that these rows, the only active ones, share, if it is more than half of the buffer."""
        if 2 * (spare := min(self.starts[row] for row in rows)) > max(self.end, STEP):
            self._copy(list(range(self.batch)), self.batch, spare, 0)

    def _copy(self, rows: Sequence[int], size: int, first: int, lead: int) -> None:
        """Move the slots from `first` on of these rows to new buffers of `size` rows, after `lead` empty slots."""
        end = lead + self.end - first
        same = list(rows) == list(range(self.batch))

        def moved(buffer: mx.array) -> mx.array:
            _, _, K, _, D = buffer.shape
            made = mx.zeros((2, size, K, rounded(end + 1, size), D), buffer.dtype)
            kept = buffer if same else buffer[:, mx.array(list(rows))]
            made[:, : len(rows), :, lead:end] = kept[:, :, :, first : self.end]
            return made

        self._replace(moved)
        starts = [min(max(self.starts[row] - first, 0) + lead, end) for row in rows]
        self.end = end
        self._set_starts([*starts, *[end] * (size - len(rows))])

    def _replace(self, make: Callable[[mx.array], mx.array]) -> None:
        """Make new buffers from the old ones, some at a time, or all would be in memory twice."""
        waiting = 0
        for index in range(len(self.buffers)):
            self.buffers[index] = make(self.buffers[index])
            waiting += self.buffers[index].nbytes
            if waiting >= AT_ONCE or index == len(self.buffers) - 1:
                mx.eval(self.buffers)
                waiting = 0
        self._filled = 0

    def _set_starts(self, starts: list[int]) -> None:
        self.starts, self.start = starts, mx.array(starts)


def idle_bytes() -> int:
    """Bytes that MLX counts as used by caches, but that nothing was written to: on a CPU they take no memory."""
    return 0 if kernels.on_gpu() else sum(cache.idle_bytes for cache in list(_alive))
