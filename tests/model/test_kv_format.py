"""Quantized keys and values: what is stored, and attention over it in every view of the cache."""

import mlx.core as mx
import numpy as np
import pytest
from arrays import as_numpy
from checkpoints import TINY, write_checkpoint

from mlx_qwen3.engine.prefix import model_key
from mlx_qwen3.engine.prefix_folder import PrefixFolder
from mlx_qwen3.errors import UsageError
from mlx_qwen3.model import kernels
from mlx_qwen3.model.cache import KVCache
from mlx_qwen3.model.kv_format import kv_format
from mlx_qwen3.model.load import load_model
from mlx_qwen3.model.view import ReplayView

B, H, K, D, S = 2, 6, 2, 96, 20
TOLERANCE = 5e-4  # measured 2.5e-4, of values up to 60: the same stored values, added up in another order
FORMATS = [(8, 96), (4, 96), (8, 128), (4, 64)]


@pytest.fixture(params=FORMATS, ids=str)
def form(request):
    return kv_format(*request.param), request.param[1]


def random_pass(D, batch=B):
    """Queries (batch, H, S, D), and keys and values (2, batch, K, S, D) of which some are large, as real keys are."""
    rng = np.random.default_rng(7)
    kv = rng.normal(size=(2, batch, K, S, D)) * rng.uniform(0.1, 20, (2, 1, K, 1, D))
    return mx.array(rng.normal(size=(batch, H, S, D)), mx.float32), mx.array(kv, mx.float32)


