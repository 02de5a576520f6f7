"""What the machine can do: the figures are those of the work that was timed."""

import mlx.core as mx
import pytest

from mlx_qwen3.bench.workers import limits


def test_bytes_and_operations_over_the_best_time(monkeypatch):
    """With a clock that says 0.5 s for whatever lies between two looks at it."""
    monkeypatch.setattr(limits, "COPIED", 1 << 12)
    monkeypatch.setattr(limits, "ROWS", {mx.gpu: 8, mx.cpu: 8})
    looks = iter(range(1000))
    monkeypatch.setattr(limits.time, "perf_counter", lambda: next(looks) * 0.5)
    found = limits.measure(mx.float32)
    assert found["copy_bytes_per_s"] == pytest.approx(2 * 4096 / 0.5)
    assert found["product_flops"] == pytest.approx(2 * 8**3 / 0.5)
    assert found["product_rows"] == 8


def test_the_best_of_several_tries_counts(monkeypatch):
    moments = iter([0, 3, 10, 11, 20, 22])
    monkeypatch.setattr(limits, "TRIES", 3)
    monkeypatch.setattr(limits.time, "perf_counter", lambda: next(moments))
    assert limits._best(lambda: None) == 1


def test_slow_work_is_tried_three_times(monkeypatch):
    moments = iter(range(0, 100, 5))
    monkeypatch.setattr(limits.time, "perf_counter", lambda: next(moments))
    tries = []
    assert limits._best(lambda: tries.append(1)) == 5
    assert len(tries) == 3
