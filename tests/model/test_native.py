"""A prompt's operations in C++, against NumPy in float64, and whole passes with them against passes without."""

import threading

import mlx.core as mx
import numpy as np
import pytest
from arrays import as_numpy, relative
from checkpoints import write_checkpoint
from oracle import attention_over

from mlx_qwen3 import blas
from mlx_qwen3.conversion.convert import convert
from mlx_qwen3.model import kernels, native
from mlx_qwen3.model.load import load_model

pytestmark = pytest.mark.skipif(
    kernels.on_gpu() or blas.gemm() is None or not kernels.can_compile(), reason="needs a fast BLAS and g++"
)


@pytest.fixture
def at_once():
    with native.at_once(True):
        yield


def normal(*shape, seed=0, scale=1.0):
    return scale * mx.random.normal(shape, key=mx.random.key(seed))


def wide(x):
    return np.array(x, np.float64)


# --- One operation


@pytest.mark.parametrize(("tokens", "size"), [(1, 1), (5, 33), (64, 1024)])
def test_norm(at_once, tokens, size):
    x, weight = normal(tokens, size, scale=3), normal(size, seed=1)
    expected = wide(x) / np.sqrt((wide(x) ** 2).mean(axis=1, keepdims=True) + 1e-6) * wide(weight)
    assert relative(kernels.norm(x, weight, 1e-6), expected) < 3e-7


@pytest.mark.parametrize("shape", [(1, 70, 4, 2, 20), (2, 9, 3, 1, 6), (3, 1, 2, 2, 128)], ids=str)
def test_norm_and_rotation(shape):
    """Also of the first half of a table of rotations, as of the first rows of a larger one."""
    B, L, H, K, D = shape
    qkv, weight = normal(B * L, (H + 2 * K) * D), normal(H + K, 1, D, seed=1)
    cos, sin = (normal(B, 1, 2 * L, D, seed=seed)[:, :, :L] for seed in (2, 3))
    expected = kernels.norm_rope(qkv, weight, cos, sin, 1e-6)
    with native.at_once(True):
        found = kernels.norm_rope(qkv, weight, cos, sin, 1e-6)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape
        assert relative(ours, as_numpy(theirs)) < 1e-6


# B, H, K, L, S, D: parts of a tile, several tiles of queries and of keys, one query
SHAPES = [(1, 4, 2, 128, 128, 16), (1, 4, 4, 70, 131, 20), (2, 6, 2, 65, 65, 8), (1, 4, 1, 20, 1300, 12)]
SHAPES += [(1, 2, 1, 1, 513, 128), (2, 2, 2, 600, 1112, 4)]


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_attention(at_once, shape, causal):
    """Of the last queries, over the filled part of a buffer."""
    B, H, K, L, S, D = shape
    q, buffer = normal(B, H, L + 3, D)[:, :, 3:], normal(2, B, K, S + 5, D, seed=1)
    kv = buffer[:, :, :, :S]
    found = kernels.attend(q, kv, 0.7, "causal" if causal else None)
    assert found.shape == q.shape
    assert relative(found, attention_over(as_numpy(q), as_numpy(kv), 0.7, causal)) < 1e-6


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_attention_with_a_mask(at_once, shape):
    """Of padded rows: the first tile of keys may be hidden, and each query sees one key at least."""
    B, H, K, L, S, D = shape
    q, kv = normal(B, H, L, D), normal(2, B, K, S, D, seed=1)
    mask = mx.random.uniform(shape=(B, 1, L, S), key=mx.random.key(2)) < 0.5
    mask = mask & (mx.arange(S) >= mx.array([S - 20, 2][:B])[:, None, None, None]) | (mx.arange(S) == S - 1)
    expected = mx.fast.scaled_dot_product_attention(q, kv[0], kv[1], scale=0.7, mask=mask)
    assert relative(kernels.attend(q, kv, 0.7, mask), as_numpy(expected)) < 1e-6


def test_attention_to_few_keys_among_many(at_once):
    """Scores far apart: the largest of a later tile takes all the weight, or an earlier one keeps it."""
    q, kv = normal(1, 2, 64, 8), normal(2, 1, 2, 1100, 8, seed=1)
    kv[0, :, :, 3] *= 40
    kv[0, :, :, 1030] *= 60
    assert relative(kernels.attend(q, kv, 1.0, "causal"), attention_over(as_numpy(q), as_numpy(kv), 1.0, True)) < 1e-6


def test_numbers_of_another_layout(at_once):
    """Queries whose numbers lie apart, and keys of a group of others, are copied."""
    q, kv = normal(1, 4, 8, 65).transpose(0, 1, 3, 2), normal(2, 1, 2, 8, 65, seed=1).transpose(0, 1, 2, 4, 3)
    assert relative(kernels.attend(q, kv, 1.0, "causal"), attention_over(as_numpy(q), as_numpy(kv), 1.0, True)) < 1e-6
    x, weight = normal(40, 70).T, normal(30, 40, seed=1)
    assert relative(kernels.product(x, weight, weight.T), wide(x) @ wide(weight).T) < 1e-6


