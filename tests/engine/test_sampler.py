"""The state of replies: random numbers by place, forks, and what happens to unusable logits."""

import mlx.core as mx
import numpy as np
import pytest

from mlx_qwen3.engine.sampler import Sampler, random_keys
from mlx_qwen3.engine.sampling import SamplingParams
from mlx_qwen3.errors import HealthError


def logits(rows: int = 3, vocabulary: int = 500) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 3, (rows, vocabulary)).astype(np.float32)


def test_a_key_depends_on_seed_row_and_position():
    places = [(7, 0, 4), (7, 0, 5), (7, 1, 4), (7, 0, 300), (7, 2, 0), (8, 0, 4)]
    keys = random_keys(places)
    assert len(set(map(tuple, keys.tolist()))) == 6
    assert keys[:1].tolist() == random_keys(places[:1]).tolist()


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(1.0, 0, 1.0, repetition_penalty=1.2, seed=2**64 - 1),
        SamplingParams(1.0, 30, 0.9, presence_penalty=1.0, frequency_penalty=0.5, seed=5),
    ],
)
def test_the_first_row_of_a_batch_draws_what_it_draws_alone(params):
    rows = logits(3)
    batch, alone = Sampler(params, [[1], [2], [3]], 400), Sampler(params, [[1]], 400)
    for position in range(20):
        drawn = batch.next(mx.array(rows), position).tolist()
        assert drawn[:1] == alone.next(mx.array(rows[:1]), position).tolist()
        assert max(drawn) < 400


def test_rows_with_their_own_settings_numbers_and_positions():
    """As in a batch that rows join and leave: each draws what it draws alone."""
    params = [
        SamplingParams(1.0, 0, 1.0, seed=1),
        SamplingParams(0, repetition_penalty=1.3),
        SamplingParams(1.2, 40, 0.9, presence_penalty=1.0, seed=1),
    ]
    numbers, starts, prompts = [0, 3, 1], [0, 9, 4], [[1], [2, 2], [3]]
    rows = mx.array(logits(3))
    batch = Sampler(params, prompts, 400, numbers)
    alone = [Sampler([params[i]], [prompts[i]], 400, [numbers[i]]) for i in range(3)]
    for step in range(12):
        drawn = batch.next(rows, [start + step for start in starts]).tolist()
        assert drawn == [alone[i].next(rows[i : i + 1], starts[i] + step).item() for i in range(3)]


def test_a_fork_is_independent():
    params = SamplingParams(1.0, 0, 1.0, repetition_penalty=1.5, frequency_penalty=1.0)
    sampler, twin = (Sampler(params, [[1]], 400) for _ in range(2))
    row = mx.array(logits(1))
    fork = sampler.fork(400, "the draft model")
    forked = [fork.next(row, position).item() for position in range(9)]
    assert [sampler.next(row, position).item() for position in range(9)] == forked
    assert [twin.next(row, position).item() for position in range(9)] == forked


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(0, frequency_penalty=1.0),
        SamplingParams(1.0, 0, 1.0, repetition_penalty=1.2),
        SamplingParams(1.0, 0, 0.9),
        SamplingParams(0.8),
    ],
    ids=str,
)
def test_a_fork_for_fewer_ids_never_chooses_beyond_them(params):
    fork = Sampler(params, [[1, 450]], 500).fork(90, "the draft model")
    plain = Sampler(params, [[1]], 90)
    for position in range(9):
        row = mx.array(logits(1, 90) + position)
        assert fork.next(row, position).tolist() == plain.next(row, position).tolist()


def test_unusable_logits_are_an_error_that_names_the_token():
    params, rows = SamplingParams(), logits(2)
    rows[1, 77] = np.nan
    sampler = Sampler(params, [[1, 2, 3], [4, 5]], 500)
    tokens = sampler.next(mx.array(rows), 6)
    message = "the model has NaN or infinity in its logits for token 7 of the reply, after 2 prompt tokens: .* inspect"
    with pytest.raises(HealthError, match=message):
        sampler.known(tokens, 6)


def test_unusable_logits_of_a_guess_count_only_if_the_guess_is_right():
    rows = logits(3)
    truth = rows.argmax(-1).tolist()
    rows[2, 77] = np.inf
    sampler = Sampler(SamplingParams(0), [[1]], 500)
    assert sampler.check(mx.array(rows), 4, [9, truth[0], truth[1] + 1]) == truth[:2]
    with pytest.raises(HealthError, match="for token 7 of the reply, after 1 prompt tokens"):
        sampler.check(mx.array(rows), 4, [9, *truth[:2]])


def test_unusable_logits_of_a_draft_model_are_its_own():
    fork = Sampler(SamplingParams(0), [[1]], 500).fork(500, "the draft model")
    with pytest.raises(HealthError, match=r"^the draft model has NaN"):
        fork.known(fork.next(mx.full((1, 500), mx.nan), 0), 0)


def test_a_whole_number_past_64_bits_is_a_temperature():
    row = mx.array(logits(1))
    whole, real = (Sampler([SamplingParams(value, seed=3)], [[1]], 500).next(row, 0) for value in (2**70, 2.0**70))
    assert whole.tolist() == real.tolist()
