"""From logits to a token: which ids survive temperature, top-k, top-p and min-p, and which of them is drawn.

The order and the rules are those of transformers' logits processors.

B rows, V vocabulary, n candidates: the largest logits of a row, from the largest to the smallest
"""

from collections.abc import Callable, Hashable, Sequence
from functools import cache, partial
from typing import NamedTuple, Protocol

import mlx.core as mx

from ..model import kernels

BROKEN = -1  # in place of a token if the logits are unusable; as an index it means the last row, and so does no harm
# The fewest candidates of top-k; a k above 64 has 2 k of them. Ids equal to the k-th stay as far as this reaches.
CANDIDATES = 128
# Of neighbouring logits only the largest is looked at first, in two rounds. Metal sorts up to 2,048 values in one
# kernel; of Qwen3's vocabulary these sizes leave 1,900 values to sort, then 640, then 2,048.
BLOCK, PIECE = 80, 16
WEIGHT_BITS = 42  # top-p adds weights as integers, 2^42 for the largest: 2^20 of them fit 63 bits
SHARE_BITS = 30  # of the share that top-p cuts off
Choose = Callable[[mx.array, mx.array | None], mx.array]


class Params(Protocol):
    """The settings that are read here, see `sampling.SamplingParams`."""

    @property
    def greedy(self) -> bool: ...
    @property
    def temperature(self) -> float: ...
    @property
    def top_k(self) -> int: ...
    @property
    def top_p(self) -> float: ...
    @property
    def min_p(self) -> float: ...


class Chooser:
    """Chooses one token for every row, each row by its own settings.

    Rows that need the same work share one call. What a row gets does not depend on the rows beside it.
    """

    def __init__(self, params: Sequence[Params], vocabulary: int):
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


def _work(params: Params, vocabulary: int) -> Hashable:
    """What the rows of one call have in common: how to choose, and from how many candidates."""
    if params.greedy:
        return "greedy"
    if params.top_k == 0 and params.top_p == 1 and params.min_p == 0:
        return "whole"
    wanted = max(CANDIDATES, 2 * params.top_k)
    return vocabulary if params.top_k == 0 or wanted >= vocabulary else wanted


def _method(work: Hashable, params: Sequence[Params]) -> Choose:
    if work == "greedy":
        return lambda logits, _keys: _call(greedy)(logits)
    temperature = mx.array([[settings.temperature] for settings in params])
    if work == "whole":
        return lambda logits, keys: _call(draw_from_all)(logits, keys, temperature)
    n = int(work)  # type: ignore[call-overload]
    filters = Filters.of(params, n)
    return lambda logits, keys: _call(draw_filtered, n)(logits, keys, temperature, *filters)


def _call(function: Callable[..., mx.array], *constants: int) -> Callable[..., mx.array]:
    # On a GPU these small kernels cost more than their work: compiling makes one of several. A CPU would need g++.
    return _compiled(function, *constants) if kernels.on_gpu() else partial(function, *constants)


@cache
def _compiled(function: Callable[..., mx.array], *constants: int) -> Callable[..., mx.array]:
    return mx.compile(partial(function, *constants))


def greedy(logits: mx.array) -> mx.array:
    """The id of the largest logit, the first if several are equal."""
    largest, ids, values = _pool(logits, 1)
    return _checked(mx.take_along_axis(ids, mx.argmax(values, axis=-1, keepdims=True), axis=-1), largest)


def draw_from_all(logits: mx.array, keys: mx.array, temperature: mx.array) -> mx.array:
    largest = mx.max(logits, axis=-1, keepdims=True)  # NaN if one of them is
    return _checked(_draw(_cooled(logits, largest, temperature), keys), largest)


def draw_filtered(n: int, logits: mx.array, keys: mx.array, temperature: mx.array, *filters: mx.array) -> mx.array:
    """From the n largest logits, those that `filters`, the arrays of a Filters, let through."""
    largest, values, ids = candidates(logits, n)
    cooled = Filters(*filters)(_cooled(values, largest, temperature))
    return _checked(mx.take_along_axis(ids, _draw(cooled, keys), axis=-1), largest)


def _draw(logits: mx.array, keys: mx.array) -> mx.array:
    """An index (B, 1) with the probabilities of the softmax, each row by its own key."""
    draw = mx.vmap(lambda row, key: mx.random.categorical(row, key=key))
    return draw(logits, keys)[:, None]


def _checked(ids: mx.array, largest: mx.array) -> mx.array:
    """Ids (B,) int32 of ids (B, 1), BROKEN for a row whose largest logit (B, 1) is not finite."""
    return mx.where(mx.abs(largest) < mx.inf, ids.astype(mx.int32), BROKEN)[:, 0]


def _cooled(logits: mx.array, largest: mx.array, temperature: mx.array) -> mx.array:
    """Divided by the temperature, in float32. The largest becomes 0: a low temperature must not overflow."""
    return (logits.astype(mx.float32) - largest.astype(mx.float32)) / temperature


