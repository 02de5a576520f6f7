"""Which prompts are computed together, in one pass that reads the weights once."""

from collections.abc import Sequence

import mlx.core as mx
import numpy as np

from .beginnings import shared_length
from .rows import Row

# A pass takes as long as so many more tokens would, for reading the weights and for the operations themselves. On a CPU
# that is 18 tokens for the demo (dev/LOG.md). A GPU computes many more in the time that the weights take: not measured.
PASS = {mx.gpu: 128, mx.cpu: 16}
SPREAD = 128  # tokens by which the lengths of the prompts may differ: they decode as one batch afterwards
WORTH_SHARING = 32  # tokens in common with a running row from which copying is faster than computing them


def together(lengths: Sequence[int], left: Sequence[int], chunk: int) -> bool:
    """Whether one pass of at most `chunk` tokens should compute prompts of these lengths, of which so much is left.

    All rows of a pass have as many tokens as the longest. What is too many is computed for nothing, and should take
    less time than passes of their own.
    """
    rows, longest = len(left), max(left)
    padding = rows * longest - sum(left)
    cheaper = padding <= PASS[mx.default_device().type] * (rows - 1)
    return cheaper and rows * longest <= chunk and max(lengths) - min(lengths) <= SPREAD


def waits(row: Row, known: int, group: Sequence[Row]) -> bool:
    """Whether a row should rather wait and copy what its prompt shares with one of the group beyond what is `known`."""
    ids = np.array(row.prompt, np.int32)
    shared = max(shared_length(ids, np.array(other.prompt, np.int32)) for other in group)
    return shared - known >= WORTH_SHARING
