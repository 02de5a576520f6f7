"""The filters against transformers' own, the choice against its probabilities."""

import re

import mlx.core as mx
import numpy as np
import pytest

from mlx_qwen3.engine.sampling import Sampler, SamplingParams, candidates, min_p, penalize, random_keys, sample, top_p
from mlx_qwen3.errors import ConfigError, UsageError

QWEN_THINKING = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "eos_token_id": [3]}


def logits(rows: int = 3, vocabulary: int = 500, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 3, (rows, vocabulary)).astype(np.float32)


def places(count: int) -> mx.array:
    """The keys of the first tokens of a reply."""
    return random_keys(0, [(0, position) for position in range(count)])


def kept(scores: np.ndarray, k: int, p: float, m: float) -> np.ndarray:
    """Which ids survive our filters, (B, V) bool."""
    values, ids = candidates(mx.array(scores), k)
    survives = np.array(min_p(top_p(values, p), m)) > -np.inf
    result = np.zeros(scores.shape, bool)
    np.put_along_axis(result, np.array(ids), survives, axis=-1)
    return result


@pytest.mark.parametrize("k", [0, 1, 20, 499, 500, 600])
@pytest.mark.parametrize("p", [0.01, 0.5, 0.8, 0.95, 1.0])
@pytest.mark.parametrize("m", [0.0, 0.05, 0.5, 1.0])
def test_the_filters_keep_what_transformers_keeps(k, p, m):
    torch = pytest.importorskip("torch")
    from transformers.generation import logits_process as theirs

    warpers = [theirs.TopKLogitsWarper(k)] if k else []
    warpers += [theirs.TopPLogitsWarper(p)] if p < 1 else []
    warpers += [theirs.MinPLogitsWarper(m)] if m else []
    scores = logits()
    expected = theirs.LogitsProcessorList(warpers)(torch.zeros(3, 1, dtype=torch.long), torch.tensor(scores))
    np.testing.assert_array_equal(kept(scores, k, p, m), np.isfinite(expected.numpy()))


@pytest.mark.parametrize("vocabulary", [151_936, 151_669, 5_000, 600])
@pytest.mark.parametrize("k", [1, 20, 200])
def test_candidates_are_the_largest(k, vocabulary):
    scores = logits(2, vocabulary)
    scores[:, -k // 2 :] += 9  # some behind the last whole block
    values, ids = candidates(mx.array(scores), k)
    expected = np.argsort(-scores, axis=-1)[:, :k]
    np.testing.assert_array_equal(np.array(values), np.take_along_axis(scores, expected, axis=-1))
    np.testing.assert_array_equal(np.take_along_axis(scores, np.array(ids), axis=-1), np.array(values))


@pytest.mark.parametrize("penalty", [1.3, 0.8])
def test_the_penalty_is_that_of_transformers(penalty):
    torch = pytest.importorskip("torch")
    from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor

    scores, history = logits(), np.random.default_rng(1).integers(0, 500, (3, 40))
    expected = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor(history), torch.tensor(scores))
    seen = np.zeros(scores.shape, bool)
    np.put_along_axis(seen, history, True, axis=-1)
    ours = penalize(mx.array(scores), mx.array(seen), penalty)
    np.testing.assert_allclose(np.array(ours), expected.numpy(), rtol=1e-6)


def test_temperature_comes_before_top_p():
    """At 0.1 the first of these holds more than 0.9 by itself; at 1 it does not."""
    row = mx.array([[2.0, 1.5, 1.0, 0.5]])
    rows, keys = mx.repeat(row, 50, axis=0), places(50)
    assert set(sample(rows, SamplingParams(0.1, 0, 0.9), keys).tolist()) == {0}
    assert len(set(sample(rows, SamplingParams(1.0, 0, 0.9), keys).tolist())) > 1


@pytest.mark.parametrize(
    "params", [SamplingParams(0.7, 5, 0.9, 0.05), SamplingParams(1.3, 0, 1.0), SamplingParams(0.9, 3, 1.0)]
)
def test_tokens_come_with_their_probabilities(params):
    row = np.array([[1.0, 2.0, 0.5, 3.0, 2.5, -1.0]], np.float32)
    scores = np.where(kept(row / params.temperature, params.top_k, params.top_p, params.min_p), row, -np.inf)
    expected = np.exp(scores[0] / params.temperature)
    expected /= expected.sum()
    draws = 20_000
    drawn = np.array(sample(mx.array(row.repeat(draws, axis=0)), params, places(draws)))
    shares = np.bincount(drawn, minlength=6) / draws
    # Five standard deviations of a share; the key is fixed, so this cannot flicker.
    assert np.abs(shares - expected).max() < 5 * np.sqrt(0.25 / draws)
    assert not shares[expected == 0].any()


