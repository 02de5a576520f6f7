"""The decode step gives the logits of a pass over one token, eager and compiled, and copies no cache."""

import gc
import runpy
import weakref
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from pathlib import Path
from threading import Barrier
from types import SimpleNamespace

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from arrays import as_numpy
from checkpoints import TINY, TINY_MOE, YARN, write_checkpoint

from mlx_qwen3.conversion.convert import convert
from mlx_qwen3.engine import runner
from mlx_qwen3.engine.runner import DecodeStep, decode_step, prefill
from mlx_qwen3.model import kernels
from mlx_qwen3.model.buffers import STEP
from mlx_qwen3.model.cache import KVCache
from mlx_qwen3.model.load import load_model
from mlx_qwen3.model.view import ReplayView

# As many experts as 30B-A3B has: four rows do not pay to sort them
EXPERTS = {
    **TINY_MOE,
    "num_experts": 128,
    "num_experts_per_tok": 8,
    "moe_intermediate_size": 32,
    "mlp_only_layers": [],
}
TOLERANCE = 2e-5  # as between one pass and many in test_cache.py
SHAPES = {
    "default": {},
    "yarn": {"rope_scaling": YARN},
    "untied": {"tie_word_embeddings": False},
    "one query head per key head": {"num_attention_heads": 2},
    "experts": TINY_MOE,
    "odd sizes": {"num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 10, "hidden_size": 36},
}


@pytest.fixture(params=[0, 10**9], ids=["compiled", "eager"])
def replay(request, monkeypatch):
    monkeypatch.setattr(kernels, "replay_after", lambda: request.param)


def difference(model, prompt: np.ndarray, padding: list[int], tokens: np.ndarray, trim: int = 0) -> float:
    """Largest difference of logits between the step and the plain path, over tokens (B, N) after a prompt (B, L)."""
    caches = [model.make_cache(len(prompt), padding) for _ in range(2)]
    for cache in caches:
        mx.eval(prefill(model, mx.array(prompt), cache))
        cache.trim(trim)
    worst, step = 0.0, decode_step(model)
    for column in mx.array(tokens.T):
        plain = model(column[:, None], caches[0])[:, 0]
        worst = max(worst, float(mx.abs(step(column, caches[1]) - plain).max()))
    assert caches[0].end == caches[1].end
    return worst


@pytest.mark.parametrize("changes", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("padding", [[0, 0], [0, 12]], ids=["equal", "padded"])
def test_logits_of_the_plain_path(changes, padding, ids, tmp_path, replay):
    model = load_model(write_checkpoint(tmp_path / "model", **changes), "fp32")
    assert difference(model, ids[:, :25], padding, ids[:, 25:]) < TOLERANCE
    assert difference(model, ids[:, :25], padding, ids[:, 30:], trim=7) < TOLERANCE


@pytest.mark.parametrize(
    "options", [{"quantize": "affine4g32"}, {"quantize": "mxfp4"}, {"quantize": "mixed", "bits": 7}]
)
def test_logits_of_the_plain_path_quantized(options, tmp_path, ids, replay):
    source = write_checkpoint(tmp_path / "source", hidden_size=64, intermediate_size=96, head_dim=32)
    convert(source, tmp_path / "packed", divergence=False, **options)
    model = load_model(tmp_path / "packed", "fp32")
    assert difference(model, ids[:, :25], [0, 0], ids[:, 25:]) < TOLERANCE


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_no_further_from_float32_than_the_plain_path(dtype, tiny, ids, replay):
    exact, model = load_model(tiny, "fp32"), load_model(tiny, dtype)
    errors = {"plain": 0.0, "step": 0.0}
    caches = [m.make_cache(2) for m in (exact, model, model)]
    for m, cache in zip((exact, model, model), caches, strict=True):
        mx.eval(prefill(m, mx.array(ids[:, :25]), cache))
    for column in mx.array(ids[:, 25:].T):
        right = exact(column[:, None], caches[0])[:, 0]
        for name, logits in {
            "plain": model(column[:, None], caches[1])[:, 0],
            "step": decode_step(model)(column, caches[2]),
        }.items():
            assert logits.dtype == model.norm.weight.dtype
            errors[name] += float(mx.square(logits.astype(mx.float32) - right).sum())
    assert errors["step"] <= 1.3 * errors["plain"]


def test_a_cache_that_grows(tiny, replay):
    model = load_model(tiny, "fp32")
    ids = np.random.default_rng(3).integers(0, TINY["vocab_size"], (1, STEP + 20))
    assert difference(model, ids[:, : STEP - 5], [0], ids[:, STEP - 5 :]) < TOLERANCE


def test_eager_and_compiled_within_one_reply(tiny, ids, monkeypatch):
    monkeypatch.setattr(kernels, "replay_after", lambda: 5)
    assert difference(load_model(tiny, "fp32"), ids[:, :20], [0, 0], ids[:, 20:]) < TOLERANCE


def planted(**wrong):
    """A ReplayView that starts from other arrays."""

    class Planted(ReplayView):
        def __init__(self, *arrays, **options):
            super().__init__(*arrays, **options)
            for name, change in wrong.items():
                setattr(self, name, change(getattr(self, name)))

    return Planted


PLANTED = {
    "positions": planted(positions=lambda positions: positions + 1),
    "the other row's positions": planted(positions=lambda positions: positions[::-1]),
    "mask": planted(_mask=mx.ones_like),
    "mask of the other row": planted(_mask=lambda mask: mask[::-1]),
    "slot": planted(_end=lambda end: end - 1),
}


@pytest.mark.parametrize("wrong", PLANTED.values(), ids=PLANTED.keys())
def test_the_comparison_sees_mistakes(wrong, tiny, ids, monkeypatch):
    """Of the replayed view; tests/model/test_mutations.py plants those of the pass itself."""
    monkeypatch.setattr(runner, "ReplayView", wrong)
    assert difference(load_model(tiny, "fp32"), ids[:, :25], [0, 12], ids[:, 25:]) > 100 * TOLERANCE


def test_rows_of_a_large_model_over_packed_keys(ids, tmp_path, monkeypatch):
    """Their step is replayed, and no part of it is computed while its graph is built."""
    monkeypatch.setattr(kernels, "replay_after", lambda: 0)
    monkeypatch.setattr(kernels, "LARGE", 1)
    model = load_model(write_checkpoint(tmp_path, head_dim=32), "fp32")
    caches = [model.make_cache(len(ids), kv_bits=8) for _ in range(2)]
    for cache in caches:
        mx.eval(prefill(model, mx.array(ids), cache))
    token = mx.array(ids[:, 0])
    stepped, plain = decode_step(model)(token, caches[0]), model(token[:, None], caches[1])[:, 0]
    assert np.abs(as_numpy(stepped) - as_numpy(plain)).max() < 1e-3


def test_one_step_serves_all_replies_until_weights_are_replaced(tiny, ids, replay):
    model = load_model(tiny, "fp32")
    step = decode_step(model)
    assert decode_step(model) is step
    difference(model, ids[:, :25], [0, 0], ids[:, 25:])
    assert decode_step(model) is step
    model.layers[1].mlp.down_proj.weight = 2 * model.layers[1].mlp.down_proj.weight
    assert decode_step(model) is not step
    assert difference(model, ids[:, :25], [0, 0], ids[:, 25:]) < TOLERANCE


def test_a_model_that_is_dropped_is_freed(tiny, ids, replay):
    difference(load_model(tiny, "fp32"), ids[:, :25], [0, 0], ids[:, 25:])  # what MLX keeps for ever is there now
    gc.collect()
    before = mx.get_active_memory()
    model = load_model(tiny, "fp32")
    difference(model, ids[:, :25], [0, 0], ids[:, 25:])
    attention = weakref.ref(model.layers[0].self_attn)
    assert mx.get_active_memory() > before
    del model
    gc.collect()
    assert attention() is None
    assert mx.get_active_memory() <= before


def test_a_copy_of_a_model_has_a_step_of_its_own(tiny, ids, replay):
    model = load_model(tiny, "fp32")
    step = decode_step(model)
    other = deepcopy(model)
    other.layers[0].mlp.down_proj.weight = 2 * other.layers[0].mlp.down_proj.weight
    assert decode_step(other) is not step
    assert difference(other, ids[:, :25], [0, 0], ids[:, 25:]) < TOLERANCE


def test_two_threads_run_two_models(tmp_path, replay):
    """Layer by layer in turn: the listener of each waits for the other, and sees the steps of its own model only."""
    models = [load_model(write_checkpoint(tmp_path / f"{hidden}", hidden_size=hidden), "fp32") for hidden in (48, 52)]
    prompt, barrier = mx.array([[5, 9, 11]]), Barrier(2, timeout=60)

    def run(model, meet):
        seen = []

        def listener(name, *arrays):
            if name == "input":
                meet()
            seen.append((name, *(array.shape for array in arrays)))

        cache = model.make_cache()
        logits = [model(prompt, cache, listener)[:, -1]]
        for watch in (listener, None, None):
            logits.append(decode_step(model)(mx.argmax(logits[-1], axis=-1), cache, watch))
        return np.stack([as_numpy(x) for x in logits]), seen

    alone = [run(model, lambda: None) for model in models]
    with ThreadPoolExecutor(2) as threads:
        together = list(threads.map(run, models, [barrier.wait] * 2))
    for (logits, seen), (expected, steps) in zip(together, alone, strict=True):
        np.testing.assert_array_equal(logits, expected)
        assert seen == steps


def test_a_step_writes_in_place(tmp_path, replay):
    """Otherwise every token copies the cache: its memory would be there twice."""
    shape = {"num_hidden_layers": 2, "num_key_value_heads": 8, "num_attention_heads": 8, "head_dim": 64}
    model, tokens = load_model(write_checkpoint(tmp_path / "model", **shape), "fp32"), 20_000
    mx.clear_cache()
    before = mx.get_active_memory()
    cache = KVCache()
    cache.buffers = [mx.zeros((2, 1, 8, tokens, 64)) for _ in range(2)]
    mx.eval(cache.buffers)
    cache.end = tokens - 20
    step, token = DecodeStep(model), mx.array([5])
    token = mx.argmax(step(token, cache), axis=-1)
    mx.eval(token)
    mx.clear_cache()
    mx.reset_peak_memory()
    for _ in range(10):
        token = mx.argmax(step(token, cache), axis=-1)
        mx.eval(token)
    size = sum(buffer.nbytes for buffer in cache.buffers)
    assert mx.get_peak_memory() - before < 1.1 * size


def test_tokens_are_those_of_the_plain_path(tiny, ids, replay):
    model = load_model(tiny, "fp32")
    caches = [model.make_cache(2) for _ in range(2)]
    plain, stepped = (mx.argmax(prefill(model, mx.array(ids), cache), axis=-1) for cache in caches)
    for _ in range(40):
        plain = mx.argmax(model(plain[:, None], caches[0])[:, 0], axis=-1)
        stepped = mx.argmax(decode_step(model)(stepped, caches[1]), axis=-1)
        assert np.array_equal(as_numpy(plain), as_numpy(stepped))


@pytest.fixture
def counting():
    return SimpleNamespace(**runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "nodes.py")))


