"""The settings of sampling."""

import json
from dataclasses import asdict

import numpy as np
import pytest

from mlx_qwen3.engine.sampling import SamplingParams
from mlx_qwen3.errors import UsageError


def test_numbers_of_numpy_are_numbers():
    params = SamplingParams(np.float32(0.5), np.int64(7), np.float64(0.5), seed=np.uint64(3))
    assert params == SamplingParams(0.5, 7, 0.5, seed=3)
    assert json.dumps(asdict(params)) == json.dumps(asdict(SamplingParams(0.5, 7, 0.5, seed=3)))
    with pytest.raises(UsageError, match=r"top_k is .*7\.0"):
        SamplingParams(top_k=np.float32(7))


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", 10**100),
        ("temperature", "1"),
        ("top_k", -1),
        ("top_k", 2.5),
        ("top_k", True),
        ("top_k", 2**31),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("min_p", -0.01),
        ("min_p", 1.5),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", 1e-300),
        ("presence_penalty", 2.1),
        ("presence_penalty", -2.1),
        ("frequency_penalty", float("nan")),
        ("seed", -1),
    ],
)
def test_a_value_out_of_range_is_named(setting, value):
    with pytest.raises(UsageError, match=f"{setting} is {value!r}; expected"):
        SamplingParams(**{setting: value})


def test_a_long_value_is_not_repeated_whole():
    with pytest.raises(UsageError, match=r"temperature is 1000*\.\.\.0* \(401 characters\); expected"):
        SamplingParams(10**400)
