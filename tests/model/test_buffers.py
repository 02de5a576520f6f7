"""How large the buffers of keys and values are made."""

import mlx.core as mx
import numpy as np
import pytest
from arrays import as_numpy
from checkpoints import write_checkpoint

from mlx_qwen3.engine.decode import decode, generate_batch
from mlx_qwen3.engine.runner import decode_step
from mlx_qwen3.engine.sampling import SamplingParams
from mlx_qwen3.model import buffers, kernels
from mlx_qwen3.model.buffers import AHEAD, STEP, STEP_OF_ROWS, grown_capacity, rounded, window, with_capacity
from mlx_qwen3.model.cache import KVCache, idle_bytes
from mlx_qwen3.model.load import load_model

GREEDY = SamplingParams(temperature=0)


@pytest.mark.parametrize(
    ("rows", "gpu", "step"), [(1, False, STEP), (2, False, STEP_OF_ROWS), (1, True, STEP), (8, True, STEP)]
)
def test_the_windows_of_several_rows_on_a_cpu_grow_in_small_steps(rows, gpu, step, monkeypatch):
    """A step attends to every slot of its window, so empty ones cost time."""
    monkeypatch.setattr(kernels, "on_gpu", lambda: gpu)
    assert [rounded(tokens, rows) for tokens in (1, step, step + 1)] == [step, step, 2 * step]
    assert [window(tokens, rows, 1 << 20) for tokens in (1, step, step + 1)] == [step, step, 2 * step]


@pytest.mark.parametrize(
    ("tokens", "expected"), [(8_000, 8_192), (20_000, 20_480), (33_000, 33_792), (131_073, 135_168)]
)
def test_a_long_window_has_at_most_a_32nd_of_empty_slots(tokens, expected):
    assert window(tokens, 1, 1 << 20) == expected
    assert expected - tokens < tokens / 32 + STEP
    assert window(tokens, 1, tokens) == tokens, "never more than there is"


@pytest.mark.parametrize(
    ("gpu", "tokens", "filled", "limit", "expected"),
    [
        (False, 100, 0, 0, STEP),  # nobody knows how long the text becomes
        (False, 8193, 8192, 0, 10_496),  # so a quarter more
        (False, 100, 0, 5000, 5120),  # all of a reply whose length is known
        (False, 6000, 5120, 5000, 6144),  # drafts go beyond the limit
        (False, 100, 0, 513, 1024),  # few sizes, so that replies share their traces
        (True, 100, 0, 900, 1024),
        (True, 100, 0, 40_000, 1280),  # unused slots take memory of a GPU
        (True, 8193, 8192, 40_000, 10_496),
    ],
)
def test_room_is_made_for_the_whole_reply_if_that_takes_no_memory(gpu, tokens, filled, limit, expected, monkeypatch):
    monkeypatch.setattr(kernels, "on_gpu", lambda: gpu)
    assert AHEAD == 1024
    assert grown_capacity(tokens, 1, filled, limit) == expected


def test_a_larger_buffer_has_what_was_in_the_smaller_one():
    small = mx.random.normal((2, 1, 3, 7, 4))
    large = with_capacity(small, 5, 20)
    assert large.shape == (2, 1, 3, 20, 4)
    np.testing.assert_array_equal(as_numpy(large[:, :, :, :5]), as_numpy(small[:, :, :, :5]))


@pytest.fixture
def poisoned(monkeypatch):
    """Memory that nobody has written to holds NaN."""

    def made_of_nan(nbytes):
        made = mx.full((nbytes // 4,), mx.nan).view(mx.uint8)
        mx.eval(made)
        return made

    monkeypatch.setattr(buffers, "blank", made_of_nan)


@pytest.mark.parametrize("replay_after", [0, 1000], ids=["replayed", "built anew"])
def test_slots_that_nobody_has_written_to_do_not_matter(replay_after, tiny, poisoned, monkeypatch):
    monkeypatch.setattr(kernels, "replay_after", lambda: replay_after)
    model, prompt = load_model(tiny, "fp32"), [token % 140 for token in range(250)]
    reply = list(decode(model, prompt, GREEDY, max_tokens=300))  # through two windows of one buffer
    assert len(reply) == 300
    text = [*prompt, *reply]
    expected = as_numpy(mx.argmax(model(mx.array([text]))[0], axis=-1))[len(prompt) - 1 : -1]
    np.testing.assert_array_equal(reply, expected)


def test_nor_for_several_rows(tiny, poisoned):
    model = load_model(tiny, "fp32")
    prompts = [list(range(3, 3 + length)) for length in (5, 60, 33)]
    together = generate_batch(model, prompts, max_tokens=80)
    assert together == [list(decode(model, prompt, GREEDY, max_tokens=80)) for prompt in prompts]


def test_a_reply_fills_one_buffer_and_memory_does_not_rise(tmp_path):
    """Growth would have the old and the new buffer of a layer, which is half of a model of two."""
    shape = {"num_hidden_layers": 2, "num_key_value_heads": 8, "num_attention_heads": 8, "head_dim": 64}
    model = load_model(write_checkpoint(tmp_path, **shape, max_position_embeddings=20_000), "fp32")
    cache, tokens, capacities = model.make_cache(), 8_190, set()
    cache.limit = tokens + 30
    view = cache.view(tokens)
    for layer in range(2):
        mx.eval(view.attend(layer, mx.zeros((1, 8, 1, 64)), mx.random.normal((2, 1, 8, tokens, 64)), 1.0))
    cache.commit(view.buffers, tokens)
    del view  # nobody else may hold the buffers
    mx.clear_cache()
    held = mx.get_active_memory() - cache.nbytes
    mx.reset_peak_memory()
    token = mx.array([5])
    for _ in range(30):
        token = mx.argmax(decode_step(model)(token, cache), axis=-1)
        mx.eval(token)
        capacities.add(cache.capacity)
    assert capacities == {rounded(tokens + 30, 1)}
    assert mx.get_peak_memory() - held < 1.05 * cache.nbytes  # measured: 1.01


def test_idle_slots_are_not_in_use():
    cache = KVCache()
    assert idle_bytes() >= cache.idle_bytes == 0
    cache.limit = 1000
    view = cache.view(10)
    view.attend(0, mx.ones((1, 2, 1, 4)), mx.ones((2, 1, 2, 10, 4)), 1.0)
    cache.commit(view.buffers, 10)
    slot = 2 * 2 * 4 * 4
    assert cache.nbytes == 1024 * slot
    assert cache.idle_bytes == 1014 * slot
    before = idle_bytes()
    cache.arrays()
    assert cache.idle_bytes == (1024 - STEP) * slot
    assert before - idle_bytes() == (0 if kernels.on_gpu() else (STEP - 10) * slot)
