"""From logits to a token: which ids survive temperature, top-k, top-p and min-p, and which of them is drawn.

The order and the rules are those of transformers' logits processors.

B rows, V vocabulary, n candidates: the largest logits of a row, from the largest to the smallest
"""

from collections.abc import Callable, Hashable, Sequence
from functools import cache, partial
from typing import NamedTuple

import mlx.core as mx

from ..model import kernels
from .sampling import SamplingParams

BROKEN = -1  # instead of a token, if the logits are unusable; as an index it is the last row, which does no harm
# The fewest candidates of top-k; a k above 64 has 2 k of them. Ids equal to the k-th stay as far as this reaches.
CANDIDATES = 128
# In two rounds, only the largest of neighbouring logits is kept: most of a large vocabulary is read once and never
# sorted. Metal sorts up to 2,048 values in one kernel. With these sizes it sorts 2,022 values of Qwen3's vocabulary,
# then 640 and 1,939.
BLOCK, PIECE = 75, 15
SMALL = 100  # blocks: with fewer, it is faster to read all logits twice than to divide them into blocks
SORTED = 2048  # logits: without top-k, they are divided until so few are left to sort
WEIGHT_BITS = 42  # top-p adds weights as integers, 2^42 for the largest: 2^20 of them fit 63 bits
SHARE_BITS = 30  # of the share that top-p cuts off
Choose = Callable[[mx.array, mx.array | None], mx.array]


class Chooser:
    """Chooses one token for every row, each row by its own settings.

    Rows that need the same work share one call. The token of a row does not depend on the other rows.
    """

    def __init__(self, params: Sequence[SamplingParams], vocabulary: int):
        """`params` has one element per row, or a single one for any number of rows."""
        groups: dict[Hashable, list[int]] = {}
        for row, settings in enumerate(params):
            groups.setdefault(_work(settings, vocabulary), []).append(row)
        self._groups = [(rows, _method(work, [params[row] for row in rows])) for work, rows in groups.items()]

    def __call__(self, logits: mx.array, keys: mx.array | None) -> mx.array:
        """Token ids (B,) int32 from logits (B, V) and random keys (B, 2), which greedy rows do not need.

        A row that holds NaN or +inf, or nothing but -inf, gets BROKEN.
        """
        if len(self._groups) == 1:
            return self._groups[0][1](logits, keys)
        tokens = mx.zeros(len(logits), mx.int32)
        for rows, choose in self._groups:
            which = mx.array(rows)
            tokens[which] = choose(logits[which], None if keys is None else keys[which])
        return tokens


def _work(params: SamplingParams, vocabulary: int) -> Hashable:
    """What the rows of one call have in common: how to choose, and from how many candidates; 0 sorts none."""
    if params.greedy:
        return "greedy"
    if params.top_k == 0:
        return "whole" if params.top_p == 1 and params.min_p == 0 else 0
    return min(max(CANDIDATES, 2 * params.top_k), vocabulary)


def _method(work: Hashable, params: Sequence[SamplingParams]) -> Choose:
    if work == "greedy":
        return lambda logits, _keys: _replayed(greedy)(logits)
    temperature = mx.array([[float(settings.temperature)] for settings in params])  # an int may be past 64 bits
    if work == "whole":
        return lambda logits, keys: _replayed(draw_from_all)(logits, keys, temperature)
    n = int(work)  # type: ignore[call-overload]
    filters = Filters.of(params, n)
    draw = _replayed(draw_filtered, n) if n else _replayed(draw_unsorted)
    return lambda logits, keys: draw(logits, keys, temperature, *filters)


@cache
def _replayed(function: Callable[..., mx.array], *constants: int) -> Callable[..., mx.array]:
    """The function with its constants, as one cached object: its many small operations cost mostly host time."""
    return kernels.Replayed(partial(function, *constants))


