"""The memory budget: what weights, caches and activations take, and which requests fit.

B slots of a batch, L tokens of one pass, S keys, H query heads, K key/value heads, D head_dim, V vocabulary
"""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten

from ..errors import MemoryBudgetError, warn
from ..files.checkpoint import Checkpoint
from ..files.config import Qwen3Config
from ..files.dtypes import FLOATS
from ..files.sizes import bytes_of
from ..model import kernels
from ..model.cache import rounded
from ..model.kv_format import kv_format
from ..model.load import compute_dtype
from ..model.qwen3 import Qwen3
from .batch import SIZES, Batch, alike
from .rows import Row
from .runner import prefill_chunk

MARGIN = 0.1  # of the machine's memory, which is left to other programs if there is no GPU that says what it can take
LEAST_MARGIN = 10**9
LEAST_ANSWER = 1024  # tokens that a reply may have if max_tokens is not given, though other rows must then wait
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

    Memory that is not wired may be moved out between two replies, and the next one waits for it. Buffers that MLX keeps
    for later count against the budget, so that they are bounded.
    """
    if kernels.on_metal():
        mx.set_wired_limit(min(budget, int(mx.device_info()["max_recommended_working_set_size"])))
        mx.set_cache_limit(int(CACHE_SHARE * budget))


def loaded_bytes(checkpoint: Checkpoint, dtype: str | mx.Dtype | None = None) -> int:
    """What the weights take once they are loaded, by the headers of the files."""
    compute = compute_dtype(checkpoint, dtype)
    leaves = [leaf for part in checkpoint.parts.values() for leaf in part.leaves.values()]
    return sum(
        leaf.nbytes // leaf.dtype.size * compute.size if leaf.dtype in FLOATS else leaf.nbytes for leaf in leaves
    )


def check_checkpoint(checkpoint: Checkpoint, dtype: str | mx.Dtype | None, budget: int) -> None:
    """Raises MemoryBudgetError, before any weight is read, if the weights do not fit the budget."""
    if (need := loaded_bytes(checkpoint, dtype)) > budget:
        raise MemoryBudgetError(
            f"the weights take {gigabytes(need)} and the memory budget is {gigabytes(budget)}; "
            "use fewer bits (convert --quantize affine4) or a larger --memory"
        )


class Memory:
    """What a model's rows take of a budget, in bytes. Estimates are a little above what is measured."""

    def __init__(self, model: Qwen3, budget: int | str | None = None, max_rows: int = 1, kv_bits: int | None = None):
        """`budget` is what `budget_bytes` takes."""
        self.budget = budget_bytes(budget)
        self._config, self._max_rows = model.config, max_rows
        self._size = model.norm.weight.dtype.size
        self.weights = sum(array.nbytes for array in dict(tree_flatten(model.parameters())).values())
        self._slot = _slot_bytes(model.config, model.norm.weight.dtype, kv_bits)

    def cache(self, slots: int, tokens: int) -> int:
        """Of a batch whose longest row has this many tokens."""
        return slots * rounded(tokens) * self._slot

    def activations(self, tokens: int, keys: int) -> int:
        """Of one pass over a chunk of a prompt, at its peak."""
        config = self._config
        heads = (config.num_attention_heads + 2 * config.num_key_value_heads) * config.head_dim
        values = 4 * config.hidden_size + max(7 * heads, 4 * config.intermediate_size)
        # A GPU's fused attention keeps no scores; a CPU has them before and after the softmax.
        scores = 0 if kernels.on_gpu() else 2 * 4 * config.num_attention_heads * tokens * keys
        return tokens * values * self._size + scores + 4 * 4 * config.vocab_size

    def row(self, prompt: int, tokens: int) -> int:
        """Of everything while one row runs alone: a prompt, and a reply of this many tokens."""
        return self._with_row([], prompt, tokens)

    def with_row(self, batches: Sequence[Batch], row: Row) -> int:
        """Of everything until the rows of the batches have ended, if one more row is read and joins one of them."""
        return self._with_row(batches, len(row.prompt), row.left)

    def running(self, batches: Sequence[Batch]) -> int:
        """Of everything until the rows of the batches have ended."""
        return self.weights + sum(map(self._to_the_end, batches)) + self.activations(1, 0)

    def _with_row(self, batches: Sequence[Batch], prompt: int, tokens: int) -> int:
        running = sum(map(self._to_the_end, batches))
        reading = self.cache(1, prompt) + self.activations(min(prompt, prefill_chunk()), prompt)
        # It joins a batch about as long, if there is one: whichever takes most.
        joined = [self._joined(batch, prompt, tokens) for batch in batches if alike(batch.end, prompt)]
        replying = max(joined, default=self._grown(self.cache(1, prompt + tokens))) + self.activations(1, 0)
        return self.weights + running + max(reading, replying)

    def _to_the_end(self, batch: Batch) -> int:
        left = max((row.left for row in batch.rows), default=0)
        return self.cache(len(batch.slots), batch.end + left)

    def _joined(self, batch: Batch, prompt: int, tokens: int) -> int:
        """What a batch takes beyond what it would without the row, whose own cache is there until it is copied."""
        slots = len(batch.slots)
        if None not in batch.slots:
            slots = next((size for size in SIZES if size > slots), slots)
        left = max([tokens, *(row.left for row in batch.rows)])
        whole = self._grown(self.cache(slots, max(batch.end, prompt) + left))
        return whole - self._to_the_end(batch) + self.cache(1, prompt)

    def _grown(self, cache: int) -> int:
        """A cache when its buffers have just been replaced by larger ones: one layer is there twice."""
        return cache + cache // self._config.num_hidden_layers

    def limit(self, prompt: int, max_tokens: int, open_ended: bool) -> int:
        """The tokens that a reply may have: fewer than `max_tokens` if that is `open_ended`, a default. This is said.

        Raises MemoryBudgetError if the request can never fit.
        """
        least = 1 if open_ended else max_tokens
        if (need := self.row(prompt, least)) > self.budget:
            raise MemoryBudgetError(
                f"a prompt of {prompt} tokens and a reply of {least} need {gigabytes(need)} with the weights, and the "
                f"memory budget is {gigabytes(self.budget)}; make the prompt or max_tokens smaller, use kv_bits, or a "
                "larger memory budget"
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
        low, high = 0, max_tokens
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.row(prompt, middle) <= budget else (low, middle - 1)
        return low


def gigabytes(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 10**8 else f"{count / 1e6:.2f} MB"


def _slot_bytes(config: Qwen3Config, dtype: mx.Dtype, kv_bits: int | None) -> int:
    """The keys and values of one token in all layers."""
    token = mx.zeros((2, 1, config.num_key_value_heads, 1, config.head_dim), dtype)
    stored = kv_format(kv_bits, config.head_dim).pack(token)
    return config.num_hidden_layers * sum(array.nbytes for array in stored)
