"""Ratios beside those of an earlier run."""

import json

import pytest
from benching import TWICE, baseline_of

from mlx_qwen3 import bench
from mlx_qwen3.bench.baseline import check_settings
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
    check_settings(report, baseline)
    if not fails:
        return bench.check(report, baseline, margin=0.1)
    with pytest.raises(BenchError, match=rf"^1 ratios are worse by more than 10%: {TWICE}, 5 tokens, \w+, .*ours is"):
        bench.check(report, baseline, margin=0.1)
    return None


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda c: c["shape"].update(hidden_size=64), "the baseline has hidden_size of the model 64, this run 48"),
        (lambda c: c["shape"].update(quantization={"bits": 4}), "quantization of the model bits 4, this run none"),
        (lambda c: c["settings"].update(generate=5), "the baseline has --generate 5, this run 4;"),
        (lambda c: c["settings"].update(prompt_tokens=[5, 7]), "has --prompt-tokens 5,7, this run 5;"),
        (lambda c: c["settings"].update(same_blas=True), "has --same-blas on, this run off;"),
        (lambda c: c["settings"].update(dtype="bf16"), "has --dtype bf16, this run default;"),
        (lambda c: c["contestants"].pop(), f"has the contestants mlx-qwen3, this run mlx-qwen3, {TWICE};"),
        (lambda c: c["machine"].update(backend="MLX Metal"), "has the back end MLX Metal, this run"),
        (lambda c: c["contestants"][1].update(dtype="float16"), f"has {TWICE} in float16 on"),
    ],
)
def test_a_baseline_of_other_settings_is_refused(report, change, named):
    baseline = json.loads(json.dumps(bench.as_json(report)))
    check_settings(report, baseline)
    change(baseline)
    with pytest.raises(UsageError, match=named):
        check_settings(report, baseline)
