"""A row: when it ends, and how those who steer it are asked."""

import numpy as np
import pytest

from mlx_qwen3.engine.rows import Row
from mlx_qwen3.engine.sampling import SamplingParams

GREEDY = SamplingParams(temperature=0)


class Steers:
    """Allows some ids, and adds to the chosen token."""

    def __init__(self, mask=None, added=0, waiting=False):
        self._mask, self._added, self._waiting = mask, added, waiting
        self.seen: list[int] = []

    def waits(self):
        return self._waiting

    def allowed(self):
        return self._mask

    def settle(self, token):
        self.seen.append(token)
        return token + self._added


@pytest.mark.parametrize(("stop_ids", "limit", "taken"), [({5}, 10, 3), ((), 4, 4), ({7}, 2, 2), ({9}, 1, 1)])
def test_it_ends_with_a_stop_id_or_at_its_limit(stop_ids, limit, taken):
    row = Row((1, 2), GREEDY, limit, stop_ids)
    for token in (9, 3, 5, 7, 8):
        if row.ended:
            break
        row.take(token)
    assert row.tokens == [9, 3, 5, 7, 8][:taken]
    assert (row.length, row.left) == (2 + taken, limit - taken)


def test_those_who_steer_are_asked_in_their_order():
    first, second = Steers(added=10), Steers(added=100)
    row = Row((1,), GREEDY, 9, {111}, steering=(first, second))
    assert row.take(1) == 111
    assert (first.seen, second.seen, row.tokens, row.ended) == ([1], [11], [111], True)


@pytest.mark.parametrize(
    ("masks", "expected"),
    [([], None), ([None, None], None), ([[1, 1, 0], None], [1, 1, 0]), ([[1, 1, 0], [0, 1, 1]], [0, 1, 0])],
)
def test_an_id_must_be_allowed_by_all(masks, expected):
    steering = [Steers(None if mask is None else np.array(mask, bool)) for mask in masks]
    allowed = Row((1,), GREEDY, 9, steering=steering).allowed()
    assert (None if allowed is None else allowed.astype(int).tolist()) == expected


def test_one_that_waits_makes_the_row_wait():
    assert not Row((1,), GREEDY, 9, steering=(Steers(), Steers())).waits()
    assert Row((1,), GREEDY, 9, steering=(Steers(), Steers(waiting=True))).waits()
