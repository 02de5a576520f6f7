"""However a sequence is split into passes, the cache gives the logits of the whole."""

import mlx.core as mx
import numpy as np
import pytest
from arrays import as_numpy
from checkpoints import TINY, YARN, write_checkpoint

from mlx_qwen3.model.buffers import STEP
from mlx_qwen3.model.cache import KVCache
from mlx_qwen3.model.load import load_model

TOLERANCE = 2e-5  # measured 5e-6: attention over one query adds up in another order than over many


@pytest.fixture(scope="module")
def model(tiny):
    return load_model(tiny, "fp32")


def feed(model, ids, splits, cache):
    """Logits (B, L, V) of ids (B, L), given in pieces of these lengths."""
    pieces = np.split(ids, np.cumsum(splits)[:-1], axis=1)
    return np.concatenate([as_numpy(model(mx.array(piece), cache)) for piece in pieces], axis=1)


@pytest.mark.parametrize("splits", [[37], [1] * 37, [5, 7, 25], [36, 1], [1, 36], [12, 1, 1, 23]], ids=str)
@pytest.mark.parametrize("scaling", [None, YARN], ids=["default", "yarn"])
def test_every_split_gives_the_logits_of_the_whole(splits, scaling, ids, tmp_path):
    model = load_model(write_checkpoint(tmp_path / "model", rope_scaling=scaling), "fp32")
    whole = as_numpy(model(mx.array(ids)))
    cache = model.make_cache(batch=2)
    assert np.abs(feed(model, ids, splits, cache) - whole).max() < TOLERANCE
    assert cache.end == 37


@pytest.mark.parametrize("cut", [1, 10, 37])
def test_trim_and_continue_equals_fresh(model, ids, cut):
    cache = model.make_cache(batch=2)
    feed(model, ids, [37], cache)
    cache.trim(cut)
    other = (ids[:, :cut] + 1) % TINY["vocab_size"]
    continued = feed(model, other, [cut], cache)
    fresh = as_numpy(model(mx.array(np.concatenate([ids[:, : 37 - cut], other], axis=1))))
    assert np.abs(continued - fresh[:, 37 - cut :]).max() < TOLERANCE


@pytest.mark.parametrize("length", [38, -1])
def test_trim_keeps_to_what_is_there(model, ids, length):
    cache = model.make_cache(batch=2)
    feed(model, ids, [37], cache)
    with pytest.raises(ValueError, match=f"cannot trim {length} of 37 tokens, 0 of them padding"):
        cache.trim(length)


def test_growing_past_the_buffer_loses_nothing(model):
    length = 2 * STEP + 9
    ids = np.random.default_rng(2).integers(0, TINY["vocab_size"], (1, length))
    whole = as_numpy(model(mx.array(ids)))
    splits = [STEP - 1, 1, 1, STEP, length - 2 * STEP - 1]
    assert np.abs(feed(model, ids, splits, model.make_cache()) - whole).max() < TOLERANCE


@pytest.mark.parametrize("splits", [[37], [5, 31, 1], [30] + [1] * 7], ids=str)
def test_left_padded_rows_equal_the_rows_alone(model, ids, splits):
    padding = [0, 12]
    rows = ids.copy()
    rows[1, :12] = 77  # what stands in the padding must not matter
    together = feed(model, rows, splits, model.make_cache(2, padding))
    for row, pad in enumerate(padding):
        alone = as_numpy(model(mx.array(rows[row : row + 1, pad:])))
        assert np.abs(together[row, pad:] - alone[0]).max() < TOLERANCE


def test_every_query_sees_a_key():
    """Otherwise a softmax over no keys could be NaN, which would reach every later layer."""
    assert np.array(KVCache(2, [36, 3]).mask(37)).any(axis=-1).all()


def test_trim_and_continue_with_padding(model, ids):
    cache = model.make_cache(2, [0, 12])
    feed(model, ids, [37], cache)
    cache.trim(20)
    again = feed(model, ids[:, 17:], [20], cache)
    assert np.abs(again[1] - as_numpy(model(mx.array(ids[1:, 12:])))[0, 5:]).max() < TOLERANCE


