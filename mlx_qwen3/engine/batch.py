"""A batch: rows that decode together, one token each per step, in a cache whose rows end together.

A row may join or leave between two steps. The number of slots is one of SIZES, so that few shapes have to be compiled.
The result of a slot without a row is ignored.

B slots, V vocabulary
"""

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from ..model import kernels
from ..model.cache import KVCache
from ..model.qwen3 import Qwen3
from .next_tokens import Coming, News, NextTokens
from .rows import Row
from .runner import decode_step, steps_at_once

# In a batch, every row attends to as many slots as the longest row. A batch of its own saves a row this padding, but
# then a step reads all weights once more. A row joins if the padding of all rows has at most this share of the weights'
# bytes: attention takes about twice as long for a byte as a projection does (measured, dev/LOG.md).
PADDING = 0.5
SIZES = (1, 2, 4, 8, 16, 32)


class Batch:
    def __init__(self, model: Qwen3, rows: Sequence[Row], cache: KVCache, vocabulary: int, logits: mx.array):
        """`cache` holds the prompts of the rows, and `logits` (rows, V) are those of their ends.

        Ids from `vocabulary` up are never chosen.
        """
        self._model, self._step, self._vocabulary = model, decode_step(model), vocabulary
        self._cache = cache
        self.adapter = rows[0].adapter  # of every row: they share the model
        self._prompts: mx.array | None = logits
        self._coming: Coming | None = None  # a step that was built before it was needed
        self._before: tuple[list[mx.array], int] | None = None  # the cache without that step, until it is submitted
        self._ready: News = []
        self._seat(rows)

    @property
    def end(self) -> int:
        """The length of the longest row, or more: what each row of the cache takes."""
        return self._cache.end

    @property
    def nbytes(self) -> int:
        return self._cache.nbytes

    def takes(self, other: "Batch") -> bool:
        """Whether the rows of another batch should join this one."""
        if other.adapter != self.adapter:
            return False
        return len(self.rows) + len(other.rows) <= SIZES[-1] and all(self.near(row.length) for row in other.rows)

    def near(self, length: int) -> bool:
        """Whether a row of `length` tokens should join, and not begin a batch of its own."""
        rows = len(self.rows)
        padding = (length - self.end) * rows if length > self.end else self.end - length
        slot = self.nbytes / (len(self.slots) * self._cache.capacity)  # bytes of one row
        return rows < SIZES[-1] and padding * slot <= PADDING * self._step.weight_bytes

    # --- rows come and go

    def join(self, other: "Batch") -> None:
        """Take in the rows of another batch, which have their first tokens."""
        self._settle()
        if (needed := len(self.rows) + len(other.rows)) > len(self.slots):
            self._resize(_size(needed))
        slots = list(self.slots)
        for index, row in enumerate(other.slots):
            if row is not None:
                slot = slots.index(None)
                self._cache.admit(slot, other._cache, index)
                slots[slot] = row
        mx.eval(self._cache.buffers)  # written in place
        self._seat(slots)

    def leave(self, row: Row) -> None:
        """Remove a row, and drop its keys and values."""
        self._settle()
        slot = self.slots.index(row)
        self._seat([*self.slots[:slot], None, *self.slots[slot + 1 :]])
        self._cache.retire(slot)
        rows = len(self.rows)
        if rows and 4 * rows <= len(self.slots):
            self._resize(_size(rows))
        elif rows:
            self._cache.compact([slot for slot, row in enumerate(self.slots) if row])

    def take_out(self, row: Row) -> KVCache:
        """Remove a row. Returns its keys and values: of all its tokens but the last, which the model has not read."""
        self._settle()
        if self.slots == [row]:
            self._seat([None])
            cache = self._cache
        else:
            cache = self._cache.extract(self.slots.index(row))
            self.leave(row)
        cache.trim(cache.end - (row.length - 1))
        return cache

    def known(self, row: Row) -> np.ndarray:
        """The tokens of a row whose keys and values are in the cache."""
        return np.array([*row.prompt, *row.tokens][: row.length - 1], np.int32)

    def copy_of(self, row: Row, length: int, room: int) -> KVCache:
        """A cache with the first `length` tokens of a row, and room for more."""
        self._settle()
        self._seat(self.slots)
        return self._cache.extract(self.slots.index(row), length, room)

    def _resize(self, size: int) -> None:
        """Change the number of slots; the rows move to the first of them."""
        self._cache.resize(size, [slot for slot, row in enumerate(self.slots) if row])
        self._seat([*self.rows, *[None] * (size - len(self.rows))])

    def _seat(self, slots: Sequence[Row | None]) -> None:
        """Put rows into slots, and note here what every step would have to look up."""
        self.slots = list(slots)
        self.rows = [row for row in slots if row is not None]
        self._cache.limit = self._cache.end + max((row.left for row in self.rows), default=0)
        self._drafter = self.rows[0].drafter if len(slots) == 1 and self.rows else None
        self._next = NextTokens(self.slots, self._vocabulary)

    def _settle(self) -> None:
        """Bring the cache to the last known tokens: drop a step that was only built, wait for one that is running.

        `_seat` must follow.
        """
        if self._before is not None:
            self._cache.buffers, self._cache.end = self._before
            self._before = None
            # Penalties have counted the tokens of the dropped step. They would hold it, and with it the buffers, which
            # could not be written in place.
            del self._next
        elif self._coming is not None:
            self._ready += self._next.receive(self._coming)
        self._coming = None

    # --- tokens

    def step(self) -> News:
        """The next token of every row, or several of a single row whose drafts are right."""
        if self._ready:
            ready, self._ready = self._ready, []
            return ready
        if all(row.ended for row in self.rows):
            return []
        if self._prompts is not None:
            coming, self._prompts = self._next.choose(self._prompts), None
            return self._next.receive(coming)
        drafts = self._drafts()
        return self._check(drafts) if drafts else self._plain_step()

    def _plain_step(self) -> News:
        if len(self.slots) not in SIZES:
            self._resize(_size(len(self.rows)))
        coming = self._coming
        if coming is None:
            coming = self._following(mx.array([row.tokens[-1] if row else 0 for row in self.slots]), 0)
        self._hand_over(coming)
        self._coming = None
        if self._goes_on():
            # Python builds the next step while the device computes this one, and submits it when this one is done: MLX
            # writes the cache in place only if no unfinished work uses its buffers, and copies it otherwise.
            self._before = self._cache.buffers, self._cache.end
            self._coming = self._following(coming[0], 1)
        news = self._next.receive(coming)
        if self._coming is not None and kernels.on_gpu() and not all(row.ended for row in self.rows):
            self._hand_over(self._coming)  # on a CPU this waits for most of the step, so tokens are given before it
        return news

    def _hand_over(self, coming: Coming) -> None:
        self._before = None  # nothing else may hold the buffers that the step writes to
        tokens, scores = coming
        mx.async_eval(tokens, *(scores.arrays if scores else ()))

    def _goes_on(self) -> bool:
        """Whether to build the next step before the tokens of the running one are known."""
        if self._next.waits() or (self._drafter and self._drafter.expects()):
            return False
        if steps_at_once(self._model, self._cache):  # the tokens would come one step late
            return False
        return any(row.left > 1 for row in self.rows)

    def _following(self, tokens: mx.array, unknown: int) -> Coming:
        """The tokens after `tokens` (B,), of which the last `unknown` of each row are not in its list yet."""
        return self._next.choose(self._step(tokens, self._cache), unknown)

    # --- drafts

    def _drafts(self) -> list[int]:
        if self._drafter is None or self._coming is not None:
            return []
        return self._drafter.propose(self.rows[0].left - 1, self._next.sampler)

    def _check(self, drafts: Sequence[int]) -> News:
        """The next tokens of the only row, from one pass over its last token and its drafts."""
        [row] = self.rows
        assert row.drafter is not None
        known = len(row.tokens)
        logits = self._model(mx.array([[row.tokens[-1], *drafts]]), self._cache)[0]
        news, usable = self._next.check(logits, drafts)
        taken = len(row.tokens) - known
        unread = len(drafts) + 1 - taken
        if usable:
            self._cache.trim(unread)
        else:
            # A wrong guess may be NaN, which reaches earlier positions: a mask does not stop it. Try without guesses.
            self._cache.erase(unread)
        row.drafter.checked(len(drafts), max(0, taken - 1) if usable else taken)
        return news or self._plain_step()


def _size(rows: int) -> int:
    """The number of slots for so many rows."""
    return next(size for size in SIZES if size >= rows)
