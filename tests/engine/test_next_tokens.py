"""The next tokens of rows: what is computed when, and errors of one row's steering."""

import mlx.core as mx
import numpy as np
import pytest
from checkpoints import TINY, write_checkpoint

from mlx_qwen3.engine.batch import Batch
from mlx_qwen3.engine.next_tokens import NextTokens
from mlx_qwen3.engine.rows import Row
from mlx_qwen3.engine.sampling import SamplingParams
from mlx_qwen3.errors import HealthError
from mlx_qwen3.model.load import load_model

GREEDY = SamplingParams(temperature=0)
V = TINY["vocab_size"]


class Steers:
    """Allows some ids, or all, and puts one token in place of another."""

    def __init__(self, mask=None, waiting=True, replaces=None):
        self._mask, self._waiting, self._replaces = mask, waiting, replaces or {}

    def waits(self):
        return self._waiting

    def allowed(self):
        if isinstance(self._mask, Exception):
            raise self._mask
        return self._mask

    def settle(self, token):
        found = self._replaces.get(token, token)
        if isinstance(found, Exception):
            raise found
        return found


def only(*ids):
    mask = np.zeros(V, bool)
    mask[list(ids)] = True
    return mask


def row(*steering, **options):
    return Row([1, 2], GREEDY, 10, steering=steering, **options)


def ranked(rows, *best):
    """(rows, V), with these ids from the largest down."""
    made = np.zeros((rows, V), np.float32)
    made[:, list(best)] = range(len(best) + 1, 1, -1)
    return mx.array(made)


def test_each_row_has_its_own_mask_and_its_own_error():
    error, late = ValueError("mask"), ValueError("settle")
    rows = [row(), row(Steers(only(3, 4))), row(Steers(error)), None, row(Steers(replaces={7: late}))]
    tokens = NextTokens(rows, V)
    news = tokens.receive(tokens.choose(ranked(5, 7, 4, 3)))
    assert news == [(rows[0], 7), (rows[1], 4), (rows[4], late), (rows[2], error)]
    assert [one.ended for one in rows if one] == [False, False, True, True]
    assert tokens.receive(tokens.choose(ranked(5, 7))) == [(rows[0], 7), (rows[1], 3)]


def test_a_row_with_unusable_logits_ends_alone():
    rows = [row(), row()]
    tokens, broken = NextTokens(rows, V), np.array(ranked(2, 7))
    broken[1, 9] = np.nan
    (first, token), (second, error) = tokens.receive(tokens.choose(mx.array(broken)))
    assert (first, token, second) == (rows[0], 7, rows[1])
    assert isinstance(error, HealthError)
    assert rows[1].ended


@pytest.mark.parametrize("waiting", [False, True])
@pytest.mark.parametrize(
    ("replaces", "said"), [({}, [7, 4, 9]), ({4: 5}, [7, 5]), ({7: ValueError()}, [None])], ids=["none", "one", "error"]
)
def test_drafts_count_up_to_the_first_that_is_wrong(waiting, replaces, said):
    one = row(Steers(waiting=waiting, replaces=replaces))
    one.take(2)
    tokens = NextTokens([one], V)
    each = mx.concatenate([ranked(1, best) for best in (7, 4, 9, 3)])
    news, usable = tokens.check(each, [7, 4, 8])
    assert usable
    assert [None if isinstance(event, Exception) else event for _, event in news] == said
    assert one.tokens == [2, *(token for token in said if token is not None)]


@pytest.mark.parametrize("waiting", [False, True])
def test_unusable_logits_after_drafts_are_no_error_yet(waiting):
    one = row(Steers(waiting=waiting))
    one.take(2)
    broken = np.array(ranked(3, 7))
    broken[0 if not waiting else 1, 9] = np.nan
    news, usable = NextTokens([one], V).check(mx.array(broken), [7, 7])
    assert (news, usable, one.ended) == ([(one, 7)] if waiting else [], False, False)


def test_log_probabilities_are_those_of_the_token_that_the_row_gets():
    one = row(Steers(replaces={7: 4}), logprobs=2)
    tokens = NextTokens([one], V)
    tokens.receive(tokens.choose(ranked(1, 7, 4)))
    [scores] = one.scores
    best = dict(scores.top)
    assert list(best) == [7, 4]
    assert scores.logprob == pytest.approx(best[4], abs=1e-6)


def test_a_row_that_needs_no_mask_yet_does_not_hold_its_cache_twice(tmp_path):
    """A step that is handed over before the one before it is done copies the whole cache."""
    model = load_model(write_checkpoint(tmp_path, tie_word_embeddings=False), "fp32")
    held = []
    for steering in ((), (Steers(waiting=False),)):
        prompt, cache = [5] * 900, model.make_cache()
        logits = model(mx.array([prompt]), cache)[:, -1]
        batch = Batch(model, [Row(prompt, GREEDY, 40, steering=steering)], cache, V, logits)
        before = mx.get_active_memory()
        for _ in range(5):
            batch.step()
        held.append(mx.get_active_memory() - before)
        size = cache.nbytes
    assert abs(held[1] - held[0]) < size / 4
