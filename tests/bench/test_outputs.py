"""Rounding is distinguished from a mistake."""

import numpy as np
import pytest

from mlx_qwen3.bench import outputs


def logits(*rows):
    return np.array(rows, np.float32)


OURS = logits([5, 4.99, 0, 0], [0, 7, 1, 2])


@pytest.mark.parametrize(
    ("theirs", "tokens", "agree"),
    [
        (logits([4.98, 5, 0, 0], [0, 7, 1, 2]), [1, 1], True),  # a near tie, and the same model
        (logits([4.98, 5, 0, 0], [0, 7, 1, 2]), [1, 3], False),  # then a token that neither model wants
        (logits([4, 5, 0, 0], [0, 7, 1, 2]), [1, 1], False),  # further apart than rounding
        (logits([4.98, 5, 0, 0], [0, 7, 1, np.nan]), [1, 1], False),
    ],
)
def test_rounding_is_distinguished_from_a_mistake(theirs, tokens, agree):
    found = outputs.judge(9, [0, 1], tokens, OURS, theirs, allowed=0.05)
    parting = found.parting
    assert (found.agree, parting.position, parting.ours, parting.theirs) == (agree, 0, 0, 1)
    assert parting.gap == pytest.approx(0.01, abs=1e-6)
    assert ("no speed is shown" in outputs.sentence("other", found)) is not agree
