"""A batch: its slots as rows come and go, and the cache that a row takes with it."""

import mlx.core as mx
import numpy as np
import pytest
from arrays import as_numpy, relative
from checkpoints import TINY, write_checkpoint
from mlx.utils import tree_flatten

from mlx_qwen3.engine.batch import PADDING, Batch
from mlx_qwen3.engine.rows import Row
from mlx_qwen3.engine.runner import decode_step, prefill
from mlx_qwen3.engine.sampling import SamplingParams
from mlx_qwen3.model.buffers import STEP
from mlx_qwen3.model.load import load_model

GREEDY = SamplingParams(temperature=0)
SIZE = TINY["vocab_size"]
ROUNDING = 2e-2  # relative norm: bf16 keeps 8 bits, and two layers add up


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """Untied: a tied model with random weights repeats one token."""
    return load_model(write_checkpoint(tmp_path_factory.mktemp("model"), tie_word_embeddings=False), "fp32")


def prefilled(model, length, seed, limit=40):
    """A row whose first token is known, and its batch."""
    prompt = np.random.default_rng(seed).integers(0, SIZE, length).tolist()
    row, cache = Row(prompt, GREEDY, limit, number=seed), model.make_cache()
    batch = Batch(model, [row], cache, SIZE, model(mx.array([prompt]), cache)[:, -1])
    assert batch.step() == [(row, row.tokens[0])]
    return row, batch


def greedy(model, row):
    """The tokens that the row gets alone, by the plain model without a cache."""
    ids = list(row.prompt)
    for _ in row.tokens:
        ids.append(int(mx.argmax(model(mx.array([ids]))[0, -1])))
    return ids[len(row.prompt) :]


def test_a_row_joins_unless_padding_takes_longer_than_the_weights(model):
    """One long row would make all others attend to its length; a short one alone attends to the others'."""
    _, batch = prefilled(model, 20, 0)
    slot = batch.nbytes / STEP
    read = [weight.nbytes for name, weight in tree_flatten(model.parameters()) if name != "embed_tokens.weight"]
    bound = int(PADDING * sum(read) / slot)
    assert bound > 100
    assert [batch.near(batch.end + extra) for extra in (0, bound, bound + 1)] == [True, True, False]
    batch.join(prefilled(model, 20, 1)[1])
    assert [batch.near(batch.end + extra) for extra in (bound // 2, bound // 2 + 1)] == [True, False]
    assert batch.near(1)


def test_slots_grow_and_shrink_and_the_rows_keep_their_tokens(model):
    rows = [prefilled(model, length, seed) for seed, length in enumerate((5, 21, 3, 34, 8))]
    batch = rows[0][1]
    slots = [len(batch.slots)]
    for _, other in rows[1:]:
        batch.step()
        batch.join(other)
        slots.append(len(batch.slots))
    assert slots == [1, 2, 4, 4, 8]
    for row, _ in (rows[3], rows[0], rows[4]):
        batch.step()
        batch.leave(row)
        slots.append(len(batch.slots))
    assert slots[5:] == [8, 8, 2]  # from a quarter on
    batch.step()
    assert batch.rows == [rows[1][0], rows[2][0]]
    for row, _ in rows:
        assert row.tokens == greedy(model, row)


@pytest.mark.parametrize("others", [0, 2])
def test_a_row_takes_its_keys_and_values_with_it(model, others):
    row, batch = prefilled(model, 12, 1)
    for seed in range(others):
        batch.join(prefilled(model, 30, 10 + seed)[1])
    for _ in range(7):
        batch.step()
    taken = batch.take_out(row)
    assert taken.end == row.length - 1  # the last token was not fed
    assert row not in batch.rows
    logits = as_numpy(model(mx.array([[row.tokens[-1]]]), taken))[0, -1]
    expected = as_numpy(model(mx.array([[*row.prompt, *row.tokens]])))[0, -1]
    assert np.abs(logits - expected).max() < 2e-5


def test_a_copy_of_a_beginning_leaves_the_row_as_it_is(model):
    row, batch = prefilled(model, 12, 1)
    batch.join(prefilled(model, 5, 2)[1])
    batch.step()
    copy = batch.copy_of(row, 9, 3)
    assert copy.end == 9
    logits = as_numpy(model(mx.array([row.prompt[9:]]), copy))[0, -1]
    assert np.abs(logits - as_numpy(model(mx.array([row.prompt])))[0, -1]).max() < 2e-5
    batch.step()
    assert row.tokens == greedy(model, row)


def test_known_are_the_tokens_in_the_cache(model):
    row, batch = prefilled(model, 6, 3)
    batch.step()
    batch.step()
    assert batch.known(row).tolist() == [*row.prompt, *row.tokens[:-1]]
    assert batch.end >= len(batch.known(row))
    assert batch.nbytes > 0


def test_nothing_happens_once_every_row_has_ended(model):
    _, batch = prefilled(model, 6, 3, limit=3)
    news = [batch.step() for _ in range(4)]
    assert [len(found) for found in news] == [1, 1, 0, 0]


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_with_16_bits_a_row_of_a_batch_differs_from_the_row_alone_by_rounding(dtype, tmp_path):
    """MLX's CPU computes the same bits. A GPU may choose other kernels for more rows."""
    model = load_model(write_checkpoint(tmp_path, tie_word_embeddings=False), dtype)
    rng = np.random.default_rng(5)
    prompts = [rng.integers(0, SIZE, length).tolist() for length in (9, 21, 14)]
    tokens = mx.array(rng.integers(0, SIZE, (12, 3)))
    padding = [21 - len(prompt) for prompt in prompts]

    def logits(rows, padding, tokens):
        cache, step = model.make_cache(len(rows), padding), decode_step(model)
        made = [prefill(model, mx.array(rows), cache)]
        for column in tokens:
            made.append(step(column, cache))
            mx.eval(made[-1], cache.buffers)
        return np.stack([as_numpy(array) for array in made], axis=1)

    together = logits([[0] * pad + row for pad, row in zip(padding, prompts, strict=True)], padding, tokens)
    for index, prompt in enumerate(prompts):
        alone = logits([prompt], [0], tokens[:, index : index + 1])[0]
        assert relative(together[index], alone) < ROUNDING