def greedy(logits: mx.array) -> mx.array:
    """The id of the largest logit, the first if several are equal."""
    if len(logits[0]) <= SMALL * BLOCK:
        largest = mx.max(logits, axis=-1, keepdims=True)
        return _checked(mx.argmax(logits, axis=-1, keepdims=True), largest)
    blocks, rest = _divided(logits)
    maxima = mx.concatenate([mx.max(blocks, axis=-1), rest], axis=-1)  # each of the rest is a block by itself
    best = mx.argmax(maxima, axis=-1, keepdims=True)
    whole = blocks.shape[1]
    block = mx.minimum(best, whole - 1)
    place = mx.argmax(mx.take_along_axis(blocks, block[..., None], axis=1), axis=-1)
    ids = mx.where(best < whole, block * BLOCK + place, best + whole * (BLOCK - 1))
    return _checked(ids, mx.max(maxima, axis=-1, keepdims=True))  # argmax passes over NaN on some devices, max never


def draw_from_all(logits: mx.array, keys: mx.array, temperature: mx.array) -> mx.array:
    largest = mx.max(logits, axis=-1, keepdims=True)  # NaN if one of them is
    return _checked(_draw(_cooled(logits, largest, temperature), keys), largest)


def draw_filtered(n: int, logits: mx.array, keys: mx.array, temperature: mx.array, *filters: mx.array) -> mx.array:
    """From the n largest logits, those that `filters`, the arrays of a Filters, let through."""
    largest, values, ids = candidates(logits, n)
    cooled = Filters(*filters)(_cooled(values, largest, temperature), _within_top_p)
    drawn = mx.argmax(cooled + _noise(keys, ids), axis=-1, keepdims=True)
    return _checked(mx.take_along_axis(ids, drawn, axis=-1), largest)


def draw_unsorted(logits: mx.array, keys: mx.array, temperature: mx.array, *filters: mx.array) -> mx.array:
    """From all logits, those that `filters`, without top-k, let through."""
    largest = mx.max(logits, axis=-1, keepdims=True)
    cooled = Filters(*filters)(_cooled(logits, largest, temperature), _within_top_p_unsorted)
    ids = mx.broadcast_to(mx.arange(logits.shape[1], dtype=mx.uint32), logits.shape)
    return _checked(mx.argmax(cooled + _noise(keys, ids), axis=-1, keepdims=True), largest)


def _draw(logits: mx.array, keys: mx.array) -> mx.array:
    """An index (B, 1) with the probabilities of the softmax, each row by its own key."""
    draw = mx.vmap(lambda row, key: mx.random.categorical(row, key=key))
    return draw(logits, keys)[:, None]


def _noise(keys: mx.array, ids: mx.array) -> mx.array:
    """Gumbel noise (B, n) of ids (B, n): the largest sum of logit and noise is a draw with the softmax's probabilities.

    An id has the same noise in any place. If each place had its own, two ids with almost equal logits would change
    their noise too when a rounding changes their order, and a draft model would draw the same only in the same order.
    """
    each = mx.stack([keys[:, :1] ^ ids.astype(mx.uint32), mx.broadcast_to(keys[:, 1:], ids.shape)], axis=-1)
    return mx.vmap(lambda key: mx.random.gumbel((), key=key))(each.reshape(-1, 2)).reshape(ids.shape)


def _checked(ids: mx.array, largest: mx.array) -> mx.array:
    """Ids (B,) int32 of ids (B, 1), BROKEN for a row whose largest logit (B, 1) is not finite."""
    return mx.where(mx.abs(largest) < mx.inf, ids.astype(mx.int32), BROKEN).squeeze(1)


def _cooled(logits: mx.array, largest: mx.array, temperature: mx.array) -> mx.array:
    """Divided by the temperature, in float32. The largest becomes 0: a low temperature must not overflow."""
    return (logits.astype(mx.float32) - largest.astype(mx.float32)) / temperature


