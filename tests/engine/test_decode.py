"""Tokens: those of transformers' generate, in any batch, from a cache that is never copied."""

import mlx.core as mx
import numpy as np
import pytest
from arrays import as_numpy
from checkpoints import TINY, VOCABULARY, YARN, write_checkpoint

from mlx_qwen3.engine import batch
from mlx_qwen3.engine.decode import decode, generate_batch
from mlx_qwen3.engine.runner import DecodeStep, prefill
from mlx_qwen3.engine.sampling import SamplingParams
from mlx_qwen3.model import kernels
from mlx_qwen3.model.load import load_model
from mlx_qwen3.model.rope import RoPE

GREEDY = SamplingParams(temperature=0)


def prompts(*lengths: int) -> list[list[int]]:
    rng = np.random.default_rng(5)
    return [rng.integers(0, TINY["vocab_size"], length).tolist() for length in lengths]


def transformers_greedy(model, rows, **options):
    """64 tokens for each row, from one left-padded batch."""
    import torch

    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
    settings = {"max_new_tokens": 64, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    return model.generate(ids, attention_mask=mask, **settings, **options)[:, longest:].tolist()


@pytest.fixture(params=[None, YARN], ids=["default", "yarn"])
def lively(request, tmp_path):
    """A checkpoint whose greedy replies wander: untied, since a tied one with random weights repeats one token."""
    return write_checkpoint(
        tmp_path / "model", rope_scaling=request.param, num_hidden_layers=3, tie_word_embeddings=False
    )


LENGTHS = {"short": (12,), "700 tokens": (700,), "batch of 3": (3, 41, 150)}


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
def test_greedy_continuation_equals_transformers(lengths, lively, transformers_model):
    rows = prompts(*lengths)
    replies = generate_batch(load_model(lively, "fp32"), rows, max_tokens=64)
    assert min(len(set(reply)) for reply in replies) >= 8, "a reply that repeats itself proves nothing"
    assert replies == transformers_greedy(transformers_model(lively), rows)


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS.keys())
@pytest.mark.parametrize("mistake", ["shifted positions", "frozen positions", "forgotten values"])
def test_mistakes_in_decode_change_the_continuation(lengths, mistake, lively, monkeypatch):
    """That the comparison above can fail."""
    rows = prompts(*lengths)
    right = generate_batch(load_model(lively, "fp32"), rows, max_tokens=64)
    turn, attend, prompt = RoPE.__call__, kernels.attend, max(lengths)
    if mistake == "shifted positions":
        monkeypatch.setattr(RoPE, "__call__", lambda r, p: turn(r, p + (7 if p.shape[1] == 1 else 0)))
    elif mistake == "frozen positions":
        monkeypatch.setattr(RoPE, "__call__", lambda r, p: turn(r, mx.minimum(p, prompt)))
    else:
        monkeypatch.setattr(kernels, "attend", lambda q, kv, *rest: attend(q, mx.stack([kv[0], 0 * kv[1]]), *rest))
    assert generate_batch(load_model(lively, "fp32"), rows, max_tokens=64) != right


def test_greedy_with_a_repetition_penalty_equals_transformers(lively, transformers_model):
    rows, params = prompts(9, 30), SamplingParams(temperature=0, repetition_penalty=1.3)
    ours = generate_batch(load_model(lively, "fp32"), rows, max_tokens=64, sampling=params)
    for row, reply in zip(rows, ours, strict=True):  # alone: transformers counts the padding as seen
        assert [reply] == transformers_greedy(transformers_model(lively), [row], repetition_penalty=1.3)
        assert len(set(reply)) > 30


def fill(cache, layer, kv):
    """Write keys and values (2, B, K, L, D) of one layer to a cache whose `end` is moved afterwards."""
    view = cache.view(kv.shape[3])
    view.attend(layer, mx.zeros((kv.shape[1], kv.shape[2], 1, kv.shape[4])), kv, 1.0)
    cache.buffers = view.buffers
    mx.eval(cache.buffers)


@pytest.mark.parametrize("past", [1_000, 8_000, 40_000])
def test_far_positions_after_a_long_past_equal_transformers(past, lively, transformers_model):
    torch = pytest.importorskip("torch")
    cache_class = pytest.importorskip("transformers").DynamicCache
    model, reference, ids = load_model(lively, "fp32"), transformers_model(lively), np.array(prompts(12))
    rng = np.random.default_rng(past)
    cache, theirs = model.make_cache(), cache_class(config=reference.config)
    # transformers caches keys that YaRN has scaled; ours puts its factor into the scores.
    factor = model.config.attention_factor
    for layer in range(3):
        keys, values = rng.normal(size=(2, 1, 2, past, 20)).astype(np.float32)
        fill(cache, layer, mx.stack([mx.array(keys / factor), mx.array(values)]))
        theirs.update(torch.tensor(keys), torch.tensor(values), layer)
    cache.end = past
    ours = as_numpy(model(mx.array(ids), cache))
    with torch.no_grad():
        expected = reference(torch.tensor(ids), past_key_values=theirs).logits.numpy()
    assert np.abs(ours - expected).max() < 1e-4  # measured 2e-5 at 40,000: a frequency's last place, 40,000-fold


def test_every_step_draws_anew(chat, monkeypatch):
    model, _ = chat
    monkeypatch.setattr(batch, "decode_step", lambda _: lambda tokens, cache: mx.zeros((1, VOCABULARY)))
    flat = SamplingParams(1.0, 0, 1.0, seed=1)
    [reply] = generate_batch(model, prompts(3), max_tokens=50, sampling=flat, lookup=False)
    assert len(set(reply)) > 30


