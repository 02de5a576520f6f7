"""Mean, spread and range of arrays of any size, computed piece by piece, for the whole array and per head."""

import math
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

SQUARABLE = 1e15  # up to this magnitude, sums of squares fit in float32
PIECE = 1 << 22  # elements per piece; limits the memory of the intermediate arrays to about 100 MB


@dataclass(frozen=True)
class Statistics:
    """Statistics of `count` numbers. NaN and infinity are only counted; without other numbers, the rest is None."""

    count: int
    mean: float | None
    std: float | None
    rms: float | None
    min: float | None
    max: float | None
    nan: int
    inf: int
    zeros: float  # share of exact zeros, 0 to 1

    @property
    def abs_max(self) -> float | None:
        return None if self.min is None or self.max is None else max(abs(self.min), abs(self.max))


class Accumulator:
    """Statistics of `groups` groups of numbers that arrive in pieces; merged as Chan, Golub and LeVeque do."""

    def __init__(self, groups: int = 1):
        self._count, self._nan, self._inf, self._zeros = (np.zeros(groups) for _ in range(4))
        self._mean, self._m2 = np.zeros(groups), np.zeros(groups)
        self._min, self._max = np.full(groups, np.inf), np.full(groups, -np.inf)

    def add(self, x: mx.array, where: mx.array | None = None) -> None:
        """Add x (groups, rows, columns); `where`, of the same shape, says which elements count."""
        rows = max(1, PIECE // (x.shape[0] * x.shape[2]))
        for start in range(0, x.shape[1], rows):
            piece = x[:, start : start + rows].astype(mx.float32)
            part = None if where is None else where[:, start : start + rows]
            self._merge(*_moments(piece, part))

    def _merge(self, counts: np.ndarray, ranges: np.ndarray, mean: np.ndarray, m2: np.ndarray) -> None:
        n, nan, inf, zeros = counts
        before, total = self._count, self._count + n
        shift, weight = mean - self._mean, n / np.maximum(total, 1)
        self._mean = self._mean + shift * weight
        self._m2 = self._m2 + m2 + shift**2 * before * weight
        self._count, self._nan, self._inf, self._zeros = total, self._nan + nan, self._inf + inf, self._zeros + zeros
        self._min, self._max = np.minimum(self._min, ranges[0]), np.maximum(self._max, ranges[1])

    def each(self) -> list[Statistics]:
        """The statistics of each group."""
        columns = (self._count, self._mean, self._m2, self._min, self._max, self._nan, self._inf, self._zeros)
        return [_statistics(*map(float, row)) for row in zip(*columns, strict=True)]

    def overall(self) -> Statistics:
        """The statistics of all groups together."""
        n = self._count.sum()
        mean = float((self._mean * self._count).sum() / max(n, 1))
        m2 = float((self._m2 + self._count * (self._mean - mean) ** 2).sum())
        counts = (float(total.sum()) for total in (self._nan, self._inf, self._zeros))
        return _statistics(float(n), mean, m2, float(self._min.min()), float(self._max.max()), *counts)


def grouped(x: mx.array, axis: int | None = None) -> mx.array:
    """x as (groups, rows, columns): `axis` gives the groups, the last axis the columns."""
    x = x.reshape(1, -1) if x.ndim == 1 else x
    groups = 1 if axis is None else x.shape[axis]
    x = x if axis is None else mx.moveaxis(x, axis, 0)
    return x.reshape(groups, -1, x.shape[-1])


def summarize(x: mx.array) -> Statistics:
    accumulator = Accumulator()
    accumulator.add(grouped(x))
    return accumulator.overall()


def pooled(parts: list[Statistics]) -> Statistics:
    """The statistics of several arrays together."""
    together = Accumulator()
    for part in parts:
        finite = part.count - part.nan - part.inf
        counts = np.array([[finite], [part.nan], [part.inf], [part.zeros * part.count]], np.float64)
        empty = part.mean is None or part.std is None or part.min is None or part.max is None
        ranges = np.array([[np.inf], [-np.inf]] if empty else [[part.min], [part.max]])
        mean, std = (np.array([0.0 if empty else value]) for value in (part.mean, part.std))
        together._merge(counts, ranges, mean, std**2 * finite)
    return together.overall()


def _moments(x: mx.array, where: mx.array | None) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(finite, NaN, infinite and zero counts), (min, max), mean and sum of squared distances from it, per group."""
    n = mx.array(x.shape[1] * x.shape[2]) if where is None else _count(where)
    nan = inf = mx.array(0)
    finite, unit = where, mx.array(1.0)
    # A finite sum has finite terms, so only arrays whose sum is not finite are searched for NaN and infinity.
    seen = _only(x, where, 0)
    if not mx.all(mx.isfinite(_sum(seen)) & (mx.abs(seen).max(axis=(1, 2)) <= SQUARABLE)).item():
        inside = mx.ones_like(x, dtype=mx.bool_) if where is None else where
        nan, inf = _count(mx.isnan(x) & inside), _count(mx.isinf(x) & inside)
        finite = inside & mx.isfinite(x)
        n = _count(finite)
        # Beyond 1e19, squares overflow float32; dividing by a power of two avoids that without rounding.
        largest = mx.abs(_only(x, finite, 0)).max(axis=(1, 2), keepdims=True)
        unit = mx.where(largest > SQUARABLE, 2.0**64, 1.0)
    low, high = _only(x, finite, math.inf).min(axis=(1, 2)), _only(x, finite, -math.inf).max(axis=(1, 2))
    zeros = _count((x == 0) if finite is None else (x == 0) & finite)
    x = _only(x, finite, 0) / unit
    mean = _sum(x) / mx.maximum(n, 1)
    m2 = _sum(_only(mx.square(x - mean[:, None, None]), finite, 0))
    counts = [np.broadcast_to(np.array(count, np.float64), low.shape) for count in (n, nan, inf, zeros)]
    scale = np.array(unit, np.float64).reshape(-1)
    return (
        np.stack(counts),
        np.stack([np.array(low, np.float64), np.array(high, np.float64)]),
        np.array(mean, np.float64) * scale,
        np.array(m2, np.float64) * scale**2,
    )


def _only(x: mx.array, where: mx.array | None, other: float) -> mx.array:
    return x if where is None else mx.where(where, x, other)


def _sum(x: mx.array) -> mx.array:
    return x.sum(axis=2).sum(axis=1)  # in two stages, because float32 sums of millions of numbers lose digits


def _count(x: mx.array) -> mx.array:
    return x.astype(mx.int32).sum(axis=(1, 2))


def _statistics(
    n: float, mean: float, m2: float, low: float, high: float, nan: float, inf: float, zeros: float
) -> Statistics:
    total = int(n + nan + inf)
    share = zeros / total if total else 0.0
    if not n:
        return Statistics(total, None, None, None, None, None, int(nan), int(inf), share)
    variance = m2 / n
    rms = math.sqrt(variance + mean**2)
    return Statistics(total, mean, math.sqrt(variance), rms, low, high, int(nan), int(inf), share)