def candidates(logits: mx.array, n: int) -> tuple[mx.array, mx.array, mx.array]:
    """(largest logit (B, 1), the n largest logits (B, n), their ids (B, n)).

    From the largest to the smallest, and of equal ones the larger id first, as transformers' sort leaves them.
    """
    if logits.shape[1] <= max(SMALL, 2 * n) * BLOCK:
        largest, ids = mx.max(logits, axis=-1, keepdims=True), None
        best = _best(logits, n) if n < logits.shape[1] else None
    else:
        largest, ids, values = _pool(logits, n)
        best = mx.take_along_axis(ids, _best(values, n), axis=-1)
    if best is not None:
        # In the order of ids first: the sort below keeps the order of equal values.
        ids = mx.sort(best, axis=-1)
        logits = mx.take_along_axis(logits, ids, axis=-1)
    order = mx.argsort(logits, axis=-1)[:, ::-1]
    ids = order if ids is None else mx.take_along_axis(ids, order, axis=-1)
    return largest, mx.take_along_axis(logits, order, axis=-1), ids


def _pool(logits: mx.array, n: int) -> tuple[mx.array, mx.array, mx.array]:
    """(largest logit (B, 1), ids (B, m), their logits (B, m)), with the n largest of the row among them.

    Those lie in the n blocks with the largest maxima, and there in the n pieces with the largest maxima.
    """
    blocks, rest = _divided(logits)
    B, whole, _ = blocks.shape
    maxima = mx.max(blocks, axis=-1)
    largest = mx.max(mx.concatenate([maxima, rest], axis=-1), axis=-1, keepdims=True)
    chosen = _best(maxima, n)  # (B, n)
    pieces = mx.take_along_axis(blocks, chosen[..., None], axis=1).reshape(B, -1, PIECE)
    best = _best(mx.max(pieces, axis=-1), n)  # (B, n)
    values = mx.take_along_axis(pieces, best[..., None], axis=1)  # (B, n, PIECE)
    block = mx.take_along_axis(chosen, best // (BLOCK // PIECE), axis=-1)
    first = block * BLOCK + best % (BLOCK // PIECE) * PIECE
    ids = first[..., None] + mx.arange(PIECE, dtype=mx.uint32)
    after = mx.arange(whole * BLOCK, logits.shape[1], dtype=mx.uint32)
    ids = mx.concatenate([ids.reshape(B, -1), mx.broadcast_to(after, (B, len(after)))], axis=-1)
    return largest, ids, mx.concatenate([values.reshape(B, -1), rest], axis=-1)


def _divided(logits: mx.array) -> tuple[mx.array, mx.array]:
    """(B, blocks, BLOCK), and what is left after the last whole block."""
    blocks = logits.shape[1] // BLOCK
    return logits[:, : blocks * BLOCK].reshape(len(logits), blocks, BLOCK), logits[:, blocks * BLOCK :]


def _best(values: mx.array, n: int) -> mx.array:
    """The indices of the n largest values of each row, (B, n), in any order."""
    return mx.argpartition(values, -n, axis=-1)[:, -n:]


class Filters(NamedTuple):
    """Top-k, top-p and min-p, as arrays (B, 1), or (1, 1) for any number of rows; None if no row has the filter."""

    last: mx.array | None  # index of the k-th candidate
    cut: mx.array | None  # what top-p removes, in units of 2^-30 of the whole; -1 is nothing
    min_p: mx.array | None

    @classmethod
    def of(cls, params: Sequence[SamplingParams], n: int) -> "Filters":
        def column(values: list[float], off: float, dtype: mx.Dtype) -> mx.array | None:
            return None if all(value == off for value in values) else mx.array(values, dtype)[:, None]

        return cls(
            last=column([min(settings.top_k or n, n) - 1 for settings in params], n - 1, mx.int32),
            cut=column([_cut(settings.top_p) for settings in params], -1, mx.int64),
            min_p=column([settings.min_p for settings in params], 0, mx.float32),
        )

    def __call__(self, cooled: mx.array, within_top_p: Callable[[mx.array, mx.array], mx.array]) -> mx.array:
        """Cooled logits (B, n) of candidates, those that a filter removes as -inf."""
        kept = cooled
        if self.last is not None:
            last = mx.broadcast_to(self.last, (len(cooled), 1))
            # All that are equal to the k-th stay.
            kept = mx.where(cooled >= mx.take_along_axis(cooled, last, axis=-1), cooled, -mx.inf)
        if self.cut is not None:
            kept = mx.where(within_top_p(kept, self.cut), kept, -mx.inf)
        return kept if self.min_p is None else mx.where(mx.exp(cooled) >= self.min_p, kept, -mx.inf)


# Top-p removes the smallest candidates, as long as their weights are at most 1 - p of the whole. Of equal ones the
# smaller ids go first. The sum is over integers, and so exact: a float32 sum over 151,936 weights is off by some of
# them, and a GPU has no float64.


def _within_top_p(cooled: mx.array, cut: mx.array) -> mx.array:
    """Which of the candidates (B, n) stay; they are sorted, the largest first."""
    mass = mx.cumsum(_units(cooled), axis=-1, reverse=True)  # of a candidate and all after it
    return mass >= _removed(mass[:, :1], cut)


def _within_top_p_unsorted(cooled: mx.array, cut: mx.array) -> mx.array:
    """Which of all ids (B, V) stay.

    The smallest logit that stays is in one half of a partition, and the sum of the smaller half tells in which. Halves
    of halves are fast on a CPU, and a sort of all is not.
    """
    removed = _removed(mx.sum(_units(cooled), axis=-1, keepdims=True), cut)
    halvings = 0 if kernels.on_gpu() else (cooled.shape[1] // SORTED).bit_length()
    part = mx.pad(cooled, [(0, 0), (0, -cooled.shape[1] % (1 << halvings))], constant_values=-mx.inf)
    mass, stay = mx.zeros_like(removed), mx.zeros_like(removed)  # of all below the part, and how many are above it
    for _ in range(halvings):
        half = part.shape[1] // 2
        part = mx.partition(part, half, axis=-1)
        with_low = mass + mx.sum(_units(part[:, :half]), axis=-1, keepdims=True)
        upper = with_low < removed
        part = part.reshape(-1, half)[2 * mx.arange(len(part)) + upper.squeeze(1)]  # fewer copies than `where` makes
        mass, stay = mx.where(upper, with_low, mass), stay + half * ~upper
    part = mx.sort(part, axis=-1)
    first = mx.argmax(mass + mx.cumsum(_units(part), axis=-1) >= removed, axis=-1, keepdims=True)
    smallest = mx.take_along_axis(part, first, axis=-1)
    larger, equal = cooled > smallest, cooled == smallest
    stay = stay + part.shape[1] - first - mx.sum(larger, axis=-1, keepdims=True)  # of the equal ones
    return larger | (equal & (mx.cumsum(equal, axis=-1, reverse=True) <= stay))


def _units(cooled: mx.array) -> mx.array:
    """The weights as integers, in units of the largest one."""
    return mx.round(mx.exp(cooled) * 2.0**WEIGHT_BITS).astype(mx.int64)


def _removed(whole: mx.array, cut: mx.array) -> mx.array:
    """What the weights of the removed ids stay below, of the sum of all."""
    high, low = whole >> SHARE_BITS, whole & (2**SHARE_BITS - 1)
    return high * cut + ((low * cut) >> SHARE_BITS)


def _cut(top_p: float) -> int:
    """1 - top_p in units, rounded up, so that p = 0.9 keeps nine of ten equal weights although 1 - 0.9 is not exact."""
    return -1 if top_p == 1 else min(int((1 - top_p) * 2**SHARE_BITS) + 2, 2**SHARE_BITS)
