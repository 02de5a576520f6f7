"""The limits of bandwidth and arithmetic."""

import pytest
from checkpoints import TINY

from mlx_qwen3.bench import roofline
from mlx_qwen3.files.config import Qwen3Config


def test_the_limits_of_qwen3_0_6b():
    shape = {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16}
    config = Qwen3Config.from_hf({**TINY, **shape, "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 151936})
    norms, embedding = 28 * (2 * 1024 + 2 * 128) + 1024, 151936 * 1024
    assert roofline.layer_weights(config) == 596_049_920 - norms - embedding
    assert roofline.decode_limit(120e9, 1.19e9) == pytest.approx(101, abs=0.5)  # an M4's bandwidth, 0.6B in bf16
    one, two = (roofline.prefill_operations(config, length) for length in (1000, 2000))
    scores = 28 * 16 * 128 * 2 * 1000**2  # queries by keys, then by values; half of them, at 2 operations each
    assert two - 2 * one == 2 * scores - 2 * embedding
    assert roofline.prefill_limit(1e12, config, 1000) == pytest.approx(1000 / (one / 1e12))