def candidates(logits: mx.array, n: int) -> tuple[mx.array, mx.array, mx.array]:
    """(largest logit (B, 1), the n largest logits (B, n), their ids (B, n)).

    From the largest to the smallest, and of equal ones the larger id first, as transformers' sort leaves them.
    """
    largest, ids, values = _pool(logits, n)
    if n < ids.shape[-1]:
        # In the order of ids first: the sort below keeps the order of equal values.
        ids = mx.sort(mx.take_along_axis(ids, _best(values, n), axis=-1), axis=-1)
        values = mx.take_along_axis(logits, ids, axis=-1)
    order = mx.argsort(values, axis=-1)[:, ::-1]
    return largest, mx.take_along_axis(values, order, axis=-1), mx.take_along_axis(ids, order, axis=-1)


def _pool(logits: mx.array, n: int) -> tuple[mx.array, mx.array, mx.array]:
    """(largest logit (B, 1), ids (B, m), their logits (B, m)): among them the n largest of the row.

    Those lie in the n blocks with the largest maxima, so most of a large vocabulary is read once and never sorted.
    """
    B, V = logits.shape
    blocks = V // BLOCK
    whole = blocks * BLOCK
    if blocks <= 2 * n:
        ids = mx.broadcast_to(mx.arange(V, dtype=mx.int32), (B, V))
        return mx.max(logits, axis=-1, keepdims=True), ids, logits
    # Each id after the last whole block counts as a block of its own.
    maxima = mx.max(logits[:, :whole].reshape(B, blocks, BLOCK), axis=-1)
    maxima = mx.concatenate([maxima, logits[:, whole:]], axis=-1)
    chosen, lanes = _best(maxima, n)[..., None].astype(mx.int32), mx.arange(BLOCK, dtype=mx.int32)
    ids = mx.where(chosen < blocks, chosen * BLOCK + lanes, chosen - blocks + whole)  # (B, n, BLOCK)
    values = mx.take_along_axis(logits, ids.reshape(B, -1), axis=-1)
    if n > 1:
        repeated = ((chosen >= blocks) & (lanes > 0)).reshape(B, -1)  # a block of one id fills all lanes with it
        values = mx.where(repeated, -mx.inf, values).reshape(B, -1, PIECE)
        best = _best(mx.max(values, axis=-1), n)[..., None]
        ids, values = (mx.take_along_axis(x, best, axis=1) for x in (ids.reshape(B, -1, PIECE), values))
    return mx.max(maxima, axis=-1, keepdims=True), ids.reshape(B, -1), values.reshape(B, -1)


def _best(values: mx.array, n: int) -> mx.array:
    """Where the n largest of each row are, (B, n)."""
    return mx.argmax(values, -1, keepdims=True) if n == 1 else mx.argpartition(values, -n, axis=-1)[:, -n:]


class Filters(NamedTuple):
    """Top-k, top-p and min-p, as arrays (B, 1), or (1, 1) for any number of rows."""

    last: mx.array  # index of the k-th candidate
    cut: mx.array  # what top-p removes, in units of 2^-30 of the whole; -1 is nothing
    min_p: mx.array

    @classmethod
    def of(cls, params: Sequence[Params], n: int) -> "Filters":
        return cls(
            last=mx.array([[min(settings.top_k or n, n) - 1] for settings in params]),
            cut=mx.array([[_cut(settings.top_p)] for settings in params], mx.int64),
            min_p=mx.array([[settings.min_p] for settings in params], mx.float32),
        )

    def __call__(self, cooled: mx.array) -> mx.array:
        """Cooled logits (B, n) of candidates, those that a filter removes as -inf."""
        kth = mx.take_along_axis(cooled, mx.broadcast_to(self.last, (len(cooled), 1)), axis=-1)
        weights = mx.exp(cooled)  # in units of the first
        keep = cooled >= kth  # all that are equal to the k-th stay
        keep = keep & self._within_top_p(mx.where(keep, weights, 0)) & (weights >= self.min_p)
        return mx.where(keep, cooled, -mx.inf)

    def _within_top_p(self, weights: mx.array) -> mx.array:
        """Remove the smallest candidates, as long as their weights are at most 1 - p of the whole.

        The sum is over integers, and so exact: a float32 sum over 151,936 weights is off by some of them, and a GPU
        has no float64.
        """
        units = mx.round(weights * 2.0**WEIGHT_BITS).astype(mx.int64)
        mass = mx.cumsum(units, axis=-1, reverse=True)  # of a candidate and all after it
        high, low = mass[:, :1] >> SHARE_BITS, mass[:, :1] & (2**SHARE_BITS - 1)
        return mass >= high * self.cut + ((low * self.cut) >> SHARE_BITS)


def _cut(top_p: float) -> int:
    """1 - top_p in units, rounded up: p = 0.9 of ten equal weights keeps nine, whatever 1 - 0.9 is in float64."""
    return -1 if top_p == 1 else min(int((1 - top_p) * 2**SHARE_BITS) + 2, 2**SHARE_BITS)