def test_trim_does_not_reach_into_the_padding(model, ids):
    cache = model.make_cache(2, [0, 12])
    feed(model, ids, [37], cache)
    with pytest.raises(ValueError, match="cannot trim 26 of 37 tokens, 12 of them padding"):
        cache.trim(26)


def test_a_pass_writes_in_place():
    """Otherwise every token copies the cache, which needs twice its memory."""
    steps, cache = 64, KVCache()
    before = mx.get_active_memory()
    mx.eval(filled(cache, 4096 * 8 - steps))
    mx.clear_cache()
    mx.reset_peak_memory()
    for _ in range(steps):
        mx.eval(filled(cache, 1))
    size = sum(array.nbytes for array in cache.buffers)
    assert mx.get_peak_memory() - before < 1.2 * size  # the scores of 4 heads are 0.05 of it, and are there twice


def filled(cache, length):
    """Attention of a pass of one layer that writes ones."""
    view = cache.view(length)
    out = view.attend(0, mx.ones((1, 4, 1, 20)), mx.ones((2, 1, 2, length, 20)), 1.0)
    cache.commit(view.buffers, length)
    return out


@pytest.mark.parametrize("padding", [[3], [0, -3], []])
def test_padding_is_a_number_for_every_row(padding):
    with pytest.raises(ValueError, match="expected 2 numbers of tokens, one for each row of the batch"):
        KVCache(batch=2, padding=padding)


def test_a_row_that_joins_sees_nothing_of_the_one_before_it():
    """NaN in the padding would reach it: a mask makes its weight 0, and 0 times NaN is NaN."""
    batch, row = KVCache(2), KVCache()
    batch.buffers, batch.end = [mx.full((2, 2, 1, STEP, 4), mx.nan)], 10
    row.buffers, row.end = [mx.ones((2, 1, 1, STEP, 4))], 3
    batch.admit(1, row)
    slots = as_numpy(batch.buffers[0])[:, 1, 0, :, 0]
    np.testing.assert_array_equal(slots[:, :10], [[0.0] * 7 + [1.0] * 3] * 2)
    assert np.isnan(as_numpy(batch.buffers[0])[:, 0]).all(), "the other row is its own"


def test_what_is_erased_is_gone():
    cache = KVCache()
    cache.buffers, cache.end = [mx.full((2, 1, 1, STEP, 4), mx.nan)], 10
    cache.erase(4)
    assert cache.end == 6
    assert not np.isnan(as_numpy(cache.buffers[0])[:, :, :, 6:10]).any()


@pytest.mark.parametrize(("at_once", "evaluations"), [(1, 2), (1 << 30, 1)], ids=["layer by layer", "together"])
def test_small_buffers_are_moved_together(model, ids, at_once, evaluations, monkeypatch):
    cache = model.make_cache()
    feed(model, ids[:1], [37], cache)
    assert len(cache.buffers) == 2
    expected = [as_numpy(buffer[:, :, :, :37]) for buffer in cache.buffers]
    evaluated = []
    monkeypatch.setattr("mlx_qwen3.model.cache.AT_ONCE", at_once)
    monkeypatch.setattr(mx, "eval", lambda *arrays, do=mx.eval: (evaluated.append(arrays), do(*arrays)))
    cache.resize(2, [0])
    assert len(evaluated) == evaluations
    assert [buffer.shape[1] for buffer in cache.buffers] == [2, 2]
    assert all(
        np.array_equal(as_numpy(buffer[:, :1, :, :37]), old)
        for buffer, old in zip(cache.buffers, expected, strict=True)
    )


@pytest.mark.parametrize("write_to_copy", [True, False])
def test_a_copy_and_its_source_do_not_change_each_other(model, ids, write_to_copy):
    cache = model.make_cache()
    whole = feed(model, ids[:1], [37], cache)
    copy = cache.copy(30)
    assert (copy.end, copy.capacity) == (30, 30)
    changed, kept = (copy, cache) if write_to_copy else (cache, copy)
    changed.trim(changed.end - 10)
    feed(model, np.flip(ids[:1], 1).copy(), [27], changed)  # into slots that both see
    kept.trim(kept.end - 25)
    assert np.abs(feed(model, ids[:1, 25:], [12], kept) - whole[:, 25:]).max() < TOLERANCE