@pytest.mark.parametrize("quantize", [None, "affine4"])
def test_metal_copies_no_input_of_a_kernel(quantize, counting, tmp_path, monkeypatch):
    """By the strides of the inputs, and the rules of MLX's kernels. mlx-lm has no copies either."""
    folder = write_checkpoint(tmp_path / "model", **{"hidden_size": 64, "intermediate_size": 128, "head_dim": 32})
    if quantize:
        convert(folder, tmp_path / "packed", divergence=False, quantize=quantize)
        folder = tmp_path / "packed"
    monkeypatch.setattr(*counting.GPU)
    found = counting.our_copies(str(folder))
    assert found == {name: Counter() for name in ["prompt", *counting.STEPS]}


def test_a_copy_would_be_found(counting):
    fused = mx.ones((1, 5, 8, 16))
    queries = fused[:, :, :6]
    cache = mx.ones((2, 3, 16, 16))
    graphs = {
        "rms_norm": lambda: mx.fast.rms_norm(queries, None, 1e-5),
        "rope": lambda: mx.fast.rope(queries, 16, traditional=False, base=1e4, scale=1.0, offset=0),
        "keys and values": lambda: mx.fast.scaled_dot_product_attention(
            cache, mx.ones((2, 6, 16, 16))[:, :3], mx.ones((2, 3, 16, 16)), scale=1.0
        ),
        "product": lambda: nn.Linear(16, 4)(fused[0, :, 0]),
    }
    assert {name: counting.copies(build) for name, build in graphs.items()} == {name: {name: 1} for name in graphs}


