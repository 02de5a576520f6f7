"""Statistics against NumPy."""

import math

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_qwen3.inspect.statistics import Accumulator, grouped, pooled, summarize

SEED = np.random.default_rng(5)


def expected(values):
    values = values.astype(np.float64)
    finite = values[np.isfinite(values)]
    moments = [finite.mean(), finite.std(), math.sqrt((finite**2).mean()), finite.min(), finite.max()]
    odd = [np.isnan(values).sum(), np.isinf(values).sum()]
    return [*moments, *odd, (values == 0).mean()]


def found(s):
    return [s.mean, s.std, s.rms, s.min, s.max, s.nan, s.inf, s.zeros]


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 9)),
    offset=st.sampled_from([0.0, 1e3, -1e-3]),
    scale=st.sampled_from([1.0, 1e-6, 1e5]),
    odd=st.lists(st.sampled_from([np.nan, np.inf, -np.inf, 0.0]), max_size=4),
)
@settings(max_examples=80, deadline=None)
def test_statistics_are_numpys(shape, offset, scale, odd):
    values = (np.random.default_rng(1).normal(size=shape) * scale + offset).astype(np.float32)
    values.reshape(-1)[: len(odd)] = odd[: values.size]
    if not np.isfinite(values).any():
        assert found(summarize(mx.array(values)))[:5] == [None] * 5
        return
    near = 1e-5 * max(scale, abs(offset))
    assert found(summarize(mx.array(values))) == pytest.approx(expected(values), rel=1e-5, abs=near)


def test_pieces_groups_and_pools_give_the_whole():
    values = SEED.normal(3, 2, (2, 6, 50, 8)).astype(np.float32)
    accumulator = Accumulator(6)
    for start in range(0, 50, 7):
        accumulator.add(grouped(mx.array(values[:, :, start : start + 7]), 1))
    assert found(accumulator.overall()) == pytest.approx(expected(values), rel=1e-5)
    for head, statistics in enumerate(accumulator.each()):
        assert found(statistics) == pytest.approx(expected(values[:, head]), rel=1e-5)
    halves = [summarize(mx.array(half)) for half in (values[:1], values[1:, :2], values[1:, 2:])]
    assert found(pooled(halves)) == pytest.approx(expected(values), rel=1e-5)


def test_large_arrays_keep_their_digits():
    """Nine million numbers, more than one piece, far from 0: a float32 sum alone would be off in the fourth digit."""
    values = SEED.normal(100, 1, (3000, 3000)).astype(np.float32)
    assert found(summarize(mx.array(values))) == pytest.approx(expected(values), rel=1e-5)


@pytest.mark.parametrize("dtype", [mx.float16, mx.bfloat16, mx.float32])
def test_every_float_dtype(dtype):
    values = mx.array(SEED.normal(size=(30, 8)).astype(np.float32)).astype(dtype)
    assert found(summarize(values)) == pytest.approx(expected(np.array(values.astype(mx.float32))), rel=1e-5, abs=1e-7)


def test_numbers_whose_squares_leave_float32():
    values = np.array([1e30, -2e30, 3e30, 5.0], np.float32)
    assert found(summarize(mx.array(values))) == pytest.approx(expected(values), rel=1e-5)
