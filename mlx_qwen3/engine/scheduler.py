"""The scheduler: which rows run when.

A row waits, its prompt is prefilled alone, chunk by chunk, then it joins a batch, and it leaves when it has ended.
Between two chunks of a prompt every running row gets its next token.
"""

import math
import time
from collections import deque
from collections.abc import Iterator, Sequence

import mlx.core as mx
import numpy as np

from ..files.values import to_mlx
from ..model.cache import KVCache
from ..model.qwen3 import Qwen3
from .batch import Batch
from .beginnings import shared_length
from .filters import BROKEN
from .logprobs import Scores
from .memory import Memory
from .prefix import PrefixStore
from .rows import Row
from .runner import Prefill, prefill_chunk
from .sampling import Sampler
from .threads import any_thread

MAX_GAP = 0.25  # seconds that running rows may wait for one chunk of a prompt
SMALLEST_CHUNK = 16  # tokens
SOON = 32  # tokens of each row for which prefixes make room in time
WORTH_SHARING = 32  # tokens in common with a running row from which copying is faster than computing them

Event = tuple[Row, int | Exception]  # the next token of a row, or the error that ended it


class Scheduler:
    def __init__(
        self,
        model: Qwen3,
        vocabulary: int,
        *,
        max_rows: int = 1,
        max_gap: float = MAX_GAP,
        prefixes: PrefixStore | None = None,
        kv_bits: int | None = None,
        memory: Memory | None = None,
    ):
        """At most `max_rows` run together. Ids from `vocabulary` up are never chosen.

        `kv_bits` is that of `Qwen3.make_cache`; `prefixes` has caches with the same bits. With `memory`, a row waits if
        it does not fit beside the running ones.
        """
        self._model, self._vocabulary = model, vocabulary
        self._max_rows, self._max_gap = max_rows, max_gap
        self.prefixes, self._kv_bits = prefixes, kv_bits
        self._memory = memory
        self._waiting: deque[Row] = deque()
        self._prompt: tuple[Row, Prefill] | None = None
        self._batches: list[Batch] = []
        self._failed: set[Row] = set()  # failed rows that have not left their batch yet
        self._pace = 0.0  # seconds of prefill for a token, measured

    def add(self, row: Row) -> None:
        self._waiting.append(row)

    @property
    def running(self) -> list[Row]:
        return [row for batch in self._batches for row in batch.rows]

    @property
    def waiting(self) -> int:
        """How many rows have no token yet."""
        return len(self._waiting) + (self._prompt is not None)

    @property
    def busy(self) -> bool:
        return bool(self._batches or self._prompt or self._waiting)

    @any_thread
    def step(self) -> Iterator[Event]:
        """One token for every running row, then one chunk of a prompt.

        Set `ended` of a row to end it: what it holds is freed by the end of the next step.
        """
        self._make_room(self._prompt[0] if self._prompt else None)
        for batch in list(self._batches):
            yield from self._decode(batch)
        yield from self._prefill()

    def run(self) -> Iterator[Event]:
        """Step until all rows have ended."""
        while self.busy:
            yield from self.step()

    @any_thread
    def close(self) -> Iterator[Event]:
        """End every row without an event, and keep their prefixes."""
        self._waiting.clear()
        if self._prompt:
            self._keep_prompt(*self._prompt)
        self._prompt = None
        for batch in list(self._batches):
            for row in batch.rows:
                row.ended = True
            yield from self._decode(batch)

    # --- decode

    def _decode(self, batch: Batch) -> Iterator[Event]:
        try:
            for row, event in batch.step():
                if isinstance(event, Exception):
                    self._failed.add(row)
                yield row, event
        except Exception as error:  # the step of all rows has failed, and their cache is lost
            self._batches.remove(batch)
            for row in batch.rows:
                yield from fail(row, error)
        else:
            for row in batch.rows:
                if row.ended:
                    self._remove(batch, row)

    def _remove(self, batch: Batch, row: Row) -> None:
        failed = row in self._failed  # the error may be in what it has computed
        if self.prefixes is None or failed or not self._can_copy(batch, row):
            batch.leave(row)
            self._failed.discard(row)
        else:
            self._keep(batch.known(row), batch.take_out(row))
        if not batch.rows:
            self._batches.remove(batch)

    # --- prefill

    def _prefill(self) -> Iterator[Event]:
        """Compute one chunk of a prompt. After its last chunk the row has its first token, and joins a batch."""
        self._prompt = self._prompt or self._next_prompt()
        if self._prompt is None:
            return
        row, prompt = self._prompt
        try:
            if not row.ended:
                self._run(prompt)
            if row.ended:
                self._keep_prompt(row, prompt)
            elif prompt.logits is None:
                return
            else:
                yield row, self._first_token(row, prompt.logits)
                self._place(row, prompt.cache)
        except Exception as error:
            self._prompt = None
            yield from fail(row, error)
        self._prompt = None  # only now: if nobody reads on after the first token, `close` still needs it

    def _next_prompt(self) -> tuple[Row, Prefill] | None:
        while self._waiting and len(self.running) < self._max_rows and self._fits(self._waiting[0]):
            if not (row := self._waiting.popleft()).ended:
                cache = self._known_part(row) or self._model.make_cache(1, None, self._kv_bits)
                row.cached = cache.end
                return row, Prefill(self._model, row.prompt, cache)
        return None

    def _fits(self, row: Row) -> bool:
        """Whether there is memory for one more row, if need be after dropping prefixes. A row alone always fits."""
        memory = self._memory
        return memory is None or not self._batches or memory.with_row(self._batches, row) <= memory.budget

    def _room(self, row: Row | None) -> int | None:
        """The bytes that prefixes may take now, before the rows need all of their memory. None means no limit."""
        if (memory := self._memory) is None:
            return None
        used = memory.with_row(self._batches, row, SOON) if row else memory.running(self._batches, SOON)
        return max(0, memory.budget - used)

    def _make_room(self, new: Row | None) -> None:
        """Drop prefixes whose memory the rows need for their next tokens, including the row that is prefilled."""
        if self.prefixes and (room := self._room(new)) is not None:
            self.prefixes.shrink(room)

    def _can_copy(self, batch: Batch, row: Row) -> bool:
        """Whether there is memory for a copy of a row's prefix. The only row of a batch needs no copy."""
        if self.prefixes is None or self._memory is None or len(batch.slots) == 1:
            return True
        room = self._memory.budget - self._memory.running(self._batches, SOON) - self._memory.copy(row)
        self.prefixes.shrink(max(0, room))
        return room >= 0

    def _known_part(self, new: Row) -> KVCache | None:
        """A cache with the longest known beginning of a prompt, but never with its last token."""
        prompt = new.prompt
        ids = np.array(prompt[:-1], np.int32)
        kept = self.prefixes.longest(ids) if self.prefixes else 0
        shared = [(shared_length(ids, batch.known(row)), row, batch) for batch in self._batches for row in batch.rows]
        length, row, batch = max(shared, key=lambda entry: entry[0], default=(0, None, None))
        runs = length > kept and length >= WORTH_SHARING
        if self.prefixes and kept and not runs:
            return self.prefixes.take(ids, self._room(new))
        self._make_room(new)
        return batch.copy_of(row, length, len(prompt) - length) if runs and row and batch else None

    def _run(self, prompt: Prefill) -> None:
        tokens, start = min(self._chunk(), prompt.left), time.perf_counter()
        prompt.run(tokens)
        self._pace = (time.perf_counter() - start) / tokens

    def _chunk(self) -> int:
        """Tokens of the next chunk: limited by a pass, and by how long running rows may wait."""
        if not self._batches:
            return prefill_chunk()
        tokens = self._max_gap / self._pace if self._pace else 1
        return min(prefill_chunk(), max(SMALLEST_CHUNK, 1 << int(math.log2(max(tokens, 1)))))

    def _first_token(self, row: Row, logits: mx.array) -> int:
        raw = logits
        if (mask := row.allowed()) is not None:
            logits = mx.where(to_mlx(mask), logits[:, : self._vocabulary], -mx.inf)
        sampler = Sampler([row.sampling], [row.prompt], self._vocabulary, [row.number])
        chosen = sampler.next(logits, 0)
        token: int = chosen.item()  # type: ignore[assignment]
        if token == BROKEN:
            raise sampler.broken(0, 0)
        token = row.take(token)
        if row.logprobs is not None:
            row.scores.append(Scores(raw, chosen, [row.logprobs], self._vocabulary).of(0, token))
        return token

    def _place(self, row: Row, cache: KVCache) -> None:
        """Add a row whose prompt is computed to a batch of rows of similar length, or begin a new batch."""
        if row.ended:
            self._keep(row.prompt, cache)
            return
        fitting = [batch for batch in self._batches if batch.takes(row.length)]
        if fitting:
            min(fitting, key=lambda batch: abs(batch.end - row.length)).join(row, cache)
        else:
            self._batches.append(Batch(self._model, row, cache, self._vocabulary))

    def _keep_prompt(self, row: Row, prompt: Prefill) -> None:
        """Keep the computed part of a prompt whose reply was cancelled."""
        if prompt.cache.end:
            self._keep(row.prompt[: prompt.cache.end], prompt.cache)

    def _keep(self, ids: Sequence[int] | np.ndarray, cache: KVCache) -> None:
        if self.prefixes is not None:
            self.prefixes.put(ids, cache)
            self._make_room(self._prompt[0] if self._prompt else None)


def fail(row: Row, error: Exception) -> Iterator[Event]:
    """End a row by an error, unless it has ended already."""
    if not row.ended:
        row.ended = True
        yield row, error