@pytest.mark.parametrize(
    ("shape", "options", "kv_bits", "nodes", "prompt"),
    [
        (TINY, {}, None, 10, 11),
        (TINY, {"quantize": "affine4"}, None, 12, 13),
        (TINY, {}, 8, 16, 23),
        (EXPERTS, {}, None, 15, 16),
        (EXPERTS, {"quantize": "affine4"}, None, 16, 17),
    ],
    ids=["float", "quantized", "quantized cache", "experts", "quantized experts"],
)
def test_nodes_of_a_layer(shape, options, kv_bits, nodes, prompt, counting, tmp_path, monkeypatch):
    """As Metal dispatches them; the script prints mlx-lm's 19 and 21 beside them, and 32 and 34 of experts."""
    sizes = {"num_hidden_layers": 12, "hidden_size": 64, "intermediate_size": 128, "head_dim": 32}
    folder = write_checkpoint(tmp_path / "model", {**shape, **sizes})
    if options:
        convert(folder, tmp_path / "packed", divergence=False, **options)
        folder = tmp_path / "packed"
    for standin in counting.STANDINS:
        monkeypatch.setattr(*standin)
    graphs, layers = counting.ours(str(folder), kv_bits)
    found = {name: counting.per_layer(counting.count(arrays), layers) for name, arrays in graphs.items()}
    steps = ("decode step", "decode step of 4 rows", "decode step of 4 rows, padded")
    assert found == {"prompt": prompt, **dict.fromkeys(steps, nodes)}  # a prompt makes its buffers
