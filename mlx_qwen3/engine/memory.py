"""The memory budget: what weights, caches and activations take, and which requests fit.

B slots of a batch, L tokens of one pass, S keys, H query heads, K key/value heads, D head_dim, V vocabulary
"""

import os
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import mlx.core as mx

from ..errors import MemoryBudgetError, warn
from ..files.config import Qwen3Config
from ..files.sizes import bytes_of, gigabytes
from ..model import cpu, kernels
from ..model.buffers import rounded
from ..model.cache import AT_ONCE
from ..model.kv_format import kv_format
from ..model.qwen3 import Qwen3, weight_bytes
from .batch import SIZES, Batch
from .rows import Row
from .runner import prefill_chunk
from .sampling import SamplingParams
from .speculative import LONGEST

MARGIN = 0.1  # share of the machine's memory that is left to other programs if there is no GPU
LEAST_MARGIN = 10**9
LEAST_ANSWER = 1024  # tokens that a reply without max_tokens may have, even if other rows must then wait
NEVER = 1 << 60  # more tokens than any row has left
# Bytes that a setting takes for each id of the vocabulary and each row while a token is chosen, beyond those of logits.
# Measured at the peak, with Qwen3's vocabulary (dev/LOG.md).
CHOICE: tuple[tuple[int, Callable[[SamplingParams], bool]], ...] = (
    (3, lambda sampling: sampling.top_k == 0 and not sampling.greedy),
    (23, lambda sampling: sampling.top_k == 0 and not sampling.greedy and (sampling.top_p, sampling.min_p) != (1, 0)),
    (11, lambda sampling: sampling.repetition_penalty != 1),
    (6, lambda sampling: sampling.presence_penalty != 0),
    (5, lambda sampling: sampling.frequency_penalty != 0),
    (9, lambda sampling: bool(sampling.logit_bias)),
)
CACHE_SHARE = 0.1  # of the budget, for buffers that MLX keeps to use them again


