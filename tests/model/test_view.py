"""What a forward pass sees of a cache."""

import mlx.core as mx
import numpy as np
import pytest
from arrays import as_numpy

from mlx_qwen3.model.load import load_model
from mlx_qwen3.model.view import ReplayView

TOLERANCE = 2e-5  # measured 5e-6: attention over one query adds up in another order than over many


@pytest.fixture(scope="module")
def model(tiny):
    return load_model(tiny, "fp32")


@pytest.mark.parametrize("padding", [[0, 0], [0, 12]], ids=["equal", "padded"])
def test_a_replayed_view_gives_what_an_eager_one_gives(model, ids, padding):
    caches = [model.make_cache(2, padding) for _ in range(2)]
    for cache in caches:
        for piece in np.split(ids[:, :30], [25], axis=1):
            model(mx.array(piece), cache)
        cache.trim(5)  # what stands after the end must not matter
    new = mx.array(ids[:, 25:26])
    view = ReplayView(*caches[1].arrays())
    eager, replayed = model.hidden(new, caches[0]), model.forward(new, view)
    caches[1].commit(view.buffers, 1)
    assert caches[0].end == caches[1].end == 26
    assert np.abs(as_numpy(eager) - as_numpy(replayed)).max() < TOLERANCE
    end = caches[0].end
    for a, b in zip(caches[0].buffers, caches[1].buffers, strict=True):
        assert mx.allclose(a[:, :, :, :end], b[:, :, :, :end], atol=TOLERANCE)


def test_a_pass_without_a_cache_is_one_with_an_empty_cache(model, ids):
    assert mx.array_equal(model(mx.array(ids)), model(mx.array(ids), model.make_cache(2)))


def test_a_step_attends_to_its_window_alone(model, ids):
    """The rest of the buffer may hold anything."""
    cache = model.make_cache()
    cache.limit = 1000
    model(mx.array(ids[:1, :30]), cache)
    end, start, slots, *buffers = cache.arrays()
    assert len(slots) < cache.capacity
    for buffer in buffers:
        buffer[:, :, :, len(slots) :] = mx.nan
    view = ReplayView(end, start, slots, *buffers)
    found = model.logits(model.forward(mx.array(ids[:1, 30:31]), view))
    whole = model(mx.array(ids[:1, :31]))[:, -1:]
    assert np.abs(as_numpy(found) - as_numpy(whole)).max() < TOLERANCE
    assert [buffer.shape for buffer in view.buffers] == [buffer.shape for buffer in buffers]