def expected(q, kv, padding=(0, 0)):
    """Causal attention in float64, over keys and values (2, B, K, S, D); NaN for queries that are padding."""
    q, (keys, values) = (as_numpy(x).astype(np.float64) for x in (q, kv))
    keys, values = (np.repeat(x, H // K, axis=1) for x in (keys, values))
    scores = q @ keys.swapaxes(2, 3) * 0.1
    order = np.arange(S)
    visible = (order <= order[:, None]) & (order >= np.array(padding)[:, None, None, None])
    with np.errstate(invalid="ignore"):
        scores = np.where(visible, scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        return weights / weights.sum(-1, keepdims=True) @ values


def feed(cache, q, kv, splits):
    """Attention of a pass for each piece of the tokens."""
    outs, first = [], 0
    for length in splits:
        piece = slice(first, first + length)
        view = cache.view(length)
        outs.append(as_numpy(view.attend(0, q[:, :, piece], kv[:, :, :, piece], 0.1)))
        cache.commit(view.buffers, length)
        first += length
    return np.concatenate(outs, axis=2)


def test_stored_values_are_within_a_step_of_their_group(form):
    form, D = form
    kv = random_pass(D)[1]
    groups = as_numpy(kv).reshape(-1, form.group)
    step = (groups.max(-1) - groups.min(-1)) / (2**form.bits - 1)
    error = np.abs(as_numpy(form.unpack(form.pack(kv))).reshape(-1, form.group) - groups).max(-1)
    assert (error <= 1.01 * step).all()
    assert error.max() > 0.1 * step.max()


@pytest.mark.parametrize("splits", [[20], [1] * 20, [12, 8], [9, 1, 3, 7]], ids=str)
def test_every_split_attends_to_the_stored_values(form, splits):
    form, D = form
    q, kv = random_pass(D)
    right = expected(q, form.unpack(form.pack(kv)))
    assert np.abs(feed(KVCache(B, kv_format=form), q, kv, splits) - right).max() < TOLERANCE


@pytest.mark.parametrize("splits", [[20], [12, 8], [14] + [1] * 6], ids=str)
def test_padded_rows(form, splits):
    form, D = form
    q, kv = random_pass(D)
    right = expected(q, form.unpack(form.pack(kv)), (0, 11))
    found = feed(KVCache(B, [0, 11], form), q, kv, splits)
    assert np.abs(found - right)[0].max() < TOLERANCE
    assert np.abs(found - right)[1, :, 11:].max() < TOLERANCE


def test_the_replayed_view_attends_to_the_same(form):
    form, D = form
    q, kv = random_pass(D)
    cache = KVCache(B, [0, 11], form)
    feed(cache, q[:, :, :19], kv[:, :, :, :19], [19])
    view = ReplayView(*cache.arrays(), kv_format=form)
    out = as_numpy(view.attend(0, q[:, :, 19:], kv[:, :, :, 19:], 0.1))
    assert np.abs(out - expected(q, form.unpack(form.pack(kv)), (0, 11))[:, :, 19:]).max() < TOLERANCE


def test_rows_keep_their_values_when_they_move(form):
    form, D = form
    q, kv = random_pass(D, 1)
    row, batch = KVCache(kv_format=form), KVCache(kv_format=form)
    feed(row, q, kv, [S])
    feed(batch, q[:, :, :7], kv[:, :, :, :7], [7])
    batch.resize(2, [0])
    batch.admit(1, row)
    moved = batch.extract(1)
    assert moved.kv_format == form
    for ours, theirs in zip(moved.buffers, row.buffers, strict=True):
        assert np.array_equal(as_numpy(ours), as_numpy(theirs[:, :, :, :S]))


def test_a_stored_cache_is_restored_in_its_format(form):
    form, D = form
    q, kv = random_pass(D, 1)
    cache = KVCache(kv_format=form)
    feed(cache, q, kv, [S])
    restored = KVCache.restored(cache.stored(), S)
    assert restored.kv_format == form
    for ours, theirs in zip(restored.buffers, cache.buffers, strict=True):
        assert np.array_equal(as_numpy(ours), as_numpy(theirs[:, :, :, :S]))


def test_a_store_of_other_bits_does_not_know_a_prefix(tmp_path):
    model, ids = load_model(write_checkpoint(tmp_path / "model", head_dim=64), "fp32"), np.arange(1, 41)
    known = []
    for bits in (None, 8, 4, 8):
        folder = PrefixFolder(tmp_path / "kept", model_key(model, bits))
        known.append(folder.longest(ids))
        cache = model.make_cache(kv_bits=bits)
        mx.eval(model(mx.array(ids[None]), cache))
        folder.write(ids, cache)
        folder.close()
    assert known == [0, 0, 0, 40]


@pytest.mark.parametrize(("bits", "head_dim", "size"), [(8, 128, 128 + 16), (4, 128, 64 + 16), (8, 96, 96 + 24)])
def test_bytes_of_a_token(bits, head_dim, size):
    """`size` is one head's: the packed values, and a float32 scale and bias for each group."""
    form = kv_format(bits, head_dim)
    assert sum(array.nbytes for array in form.pack(mx.ones((2, 1, 1, 1, head_dim)))) == 2 * size


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("replayed", [False, True])
def test_a_step_writes_in_place_and_unpacks_nothing(bits, replayed):
    """Otherwise every token copies the cache."""
    steps, cache = 20, KVCache(kv_format=kv_format(bits, 64))

    def add(length, view=None):
        view = view or cache.view(length)
        out = view.attend(0, mx.ones((1, 16, 1, 64)), mx.ones((2, 1, 8, length, 64)), 0.1)
        cache.commit(view.buffers, length)
        mx.eval(out, cache.buffers)

    add(20_224 - steps)
    mx.clear_cache()
    mx.reset_peak_memory()
    before = mx.get_active_memory()
    for _ in range(steps):
        add(1, ReplayView(*cache.arrays(), kv_format=cache.kv_format) if replayed else None)
    # MLX's CPU copies packed arrays with gaps; in a replayed step there are none.
    spare = 0.1 if replayed else 1.1
    scores = 3 * 16 * 20_224 * 4  # of all heads, before and after the softmax
    assert mx.get_peak_memory() - before < scores + spare * cache.nbytes


def test_few_queries_give_the_result_of_many(form, monkeypatch):
    form, D = form
    q, kv = random_pass(D)
    found = []
    for few in (0, S):
        monkeypatch.setattr(kernels, "FEW_QUERIES", few)
        found.append(feed(KVCache(B, [0, 3], form), q, kv, [S])[:, :, 3:])
    assert np.abs(found[0] - found[1]).max() < TOLERANCE


def test_the_listener_sees_the_stored_values(tmp_path):
    model = load_model(write_checkpoint(tmp_path, head_dim=64), "fp32")
    seen = {}
    model(mx.array([[5, 9, 11]]), model.make_cache(1, None, 4), lambda step, *arrays: seen.setdefault(step, arrays))
    new, stored = seen["rope"][1], seen["cache"][0]
    error = np.linalg.norm(as_numpy(new - stored)) / np.linalg.norm(as_numpy(new))
    assert 0.01 < error < 0.2


@pytest.mark.parametrize("kv_bits", [3, 16, 0, True, "8", 8.0])
def test_other_bits_are_refused(kv_bits):
    with pytest.raises(UsageError, match=f"kv_bits is {kv_bits!r}; expected 8 or 4"):
        kv_format(kv_bits, 128)


def test_a_head_that_does_not_divide_is_refused(tiny):
    with pytest.raises(UsageError, match=f"head_dim is {TINY['head_dim']}, not a multiple of 32; leave kv_bits out"):
        load_model(tiny, "fp32").make_cache(kv_bits=8)
