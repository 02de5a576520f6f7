"""The scheduler: which rows run when.

A row waits, its prompt is prefilled, chunk by chunk or together with other short ones, then it joins a batch, and it
leaves when it has ended. Between two chunks every running row gets its next token.
"""

import math
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence

import mlx.core as mx
import numpy as np

from ..model.cache import KVCache
from ..model.qwen3 import Qwen3
from .batch import SIZES, Batch
from .beginnings import shared_length
from .grouping import WORTH_SHARING, together, waits
from .memory import Memory
from .next_tokens import Event
from .prefix import PrefixStore
from .rows import Row
from .runner import Prefill, prefill_chunk
from .threads import any_thread

MAX_GAP = 0.25  # seconds that running rows may wait for one chunk of a prompt
SMALLEST_CHUNK = 16  # tokens
SOON = 32  # tokens of each row for which prefixes make room in time

Running = tuple[Row, Batch]


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
        adapters: Mapping[str | None, Qwen3] | None = None,
    ):
        """At most `max_rows` run together. Ids from `vocabulary` up are never chosen.

        `kv_bits` is that of `Qwen3.make_cache`; `prefixes` has caches with the same bits. With `memory`, a row waits if
        it does not fit beside the running ones. `adapters` are the models of rows that name an adapter: only rows with
        the same model share a pass, a batch or a prefix.
        """
        self._models = {None: model, **(adapters or {})}
        self._vocabulary = vocabulary
        self._max_rows, self._max_gap = max_rows, max_gap
        self.prefixes, self._kv_bits = prefixes, kv_bits
        self._memory = memory
        self._waiting: deque[Row] = deque()
        self._prompt: tuple[list[Row], Prefill] | None = None
        self._batches: list[Batch] = []
        self._failed: set[Row] = set()  # failed rows that have not left their batch yet
        self._pace = 0.0  # seconds of prefill for a token, measured
        self._timed: tuple[int, float] | None = None  # tokens of the chunk that runs, and when it began

    def add(self, row: Row) -> None:
        self._waiting.append(row)

    @property
    def running(self) -> list[Row]:
        return [row for batch in self._batches for row in batch.rows]

    @property
    def waiting(self) -> int:
        """How many rows have no token yet."""
        return len(self._waiting) + len(self._prefilling)

    @property
    def _prefilling(self) -> list[Row]:
        prompt = self._prompt  # read once: another thread may ask for `waiting`
        return prompt[0] if prompt else []

    @property
    def busy(self) -> bool:
        return bool(self._batches or self._prompt or self._waiting)

    @any_thread
    def step(self) -> Iterator[Event]:
        """One token for every running row, then one chunk of a prompt.

        Set `ended` of a row to end it: what it holds is freed by the end of the next step.
        """
        return self._step()

    @any_thread
    def run(self) -> Iterator[Event]:
        """Step until all rows have ended."""
        while self.busy:
            yield from self._step()

    def _step(self) -> Iterator[Event]:
        if self.prefixes:
            self._make_room()
        for batch in list(self._batches):
            yield from self._decode(batch)
        if self._prompt or self._waiting:
            yield from self._prefill()

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
            self._keep(batch.known(row), batch.take_out(row), row.adapter)
        if not batch.rows:
            self._batches.remove(batch)

    # --- prefill

    def _prefill(self) -> Iterator[Event]:
        """Compute one chunk of a prompt, or several short prompts. Then their rows get a token, and join a batch."""
        self._prompt = self._prompt or self._next_prompts()
        if self._prompt is None:
            return
        rows, prompt = self._prompt
        try:
            if not all(row.ended for row in rows):
                self._run(prompt)
            elif prompt.logits is None:
                self._keep_prompt(rows, prompt)
                self._prompt = None
        except Exception as error:
            self._prompt = None
            for row in rows:
                yield from fail(row, error)
        if self._prompt and prompt.logits is not None:
            self._prompt = None
            model = self._models[rows[0].adapter]
            yield from self._begin(Batch(model, rows, prompt.cache, self._vocabulary, prompt.logits))

    def _begin(self, batch: Batch) -> Iterator[Event]:
        """The first tokens of rows whose prompts are computed. Then they join a batch of rows of similar length."""
        self._batches.append(batch)
        for event in self._decode(batch):
            self._note_pace()
            yield event
        if batch not in self._batches:
            return
        others = [other for other in self._batches if other is not batch and other.takes(batch)]
        if others:
            min(others, key=lambda other: abs(other.end - batch.end)).join(batch)
            self._batches.remove(batch)

    def _next_prompts(self) -> tuple[list[Row], Prefill] | None:
        """The next row, and those after it whose prompts should be computed in the same pass."""
        rows: list[Row] = []
        left: list[int] = []
        most = min(self._max_rows - len(self.running), SIZES[-1])
        while self._waiting and len(rows) < most and self._fit([*rows, self._waiting[0]]):
            row = self._waiting[0]
            if not row.ended:
                if rows and row.adapter != rows[0].adapter:
                    break
                known, _ = self._known(row)
                left.append(len(row.prompt) - known)
                lengths = [len(one.prompt) for one in (*rows, row)]
                if rows and (not together(lengths, left, self._chunk()) or waits(row, known, rows)):
                    break
                rows.append(row)
            self._waiting.popleft()
        if not rows:
            return None
        model = self._models[rows[0].adapter]
        caches = [self._known_part(row) or model.make_cache(1, None, self._kv_bits) for row in rows]
        for cache, row in zip(caches, rows, strict=True):
            cache.limit = len(row.prompt) + row.left
        prompt = Prefill(model, [row.prompt for row in rows], caches)
        for row in rows:
            row.cached = max(0, len(row.prompt) - prompt.left)
        return rows, prompt

    def _fit(self, rows: Sequence[Row]) -> bool:
        """Whether there is memory for more rows, if need be after dropping prefixes. A row alone always fits."""
        memory, alone = self._memory, not self._batches and len(rows) == 1
        return memory is None or alone or memory.with_rows(self._batches, rows) <= memory.budget

    def _room(self, row: Row | None) -> int | None:
        """The bytes that prefixes may take now, before the rows need all of their memory. None means no limit."""
        if (memory := self._memory) is None:
            return None
        used = memory.with_row(self._batches, row, SOON) if row else memory.running(self._batches, SOON)
        return max(0, memory.budget - used)

    def _make_room(self, new: Row | None = None) -> None:
        """Drop prefixes whose memory the rows need for their next tokens, including the one that is prefilled."""
        new = new or next(iter(self._prefilling), None)
        if self.prefixes and (room := self._room(new)) is not None:
            self.prefixes.shrink(room)

    def _can_copy(self, batch: Batch, row: Row) -> bool:
        """Whether there is memory for a copy of a row's prefix. The only row of a batch needs no copy."""
        if self.prefixes is None or self._memory is None or len(batch.slots) == 1:
            return True
        room = self._memory.budget - self._memory.running(self._batches, SOON) - self._memory.copy(row)
        self.prefixes.shrink(max(0, room))
        return room >= 0

    def _known(self, new: Row) -> tuple[int, Running | None]:
        """How many tokens of a prompt are known, but never its last one, and the running row that has most of them."""
        ids = np.array(new.prompt[:-1], np.int32)
        kept = self.prefixes.longest(ids, new.adapter) if self.prefixes else 0
        running = [(row, batch) for batch in self._batches if batch.adapter == new.adapter for row in batch.rows]
        lengths = [shared_length(ids, batch.known(row)) for row, batch in running]
        if lengths and (most := max(lengths)) > kept and most >= WORTH_SHARING:
            return most, running[lengths.index(most)]
        return kept, None

    def _known_part(self, new: Row) -> KVCache | None:
        """A cache with what is known of a prompt, and room for the rest."""
        known, running = self._known(new)
        if self.prefixes and known and not running:
            return self.prefixes.take(np.array(new.prompt[:-1], np.int32), self._room(new), new.adapter)
        self._make_room(new)
        if running is None:
            return None
        row, batch = running
        return batch.copy_of(row, known, len(new.prompt) - known)

    def _run(self, prompt: Prefill) -> None:
        tokens = min(self._chunk(), prompt.left)
        self._timed = tokens * prompt.rows, time.perf_counter()
        prompt.run(tokens)
        if prompt.logits is None:  # else it is evaluated with the first tokens
            self._note_pace()

    def _note_pace(self) -> None:
        if self._timed:
            tokens, start = self._timed
            self._pace, self._timed = (time.perf_counter() - start) / tokens, None

    def _chunk(self) -> int:
        """Tokens of the next chunk: limited by a pass, and by how long running rows may wait."""
        if not self._batches:
            return prefill_chunk()
        tokens = self._max_gap / self._pace if self._pace else 1
        return min(prefill_chunk(), max(SMALLEST_CHUNK, 1 << int(math.log2(max(tokens, 1)))))

    def _keep_prompt(self, rows: Sequence[Row], prompt: Prefill) -> None:
        """Keep the computed part of a prompt whose reply was cancelled."""
        if len(rows) == 1 and prompt.cache.end:
            mx.eval(prompt.cache.buffers)
            self._keep(rows[0].prompt[: prompt.cache.end], prompt.cache, rows[0].adapter)

    def _keep(self, ids: Sequence[int] | np.ndarray, cache: KVCache, adapter: str | None) -> None:
        if self.prefixes is not None:
            self.prefixes.put(ids, cache, adapter)
            self._make_room()


def fail(row: Row, error: Exception) -> Iterator[Event]:
    """End a row by an error, unless it has ended already."""
    if not row.ended:
        row.ended = True
        yield row, error
