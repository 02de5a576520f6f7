"""The guess beforehand: it grows with everything that is measured, and by default it is the minute that is aimed at."""

from dataclasses import replace

import pytest
from benching import chosen

from mlx_qwen3.bench import estimate
from mlx_qwen3.bench.options import Options
from mlx_qwen3.bench.serving_report import Serving
from mlx_qwen3.files.checkpoint import Checkpoint

GB = 10**9


def guess(folder, nbytes=GB, against=("mlx-lm",), **changes):
    entries = chosen(folder, against=against)
    return estimate.of_replies(Options(str(folder), **changes), entries, Checkpoint(folder).config, nbytes)


def test_more_of_anything_takes_longer(tiny):
    least = guess(tiny, repeat=1, prompt_tokens=(16,), generate=8)
    for changes in (
        {"repeat": 2},
        {"prompt_tokens": (16, 512)},
        {"generate": 9},
        {"rows": (4,)},
        {"nbytes": 2 * GB},
        {"against": ("mlx-lm", "mlx-lm:fp32")},
    ):
        assert guess(tiny, **{"repeat": 1, "prompt_tokens": (16,), "generate": 8, **changes}) > least, changes


def test_by_default_a_minute_unless_the_model_is_too_large(tiny):
    assert guess(tiny, nbytes=GB // 100) == pytest.approx(60)
    assert guess(tiny, nbytes=60 * GB) > 300


def test_of_servers(tiny):
    config = Checkpoint(tiny).config
    serving = Serving(Options(str(tiny)))
    assert estimate.of_servers(serving, 2, config, GB // 100) == pytest.approx(60)
    one = Serving(replace(serving.options, repeat=1), (1,))
    more = Serving(replace(serving.options, repeat=1), (1, 8)), Serving(replace(serving.options, repeat=2), (1,))
    assert all(estimate.of_servers(other, 2, config, GB) > estimate.of_servers(one, 2, config, GB) for other in more)