@pytest.mark.parametrize("chunk", [1, 5, 36, 37, 100])
def test_prefill_in_chunks_gives_the_logits_of_the_whole(tiny, ids, chunk):
    model = load_model(tiny, "fp32")
    cache = model.make_cache(2)
    last = prefill(model, mx.array(ids), cache, chunk)
    assert cache.end == 37
    assert last.shape == (2, TINY["vocab_size"])
    assert np.abs(as_numpy(last) - as_numpy(model(mx.array(ids)))[:, -1]).max() < 2e-5


def test_a_prompt_is_one_pass_and_asks_for_one_row_of_logits(chat, monkeypatch):
    model, _ = chat
    passes, projected = [], []
    ends, logits = type(model).ends, type(model).logits
    monkeypatch.setattr(batch, "decode_step", DecodeStep)  # the model's own may be replayed by now
    monkeypatch.setattr(type(model), "ends", lambda m, ids, c, n: passes.append((*ids.shape, n)) or ends(m, ids, c, n))
    monkeypatch.setattr(type(model), "logits", lambda m, h, *rest: projected.append(h.shape) or logits(m, h, *rest))
    generate_batch(model, prompts(50), max_tokens=3)
    assert passes == [(1, 50, 1)]  # and then steps
    assert projected == [(1, 48)]


def test_rows_of_a_batch_are_the_rows_alone(chat):
    model, _ = chat
    rows = prompts(1, 20, 33)
    assert generate_batch(model, rows, max_tokens=20) == [
        generate_batch(model, [row], max_tokens=20)[0] for row in rows
    ]


@pytest.mark.parametrize("form", [np.array, mx.array, lambda row: [np.int64(token) for token in row], tuple])
def test_rows_may_be_arrays(chat, form):
    rows = prompts(4, 9)
    expected = generate_batch(chat[0], rows, max_tokens=3)
    assert generate_batch(chat[0], [form(row) for row in rows], max_tokens=3) == expected


def test_decode_without_a_limit_goes_on_to_the_end_of_the_context(tmp_path):
    model = load_model(write_checkpoint(tmp_path, max_position_embeddings=20), "fp32")
    assert len(list(decode(model, prompts(6)[0], GREEDY))) == 14


def test_nothing_is_computed_after_an_end_token(chat, monkeypatch):
    """The first token comes with the prompt, each other one by a step."""
    model, [prompt] = chat[0], prompts(9)
    tokens = list(decode(model, prompt, GREEDY, max_tokens=20))
    end = max(i for i in range(20) if tokens[i] not in tokens[:i])
    steps, hand_over = [], mx.async_eval
    monkeypatch.setattr(mx, "async_eval", lambda array: steps.append(array) or hand_over(array))
    assert list(decode(model, prompt, GREEDY, max_tokens=20, stop_ids={tokens[end]})) == tokens[: end + 1]
    assert len(steps) == end


def test_each_row_of_a_batch_ends_by_itself(chat):
    model, rows = chat[0], prompts(9, 30)
    replies = generate_batch(model, rows, max_tokens=20)
    stop = {replies[0][4], replies[1][6]}
    expected = [next(i for i, token in enumerate(reply) if token in stop) for reply in replies]
    assert [len(reply) for reply in generate_batch(model, rows, max_tokens=20, stop_ids=stop)] == expected


def attend(tokens, cache):
    """A step of attention alone: MLX lets a host run ahead by few operations only, and one of Qwen3 has more."""
    view = cache.view(1)
    kv = mx.ones((2, 1, 8, 1, 128)) * tokens.astype(mx.float32)
    out = view.attend(0, kv[0], kv, 1.0)
    cache.commit(view.buffers, 1)
    return out[:, 0, 0]


@pytest.mark.parametrize("replay_after", [0, 64], ids=["compiled", "eager"])
@pytest.mark.parametrize(
    ("make_step", "kv_bits", "size"),
    [(batch.decode_step, None, 8192), (batch.decode_step, 8, 2304), (lambda _: attend, None, 8192)],
    ids=["Qwen3", "Qwen3, 8 bits", "attention"],
)
def test_decode_holds_the_cache_once(make_step, kv_bits, size, replay_after, tmp_path, monkeypatch):
    """A step that is handed over while the one before it is unfinished copies the cache."""
    wide = {"num_hidden_layers": 1, "num_key_value_heads": 8, "num_attention_heads": 8, "head_dim": 128}
    tokens = 32_768 - 16  # of `size` bytes: a cache of 268 MB, or of 75 MB
    model = load_model(write_checkpoint(tmp_path, **wide, max_position_embeddings=2 * tokens), "fp32")
    empty = mx.get_active_memory()
    cache = model.make_cache(kv_bits=kv_bits)
    fill(cache, 0, mx.zeros((2, 1, 8, tokens, 128)))
    cache.end = tokens
    monkeypatch.setattr(model, "make_cache", lambda *_: cache)
    monkeypatch.setattr(batch, "decode_step", make_step)
    monkeypatch.setattr(kernels, "replay_after", lambda: replay_after)
    steps = decode(model, [5] * (tokens + 1), GREEDY, max_tokens=6)
    next(steps)
    mx.clear_cache()
    mx.reset_peak_memory()
    assert len(list(steps)) == 5
    assert cache.nbytes == pytest.approx(32_768 * size, rel=0.01)
    assert mx.get_peak_memory() - empty < 1.05 * cache.nbytes  # measured 0.004, and 0.04 of 8 bits: the scores