def default_budget() -> int:
    """Bytes that this process may take: what Metal recommends, CUDA's memory, or the machine's less a margin."""
    info = mx.device_info()
    if kernels.on_gpu():
        return int(info.get("max_recommended_working_set_size") or info.get("total_memory") or info["memory_size"])
    total = min(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_cgroup_limits())
    return max(total - max(int(MARGIN * total), LEAST_MARGIN), total // 2)


def budget_bytes(memory: int | str | None) -> int:
    """A budget that is given in bytes or as a text such as 12GB; None is the default. Raises UsageError."""
    return default_budget() if memory is None else bytes_of(memory, "memory")


def _cgroup_limits(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> Iterable[int]:
    """The limits of the control groups that this process is in, and of those around them."""
    try:
        entries = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        return []
    limits = []
    for _, controllers, place in entries:
        if controllers in ("", "memory"):
            top = root / controllers
            inner = top / place.lstrip("/")
            for folder in (inner, *(parent for parent in inner.parents if parent == top or top in parent.parents)):
                for name in ("memory.max", "memory.limit_in_bytes"):
                    limits += _number(folder / name)
    return limits


def _number(path: Path) -> list[int]:
    try:
        return [int(path.read_text())]
    except (OSError, ValueError):  # no such limit, or "max"
        return []


def set_limits(budget: int) -> None:
    """Tell Metal the budget. On other back ends there is nothing to tell.

    Memory that is not wired may be swapped out between two replies, and the next reply has to wait for it. Buffers that
    MLX keeps to use again count against the budget, so they are limited.
    """
    if kernels.on_metal():
        mx.set_wired_limit(min(budget, int(mx.device_info()["max_recommended_working_set_size"])))
        mx.set_cache_limit(int(CACHE_SHARE * budget))


class Costs:
    """What one model takes, in bytes; `weights` are those of its weights."""

    def __init__(self, config: Qwen3Config, dtype: mx.Dtype, kv_bits: int | None = None, weights: int = 0):
        self._config, self._dtype, self._packed = config, dtype, kv_bits is not None
        self.weights = weights
        self._slot = _slot_bytes(config, dtype, kv_bits)
        self.vocabulary = config.vocab_size

    @classmethod
    def of(cls, model: Qwen3, kv_bits: int | None = None) -> "Costs":
        return cls(model.config, model.norm.weight.dtype, kv_bits, model.nbytes)

    def cache(self, slots: int, tokens: int) -> int:
        """Of a batch whose longest row has this many tokens."""
        return slots * rounded(tokens, slots) * self._slot

    def grown(self, cache: int) -> int:
        """The bytes of a cache while a pass replaces its buffers by larger ones: one layer is in memory twice."""
        return cache + cache // self._config.num_hidden_layers

    def moved(self, cache: int) -> int:
        """The bytes of a batch's cache while a row that joins moves it: some layers are in memory twice."""
        return cache + min(cache, max(cache // self._config.num_hidden_layers, AT_ONCE))

    def activations(self, tokens: int, keys: int, rows: int = 1) -> int:
        """Of one pass over `tokens` of each of the rows, at its peak. `keys` are those that a token sees."""
        config = self._config
        heads = (config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim
        # MLX's CPU frees results some 50 operations late, and those that are computed at once by then.
        at_once = kernels.computes_at_once(config, rows, tokens, self._dtype)
        mlp = 4 * max(config.active_widths)
        if config.moe:  # scores of all experts, and the input and output of the chosen, sorted and not
            mlp += 4 * config.moe.num_experts + 4 * config.moe.num_experts_per_tok * config.hidden_size
        values = 4 * config.hidden_size + (2 * heads + mlp if at_once else max(7 * heads, mlp))
        # A fused attention keeps no scores. Prompts of several rows have a mask, and so no blocks of queries.
        group = config.num_attention_heads // config.num_key_value_heads
        queries = min(tokens, cpu.block_size(group, keys)) if rows == 1 else tokens
        scores = 0 if kernels.on_gpu() or at_once else cpu.score_bytes(config.num_attention_heads, queries, keys)
        # For many queries, the packed keys and values of a layer are unpacked.
        read = keys if tokens > kernels.FEW_QUERIES else 0
        layer = 2 * config.num_key_value_heads * config.head_dim * (read + 2 * tokens) * self._dtype.size * self._packed
        logits = 1 if tokens > kernels.FEW_QUERIES else tokens  # of a prompt those of the last token alone
        return rows * (tokens * values * self._dtype.size + scores + layer + logits * 4 * 4 * config.vocab_size)


class Memory:
    """The bytes that a model's rows take of a budget. Estimates are a little above the measured values."""

    def __init__(
        self,
        model: Qwen3 | Costs,
        budget: int | str | None = None,
        max_rows: int = 1,
        kv_bits: int | None = None,
        draft: Qwen3 | Costs | None = None,
        adapted: Iterable[Qwen3] = (),
    ):
        """`budget` is in bytes or a text, see `budget_bytes`. With a draft model, each row also has a cache for it.

        `adapted` are models that share arrays with `model`, with which alone they may be given.
        """
        self.budget = budget_bytes(budget)
        self._max_rows = max_rows
        self._model = model if isinstance(model, Costs) else Costs.of(model, kv_bits)
        self._draft = Costs.of(draft) if isinstance(draft, Qwen3) else draft
        self._unpacked = any(isinstance(one, Qwen3) and one.unpacked for one in (model, draft))
        self.weights = self._model.weights + (self._draft.weights if self._draft else 0)
        if isinstance(model, Qwen3):
            self.weights += weight_bytes(model, *adapted) - model.nbytes

    def row(self, prompt: int, tokens: int) -> int:
        """The bytes of everything while one row runs alone: a prompt, and a reply of this many tokens."""
        return self._with_rows([], prompt, tokens, NEVER, ())

    def beside(self, prompt: int) -> int:
        """The part of the budget that is free while the prompt of one row is computed."""
        return max(0, self.budget - self.row(prompt, 1))

    def with_row(self, batches: Sequence[Batch], row: Row, soon: int = NEVER) -> int:
        """The bytes of everything until the rows of the batches have ended, if one more row joins one of them.

        `soon` counts only so many of the next tokens of each row.
        """
        return self._with_rows(batches, len(row.prompt), min(row.left, soon), soon, [row])

    def with_rows(self, batches: Sequence[Batch], rows: Sequence[Row]) -> int:
        """`with_row` for rows whose prompts are computed together; more than they take."""
        longest, *others = sorted(rows, key=lambda row: row.length + row.left, reverse=True)
        # Each of the others has a place in the cache of the prompts, and one or two in that of the batch.
        more = sum(3 * self._model.cache(2, row.length + row.left) // 2 for row in others)
        return self._with_rows(batches, len(longest.prompt), longest.left, NEVER, rows) + more

    def running(self, batches: Sequence[Batch], soon: int = NEVER) -> int:
        """The bytes of everything until the rows of the batches have ended, or for their next tokens."""
        return self.weights + sum(self._to_the_end(batch, soon) for batch in batches) + self._steps(batches)

    def copy(self, row: Row) -> int:
        """The bytes of a copy of a row's keys and values."""
        return self._model.cache(1, row.length)

    def _with_rows(self, batches: Sequence[Batch], prompt: int, tokens: int, soon: int, rows: Sequence[Row]) -> int:
        """With a row of this prompt and reply. `rows` are it and those beside it, if they are known already."""
        model, length = self._model, prompt + tokens
        # Room for the reply is made with the prompt. Only a long reply on a GPU has less, and then its buffers grow.
        reading = model.cache(1, length) + model.activations(min(prompt, prefill_chunk()), prompt)
        # It joins a batch that takes it, if there is one: whichever needs most.
        near = [batch for batch in batches if batch.adapter == rows[0].adapter and batch.near(prompt)]
        joined = [self._joined(batch, prompt, tokens, soon, rows) for batch in near]
        alone = model.grown(model.cache(1, length)) + self._step(1, length, rows)
        drafting = 0
        if self._draft:
            drafting = self._draft.grown(self._draft.cache(1, length))
            drafting += self._draft.activations(min(prompt, prefill_chunk()), prompt)
        replying = max(joined, default=alone) + drafting
        running = sum(self._to_the_end(batch, soon) for batch in batches)
        return self.weights + running + max(reading, replying, model.cache(1, prompt) + self._steps(batches))

    def _to_the_end(self, batch: Batch, soon: int) -> int:
        """The cache of a batch, and those of the draft model for its rows."""
        draft = self._draft
        drafts = sum(draft.cache(1, row.length + min(row.left, soon)) for row in batch.rows) if draft else 0
        return self._model.cache(len(batch.slots), batch.end + _left(batch, soon)) + drafts

    def _joined(self, batch: Batch, prompt: int, tokens: int, soon: int, rows: Sequence[Row]) -> int:
        """What a batch takes beyond what it would without the rows, whose own cache is there until it is copied."""
        slots, model = len(batch.slots), self._model
        if None not in batch.slots:
            slots = next((size for size in SIZES if size > slots), slots)
        length = max(batch.end, prompt) + max(tokens, _left(batch, soon))
        before = model.cache(len(batch.slots), batch.end + _left(batch, soon))
        step = self._step(slots, length, [*batch.rows, *rows])
        return model.moved(model.cache(slots, length)) - before + model.cache(1, prompt) + step

    def _steps(self, batches: Sequence[Batch]) -> int:
        """The activations of one step of the batches, which run one after the other."""
        return max((self._step(len(batch.slots), batch.end, batch.rows) for batch in batches), default=0)

    def _step(self, slots: int, length: int, rows: Sequence[Row]) -> int:
        tokens = _queries(rows) if slots == 1 else 1
        choice = slots * tokens * self._model.vocabulary * _choice(rows)
        return self._model.activations(tokens, rounded(length, slots), slots) + choice

    def limit(self, prompt: int, max_tokens: int, open_ended: bool) -> int:
        """The tokens that a reply may have. If `max_tokens` is a default (`open_ended`), it may be cut, with a warning.

        Raises MemoryBudgetError if the request can never fit.
        """
        least = 1 if open_ended else max_tokens
        if (need := self.row(prompt, least)) > self.budget:
            raise MemoryBudgetError(
                f"a prompt of {prompt} tokens and a reply of {least} need {gigabytes(need)} with the weights, and the "
                f"memory budget is {gigabytes(self.budget)}; make the prompt or max_tokens smaller, use kv_bits, "
                f"{'packed weights, ' if self._unpacked else ''}or a larger memory budget"
            )
        if not open_ended:
            return max_tokens
        # All rows are to run at once, but each may have an answer of some length.
        share = self.weights + (self.budget - self.weights) // self._max_rows
        alone = self._most(prompt, max_tokens, self.budget)
        tokens = max(self._most(prompt, max_tokens, share), min(LEAST_ANSWER, alone))
        if tokens < max_tokens:
            warn(f"max_tokens is {tokens}: more would not fit the memory budget of {gigabytes(self.budget)}")
        return tokens

    def _most(self, prompt: int, max_tokens: int, budget: int) -> int:
        """The most tokens of a reply that fit a budget, 0 if none does."""
        return bisect_right(range(1, max_tokens + 1), budget, key=lambda tokens: self.row(prompt, tokens))


def _left(batch: Batch, soon: int) -> int:
    """The tokens that a batch may still take, at most `soon`."""
    return min(soon, max((row.left for row in batch.rows), default=0))


def _queries(rows: Sequence[Row]) -> int:
    """The tokens that one pass of a single row checks at most, also of one that is not known yet."""
    return LONGEST + 1 if not rows or any(row.drafter for row in rows) else 1


def _choice(rows: Sequence[Row]) -> int:
    """The bytes for each id and row while the tokens of these rows are chosen: their arrays are shared."""
    return sum(size for size, takes in CHOICE if any(takes(row.sampling) for row in rows))


def _slot_bytes(config: Qwen3Config, dtype: mx.Dtype, kv_bits: int | None) -> int:
    """The keys and values of one token in all layers."""
    token = mx.zeros((2, 1, config.num_key_value_heads, 1, config.head_dim), dtype)
    stored = kv_format(kv_bits, config.head_dim).pack(token)
    return config.num_hidden_layers * sum(array.nbytes for array in stored)