@pytest.mark.parametrize("params", [SamplingParams(), SamplingParams(1.0, 0, 1.0)], ids=["filtered", "whole"])
def test_a_draw_hangs_on_its_own_row_and_position_alone(params):
    scores = mx.array(logits(5))
    keys = random_keys(7, [(0, 4), (0, 5), (1, 4), (0, 300), (2, 0)])
    together = sample(scores, params, keys).tolist()
    assert together == [sample(scores[i : i + 1], params, keys[i : i + 1]).item() for i in range(5)]
    assert len(set(map(tuple, keys.tolist()))) == 5
    assert random_keys(8, [(0, 4)]).tolist() != keys[:1].tolist() == random_keys(7, [(0, 4)]).tolist()


def test_the_first_row_of_a_batch_draws_what_it_draws_alone():
    params, rows = SamplingParams(1.0, 0, 1.0, repetition_penalty=1.2, seed=2**64 - 1), logits(3)
    batch, alone = Sampler(params, [[1], [2], [3]], 400), Sampler(params, [[1]], 400)
    for position in range(20):
        drawn = batch.next(mx.array(rows), position).tolist()
        assert drawn[:1] == alone.next(mx.array(rows[:1]), position).tolist()
        assert max(drawn) < 400


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(temperature=0),
        SamplingParams(temperature=1e-300),
        SamplingParams(temperature=1e-5),
        SamplingParams(top_k=1),
        SamplingParams(top_k=0, top_p=1e-300),
    ],
    ids=str,
)
def test_the_limits_of_every_setting_are_greedy(params):
    scores = logits() * 50  # far apart, and past float32 when divided by a low temperature
    chosen = sample(mx.array(scores), params, places(3))
    np.testing.assert_array_equal(np.array(chosen), scores.argmax(-1))


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", "1"),
        ("top_k", -1),
        ("top_k", 2.5),
        ("top_k", True),
        ("top_p", 0.0),
        ("top_p", 1.01),
        ("min_p", -0.01),
        ("min_p", 1.5),
        ("repetition_penalty", 0.0),
        ("seed", -1),
    ],
)
def test_a_value_out_of_range_is_named(setting, value):
    with pytest.raises(UsageError, match=f"{setting} is {value!r}; expected"):
        SamplingParams(**{setting: value})


def test_defaults_come_from_generation_config():
    raw = {"do_sample": True, "temperature": 0.9, "top_k": 7, "top_p": 0.7, "min_p": 0.1, "repetition_penalty": 1.05}
    assert SamplingParams.from_generation_config(raw, thinking=True) == SamplingParams(0.9, 7, 0.7, 0.1, 1.05)


def test_without_thinking_every_filter_is_qwens():
    raw = {"do_sample": True, "temperature": 0.9, "top_k": 7, "top_p": 0.7, "min_p": 0.1}
    assert SamplingParams.from_generation_config(raw, thinking=False) == SamplingParams(0.7, 20, 0.8, 0.0)


def test_without_thinking_they_are_qwens_other_ones():
    assert SamplingParams.from_generation_config(QWEN_THINKING, thinking=False) == SamplingParams(0.7, 20, 0.8, 0.0)


def test_without_the_file_they_are_qwens():
    assert SamplingParams.from_generation_config({}, thinking=True) == SamplingParams(0.6, 20, 0.95, 0.0)
    assert SamplingParams.from_generation_config({}, thinking=False) == SamplingParams(0.7, 20, 0.8, 0.0)


@pytest.mark.parametrize("thinking", [True, False])
def test_a_checkpoint_that_does_not_sample_is_greedy(thinking):
    assert SamplingParams.from_generation_config({"do_sample": False}, thinking).temperature == 0
    assert SamplingParams.from_generation_config({"eos_token_id": 3}, thinking).temperature == 0


@pytest.mark.parametrize(
    ("setting", "value"),
    [("num_beams", 4), ("typical_p", 0.9), ("no_repeat_ngram_size", 3), ("stop_strings", ["x"]), ("max_time", 3)],
)
def test_settings_that_cannot_be_honoured_are_named(setting, value):
    with pytest.raises(ConfigError, match=f"{setting} is {re.escape(repr(value))}"):
        SamplingParams.from_generation_config({**QWEN_THINKING, setting: value}, thinking=True)


def test_their_neutral_values_are_fine():
    raw = {**QWEN_THINKING, "num_beams": 1, "typical_p": 1.0, "no_repeat_ngram_size": 0, "bad_words_ids": None}
    assert SamplingParams.from_generation_config(raw, thinking=True) == SamplingParams()


def test_a_bad_value_in_the_file_names_the_file():
    with pytest.raises(ConfigError, match=r"generation_config\.json: top_p is 2"):
        SamplingParams.from_generation_config({**QWEN_THINKING, "top_p": 2}, thinking=True)