def test_swiglu(at_once):
    gate = np.concatenate([np.linspace(-90, 90, 8001), [-1e30, -128, -87.4, 0, 88, 1e30]]).astype(np.float32)
    up = np.linspace(-3, 3, len(gate)).astype(np.float32)
    with np.errstate(over="ignore"):
        expected = gate / (1 + np.exp(-wide(gate))) * up
    found = kernels.swiglu(mx.array(np.concatenate([gate, up]).tolist())[None])[0]
    np.testing.assert_allclose(found, expected, rtol=4e-6, atol=1e-30)


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("tokens", [1, 2, 7, 8, 13, 16, 17, 70])
def test_product(at_once, tokens, residual):
    """Few rows have products of our own: with whole groups of rows, outputs and inputs, and parts of one."""
    for outputs, inputs in ((30, 64), (31, 70), (2, 5)):
        x, weight, rest = normal(tokens, inputs), normal(outputs, inputs, seed=1), normal(tokens, outputs, seed=2)
        found = kernels.add_product(rest, x, weight, weight.T) if residual else kernels.product(x, weight, weight.T)
        assert relative(found, wide(x) @ wide(weight).T + residual * wide(rest)) < 1e-6


def test_a_product_of_rows_of_tokens(at_once):
    x, weight = normal(3, 5, 20), normal(7, 20, seed=1)
    assert relative(kernels.product(x, weight, weight.T), wide(x) @ wide(weight).T) < 1e-6


def test_a_large_result(at_once):
    """Its memory is made in another way."""
    x, weight = normal(native.LARGE // 512, 2), normal(600, 2, seed=1)
    assert relative(kernels.product(x, weight, weight.T), wide(x) @ wide(weight).T) < 1e-6


def test_what_is_not_a_number_stays_so(at_once):
    nan = mx.full((64, 8), mx.nan)
    for found in (
        kernels.norm(nan, mx.ones(8), 1e-6),
        kernels.swiglu(nan),
        kernels.product(nan, mx.ones((3, 8)), mx.ones((8, 3))),
        kernels.attend(nan[None, None], mx.ones((2, 1, 1, 64, 8)), 1.0, "causal"),
        kernels.attend(mx.ones((1, 1, 64, 8)), mx.full((2, 1, 1, 64, 8), mx.nan), 1.0, "causal"),
    ):
        assert mx.all(mx.isnan(found))


# --- When


def test_only_in_the_block_of_this_thread_and_of_float32():
    x, seen = mx.ones((2, 2)), []
    assert not native.computes(x)
    with native.at_once(True):
        assert native.computes(x)
        assert not native.computes(x, x.astype(mx.bfloat16))
        thread = threading.Thread(target=lambda: seen.append(native.computes(x)))
        thread.start()
        thread.join()
        with native.at_once(False):
            assert native.computes(x)
    assert (seen, native.computes(x)) == ([False], False)


@pytest.mark.parametrize(
    ("large", "passes"),
    [
        (False, {(1, 64): True, (1, 63): False, (4, 16): True, (100, 1): False}),  # rows and tokens; a step is compiled
        (True, {(1, 2): True, (1, 1): False, (2, 1): True}),
    ],
)
def test_only_passes_that_gain(folder, large, passes, monkeypatch):
    monkeypatch.setattr(kernels, "LARGE", 1 << 10 if large else 1 << 20)
    config = load_model(folder, "fp32").config
    assert {of: kernels.computes_at_once(config, *of, mx.float32) for of in passes} == passes
    assert not kernels.computes_at_once(config, 1, 64, mx.bfloat16)
    monkeypatch.setattr(kernels, "can_compile", lambda: False)
    assert not kernels.computes_at_once(config, 1, 64, mx.float32)
    monkeypatch.setattr(kernels, "can_compile", lambda: True)
    monkeypatch.setattr(blas, "gemm", lambda: None)
    assert not kernels.computes_at_once(config, 1, 64, mx.float32)


def test_no_fast_blas_is_a_reason(monkeypatch):
    monkeypatch.setattr(blas, "gemm", lambda: None)
    with pytest.raises(OSError, match="no fast BLAS"):
        native.functions.__wrapped__()


# --- Whole passes


def logits(model, ids, compiled, monkeypatch, bits=None, padding=None, watch=None):
    """Of a prompt in two passes, and of the token after it, by native.py or not; and the operations called."""
    with monkeypatch.context() as patch:
        called, call = set(), native._call
        patch.setattr(kernels, "LARGE", 1)
        patch.setattr(kernels, "can_compile", lambda: compiled)
        patch.setattr(native, "_call", lambda name, *arrays: called.add(name) or call(name, *arrays))
        cache = model.make_cache(len(ids), padding, bits)
        model.ends(mx.array(ids[:, :17]), cache, 0)
        last = [model(mx.array(some), cache, watch) for some in (ids[:, 17:], ids[:, :1])]
        return np.concatenate([as_numpy(each) for each in last], axis=1), called


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("native"), head_dim=32)  # can be quantized


ALL = set(native.ARGUMENTS)


@pytest.mark.parametrize(
    ("options", "operations"),
    [
        ({}, ALL),
        ({"bits": 8}, ALL),
        ({"padding": [0, 5]}, ALL),
        ({"watch": lambda *_: None}, ALL),
    ],
    ids=["plain", "8 bits", "padded", "watched"],
)
def test_a_pass_gives_what_it_gives_without(folder, ids, monkeypatch, options, operations):
    model = load_model(folder, "fp32")
    (found, called), (expected, none) = (logits(model, ids, way, monkeypatch, **options) for way in (True, False))
    assert (called, none) == (operations, set())
    assert relative(found, expected) < (1e-3 if "bits" in options else 3e-6)


def test_experts_and_packed_weights(folder, tiny_moe, ids, monkeypatch, tmp_path):
    convert(folder, tmp_path / "packed", quantize="affine8g32", divergence=False)
    packed = load_model(tmp_path / "packed", "fp32")
    for model in (load_model(tiny_moe, "fp32"), packed):
        (found, called), (expected, _) = (logits(model, ids, way, monkeypatch) for way in (True, False))
        assert called >= ALL - {"product"}
        assert relative(found, expected) < 3e-6
