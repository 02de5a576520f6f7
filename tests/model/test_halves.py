"""Passes with two halves of the tokens side by side, against whole passes, which are compared with transformers."""

import mlx.core as mx
import numpy as np
import pytest
from arrays import as_numpy
from checkpoints import write_checkpoint

from mlx_qwen3 import blas
from mlx_qwen3.model import halves, kernels
from mlx_qwen3.model.load import load_model

pytestmark = pytest.mark.skipif(kernels.on_gpu(), reason="streams of a CPU")

TOLERANCE = 2e-5  # measured 4e-6: products of fewer rows add up in another order


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return load_model(write_checkpoint(tmp_path_factory.mktemp("halves"), head_dim=32), "fp32")  # can be quantized


@pytest.fixture
def halved(monkeypatch):
    """Every pass that may be halved is, also short ones and with one thread; a list of their lengths."""
    lengths, states = [], halves.states
    monkeypatch.setattr(halves, "LEAST_TOKENS", 2)
    monkeypatch.setattr(blas, "threads", lambda: 2)
    monkeypatch.setattr(halves, "states", lambda *a: lengths.append(len(a[1])) or states(*a))
    return lengths


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("bits", [None, 8])
@pytest.mark.parametrize("keep", [0, 1, 30])  # 30 is more than the second half has
def test_halves_give_what_a_whole_pass_gives(model, ids, halved, monkeypatch, keep, bits, compiled):
    monkeypatch.setattr(kernels, "many", lambda *a: compiled)
    cache, whole = (model.make_cache(kv_bits=bits) for _ in range(2))
    expected = model.hidden(mx.array(ids[:1]), whole)[:, 37 - keep :]
    model.ends(mx.array(ids[:1, :4]), cache, 0)  # a prompt in two passes, of 4 and 33 tokens
    found = model.ends(mx.array(ids[:1, 4:]), cache, keep)
    assert halved == [4, 33]
    assert found.shape == expected.shape == (1, keep, 48)
    np.testing.assert_allclose(as_numpy(found), as_numpy(expected), atol=TOLERANCE)
    following = [as_numpy(model(mx.array(ids[:1, :1]), each)) for each in (cache, whole)]
    np.testing.assert_allclose(*following, atol=TOLERANCE * (1 if bits is None else 100))


def test_only_long_prompts_of_one_row_are_halved(model, tiny_moe, ids, halved, monkeypatch):
    experts = load_model(tiny_moe, "fp32")
    for one, tokens in ((experts, ids[:1]), (model, ids), (model, ids[:1, :1])):
        one.ends(mx.array(tokens), one.make_cache(len(tokens)), 1)
    monkeypatch.setattr(blas, "threads", lambda: 1)
    model.ends(mx.array(ids[:1]), model.make_cache(), 1)
    assert halved == []


def test_a_failing_pass_gives_the_threads_back(model, ids, halved, monkeypatch):
    def fail(*_):
        raise MemoryError

    before = blas.threads_for
    count = []
    monkeypatch.setattr(blas, "threads_for", lambda products: count.append(products) or before(products))
    monkeypatch.setattr(kernels, "attend", fail)
    with pytest.raises(MemoryError):
        model.ends(mx.array(ids[:1]), model.make_cache(), 1)
    assert count == [2]
    assert not blas._shared
