"""A batch: rows that decode together, one token each per step, in a cache whose rows end together.

A row may join or leave between two steps. The number of slots is one of SIZES, so that few shapes have to be compiled.
The result of a slot without a row is ignored.

B slots, V vocabulary
"""

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from ..errors import HealthError
from ..files.values import to_mlx
from ..model import kernels
from ..model.cache import KVCache
from ..model.qwen3 import Qwen3
from .filters import BROKEN
from .logprobs import Scores
from .rows import Row
from .runner import decode_step
from .sampling import Sampler, SamplingParams

# In a batch, every row attends to as many slots as the longest row. A batch of its own saves a row this padding, but
# then a step reads all weights once more. A row joins if the padding of all rows has at most this share of the weights'
# bytes: attention takes about twice as long for a byte as a projection does (measured, dev/LOG.md).
PADDING = 0.5
SIZES = (1, 2, 4, 8, 16, 32)
IDLE = Row((0,), SamplingParams(temperature=0), 0)  # stands in a free slot
Coming = tuple[mx.array, Scores | None]  # the tokens (B,) of a step, and their log-probabilities
News = list[tuple[Row, int | Exception]]  # tokens in the order in which they were chosen, or the error


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
        self._failures: News = []  # of making masks, until the news of the step are told
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
        self._sampler = self._new_sampler()  # the old one may count tokens of a step that was dropped
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
        self._steered = any(row.steering for row in self.rows)
        self._asked = [row.logprobs if row else None for row in slots]
        self._scored = any(wanted is not None for wanted in self._asked)
        self._sampler = self._new_sampler()

    def _settle(self) -> None:
        """Bring the cache to the last known tokens: drop a step that was only built, wait for one that is running."""
        if self._before is not None:
            self._cache.buffers, self._cache.end = self._before
            self._before = None
        elif self._coming is not None:
            self._ready += self._receive(self._coming)
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
            coming, self._prompts = self._chosen(self._prompts, 0), None
            return [*self._receive(coming), *self._failed()]
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
        news = self._receive(coming)
        if self._coming is not None and kernels.on_gpu() and not all(row.ended for row in self.rows):
            self._hand_over(self._coming)  # on a CPU this waits for most of the step, so tokens are given before it
        return [*news, *self._failed()]

    def _failed(self) -> News:
        failures, self._failures = self._failures, []
        return failures

    def _hand_over(self, coming: Coming) -> None:
        self._before = None  # nothing else may hold the buffers that the step writes to
        tokens, scores = coming
        mx.async_eval(tokens, *(scores.arrays if scores else ()))

    def _goes_on(self) -> bool:
        """Whether to build the next step before the tokens of the running one are known."""
        if self._steered and any(row.waits() for row in self.rows):
            return False
        if self._drafter and self._drafter.expects():
            return False
        return any(row.left > 1 for row in self.rows)

    def _following(self, tokens: mx.array, unknown: int) -> Coming:
        """The tokens after `tokens` (B,), of which the last `unknown` of each row are not in its list yet."""
        return self._chosen(self._step(tokens, self._cache), unknown)

    def _chosen(self, logits: mx.array, unknown: int) -> Coming:
        """The tokens that are chosen by logits (B, V)."""
        raw = logits
        if self._steered:
            logits = self._allowed(logits)
        positions = [len(row.tokens) + unknown if row else 0 for row in self.slots]
        following = self._sampler.next(logits, positions)
        return following, Scores(raw, following, self._asked, self._vocabulary) if self._scored else None

    def _allowed(self, logits: mx.array) -> mx.array:
        """The logits (B, V) without the ids that the steering of a row excludes."""
        mx.async_eval(logits)  # the device computes while the host makes masks
        masks = [self._mask(row) if row else None for row in self.slots]
        if all(mask is None for mask in masks):
            return logits
        logits = logits[:, : self._vocabulary]
        everything = np.ones(logits.shape[-1], bool)
        return mx.where(to_mlx(np.stack([everything if mask is None else mask for mask in masks])), logits, -mx.inf)

    def _mask(self, row: Row) -> np.ndarray | None:
        try:
            return row.allowed()
        except Exception as error:
            row.ended = True
            self._failures.append((row, error))
            return None

    def _receive(self, coming: Coming) -> News:
        """Wait for the tokens of a step, and add them to their rows."""
        tokens: list[int] = coming[0].tolist()  # type: ignore[assignment]
        news: News = []
        steered = False
        for slot, (row, token) in enumerate(zip(self.slots, tokens, strict=True)):
            if row is None or row.ended:
                continue
            if token == BROKEN:
                row.ended = True
                news.append((row, self._sampler.broken(slot, len(row.tokens))))
                continue
            try:
                news.append((row, taken := row.take(token)))
                if coming[1] and row.logprobs is not None:
                    row.scores.append(coming[1].of(slot, taken))
            except Exception as error:  # of the row's steering: the other rows go on
                row.ended = True
                news.append((row, error))
                continue
            steered = steered or taken != token
        if steered:  # the sampler has counted the original token; every row must have its new one by now
            self._sampler = self._new_sampler()
        return news

    # --- drafts

    def _drafts(self) -> list[int]:
        if self._drafter is None or self._coming is not None:
            return []
        return self._drafter.propose(self.rows[0].left - 1, self._sampler)

    def _check(self, drafts: Sequence[int]) -> News:
        """The next tokens of the only row, from one pass over its last token and its drafts."""
        [row] = self.rows
        assert row.drafter is not None
        fed = [row.tokens[-1], *drafts]
        logits = self._model(mx.array([fed]), self._cache)[0]
        if row.waits():
            return self._check_one_by_one(logits, drafts)
        try:
            tokens = self._sampler.check(logits, len(row.tokens), fed)
        except HealthError:
            # A wrong guess may be NaN, which reaches earlier positions: a mask does not stop it. Try without guesses.
            self._cache.erase(len(fed))
            row.drafter.checked(len(drafts), 0)
            return self._plain_step()
        asked, taken = row.logprobs, list[int]()
        kept = logits[: len(tokens)]
        scores = Scores(kept, mx.array(tokens), [asked] * len(tokens), self._vocabulary) if self._scored else None
        for token in tokens:
            try:
                taken.append(row.take(token))
                if scores:
                    row.scores.append(scores.of(len(taken) - 1, taken[-1]))
            except Exception as error:
                row.ended = True
                return [*((row, token) for token in taken), (row, error)]
            if row.ended or taken[-1] != token:
                break
        self._cache.trim(len(fed) - len(taken))
        row.drafter.checked(len(drafts), len(taken) - 1)
        if taken != tokens:
            self._sampler = self._new_sampler()
        return [(row, token) for token in taken]

    def _check_one_by_one(self, logits: mx.array, drafts: Sequence[int]) -> News:
        """The same for a row whose steering needs each token before the next is chosen: a grammar has other masks then.

        logits (k + 1, V) of k drafts.
        """
        [row] = self.rows
        assert row.drafter is not None
        news: News = []
        for place, guess in enumerate([*drafts, None]):
            coming = self._chosen(logits[place : place + 1], 0)
            if coming[0].item() == BROKEN:  # see `_check`
                self._sampler = self._new_sampler()
                self._cache.erase(len(logits) - place)
                row.drafter.checked(len(drafts), place)
                return news or self._plain_step()
            news += [*self._receive(coming), *self._failed()]
            if row.ended or row.tokens[-1] != guess:
                break
        self._cache.trim(len(drafts) - place)
        row.drafter.checked(len(drafts), place)
        return news

    def _new_sampler(self) -> Sampler:
        rows = [row or IDLE for row in self.slots]
        return Sampler(
            [row.sampling for row in rows],
            [row.prompt for row in rows],
            self._vocabulary,
            [row.number for row in rows],
            [row.tokens for row in rows],
        )


def _size(rows: int) -> int:
    """The number of slots for so many rows."""
    return next(size for size in SIZES if size >= rows)
