"""The exposition format of Prometheus."""

import re

from serving import wait_until

from mlx_qwen3.server.metrics import FIRST, Histogram

LINE = re.compile(r'mlx_qwen3_\w+(\{\w+="[^"]*"(,\w+="[^"]*")*\})? [\d.e+-]+')


def values(demo):
    status, text = demo.ask("/metrics")
    assert status == 200
    lines = [line for line in text.splitlines() if not line.startswith("# ")]
    assert all(LINE.fullmatch(line) for line in lines)
    named = {re.split(r"[{ ]", line)[0].removesuffix("_bucket").removesuffix("_sum") for line in lines}
    assert {re.split(" ", line)[2] for line in text.splitlines() if line.startswith("# TYPE")} >= named - {
        name for name in named if name.endswith("_count")
    }
    return dict(line.rsplit(" ", 1) for line in lines)


def test_counts_grow_with_what_is_asked(demo):
    wait_until(lambda: not demo.busy)  # a row leaves in the step after its last token
    before = values(demo)
    answer = demo.chat("What is 17 + 25?", max_tokens=8)
    wait_until(lambda: not demo.busy)
    after = values(demo)

    def grown(name):
        return float(after[f"mlx_qwen3_{name}"]) - float(before.get(f"mlx_qwen3_{name}", 0))

    assert grown('requests_total{endpoint="chat",status="200"}') == 1
    assert grown("prompt_tokens_total") == answer["usage"]["prompt_tokens"]
    assert grown("generated_tokens_total") == 8
    assert grown("first_token_seconds_count") == 1
    assert grown("between_tokens_seconds_count") == 7
    assert grown("reply_seconds_count") == 1
    assert after["mlx_qwen3_models_loaded"] == "1"
    assert after["mlx_qwen3_running_replies"] == after["mlx_qwen3_queue_replies"] == "0"
    assert float(after["mlx_qwen3_memory_active_bytes"]) > 10_000_000


def test_prefix_hits(demo):
    text = "A prompt that is asked twice, and whose beginning is known the second time"
    before = [values(demo)["mlx_qwen3_prefix_hits_total"] for _ in range(2) if demo.chat(text, max_tokens=1)]
    demo.chat(text, max_tokens=1)
    assert int(values(demo)["mlx_qwen3_prefix_hits_total"]) == int(before[-1]) + 1


def test_a_histogram_counts_each_value_in_all_larger_buckets():
    histogram = Histogram(FIRST)
    for value in (0.005, 0.01, 0.3, 100.0):
        histogram.add(value)
    lines = dict(line.rsplit(" ", 1) for line in histogram.lines("x"))
    assert (lines['x_bucket{le="0.01"}'], lines['x_bucket{le="0.5"}'], lines['x_bucket{le="60.0"}']) == ("2", "3", "3")
    assert (lines['x_bucket{le="+Inf"}'], lines["x_count"], float(lines["x_sum"])) == ("4", "4", 100.315)
