"""The packing orders of integers, by hand; test_packed.py checks whole releases."""

import numpy as np
import pytest

from mlx_qwen3.files.integers import Integers, awq_words


def integers(groups_of: list[int]) -> Integers:
    def rows(first: int, count: int) -> np.ndarray:
        return np.zeros((count, 1))

    return Integers(4, np.array(groups_of), rows, rows, rows)


def test_a_word_of_awq():
    """Input 0 has the outputs 0 to 7 in one word, in the order that AWQ defines; all other inputs are 0."""
    word = sum(output << (4 * place) for place, output in enumerate([0, 2, 4, 6, 1, 3, 5, 7]))
    turned = awq_words(np.array([[word], *[[0]] * 7], np.uint32))
    assert turned.tolist() == [[output] for output in range(8)]  # input 0 is lowest in the words of each output
    later = awq_words(np.array([*[[0]] * 10, [word], *[[0]] * 5], np.uint32))
    assert later.tolist() == [[0, output << 8] for output in range(8)]


@pytest.mark.parametrize(
    ("groups_of", "size"),
    [
        ([0] * 128, 128),
        ([0] * 256, 128),
        ([0] * 64 + [1] * 64, 64),
        ([0] * 32 + [1] * 32 + [0] * 32 + [1] * 32, 32),
        ([1] * 96, 32),
        ([0, 1] * 64, None),
        ([0] * 48, None),
        ([0] * 16 + [1] * 16, None),
    ],
)
def test_the_group_in_the_affine_form(groups_of, size):
    assert integers(groups_of).group_size == size
