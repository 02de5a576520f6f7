"""Ratios beside those of an earlier run."""

import json

import pytest
from benching import TWICE, baseline_of

from mlx_qwen3 import bench
from mlx_qwen3.errors import BenchError, UsageError


@pytest.mark.parametrize(
    ("metric", "worse", "fails"),
    [
        ("decode_tps", 1.2, True),  # the baseline was 1.2 times better than now
        ("decode_tps", 1.05, False),
        ("decode_tps", 0.5, False),
        ("peak_bytes", 0.8, True),
        ("peak_bytes", 0.97, False),
        ("peak_bytes", 2, False),
    ],
)
def test_check_fails_past_the_margin_only(report, metric, worse, fails):
    now = bench.as_json(report)["contestants"][1]["summary"]["5"][metric]["ratio"]["median"]
    baseline = baseline_of(report, metric, now * worse)
    bench.check_settings(report, baseline)
    if not fails:
        return bench.check(report, baseline, margin=0.1)
    with pytest.raises(BenchError, match=rf"^1 ratios are worse by more than 10%: {TWICE}, 5 tokens, \w+, .*ours is"):
        bench.check(report, baseline, margin=0.1)
    return None


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda c: c["shape"].update(hidden_size=64), "the shape"),
        (lambda c: c["settings"].update(generate=5), "generate 5, this run 4"),
        (lambda c: c["contestants"][1].update(dtype="float16"), "contestants"),
        (lambda c: c["machine"].update(backend="MLX Metal"), "the back end 'MLX Metal', this run"),
    ],
)
def test_a_baseline_of_other_settings_is_refused(report, change, named):
    baseline = json.loads(json.dumps(bench.as_json(report)))
    bench.check_settings(report, baseline)
    change(baseline)
    with pytest.raises(UsageError, match=named):
        bench.check_settings(report, baseline)
