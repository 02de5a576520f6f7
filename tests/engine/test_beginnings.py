"""Sequences by their beginnings, against a search through all of them."""

import numpy as np
import pytest

from mlx_qwen3.engine.beginnings import Beginnings, shared_length


def sequences(seed, count=60):
    """Many that share beginnings; ids of one and of several bytes, whose order as text would be another one."""
    rng = np.random.default_rng(seed)
    return [rng.choice([1, 2, 256, 70000, 2**31 - 1], rng.integers(1, 7)).astype(np.int32) for _ in range(count)]


@pytest.mark.parametrize("seed", range(20))
def test_the_best_is_that_of_a_search_through_all(seed):
    known, plain = Beginnings(), {}
    for ids in sequences(seed):
        lengths = {name: shared_length(ids, other) for name, other in plain.items()}
        longest = max(lengths.values(), default=0)
        length, best = known.best(ids)
        assert length == longest
        assert (lengths[best] == longest) if longest else best is None
        assert (known.longer(ids) is not None) == (longest == len(ids))
        if longest == len(ids):
            continue
        replaced = known.add(ids, name := tuple(ids.tolist()))
        shorter = [other for other in plain if lengths[other] == len(other)]
        assert ([replaced] if replaced else []) == shorter
        for other in shorter:
            del plain[other]
        plain[name] = ids
        if len(plain) > 8:
            known.remove(plain.pop(next(iter(plain))))
        assert list(known) == list(plain)
        assert len(known) == len(plain)


def test_a_sequence_that_is_added_again_is_the_last():
    known = Beginnings()
    for ids in ([1, 2], [3], [1, 2]):
        assert known.add(ids, tuple(ids)) is None
    assert list(known) == [(3,), (1, 2)]


def test_to_remove_what_is_not_known_changes_nothing():
    known = Beginnings()
    known.add([1, 2], "first")
    known.remove([1])
    assert known.best([1, 2, 3]) == (2, "first")


def test_no_token_in_common():
    known = Beginnings()
    assert known.best([1]) == (0, None)
    known.add([2**31 - 1], "other")
    assert known.best([1]) == (0, None)
