"""Scores in blocks are those of the whole, for MLX and torch alike."""

import mlx.core as mx
import numpy as np
import pytest

from mlx_qwen3.compare.layer_steps import LayerSteps, score_maker

LENGTH = 600  # more than two blocks of queries


@pytest.mark.parametrize("library", ["mlx", "torch"])
def test_blocks_of_scores_are_the_rows_of_the_whole(library):
    make = mx.array if library == "mlx" else pytest.importorskip("torch").tensor
    q, k = (np.random.default_rng(heads).normal(size=(1, heads, LENGTH, 8)).astype(np.float32) for heads in (4, 2))
    blocks = score_maker(make(q), make(k), 0.5)
    starts = []
    for _ in range(2):  # they can be made again
        starts = []
        for start, scores, weights, _ in blocks():
            starts.append(start)
            rows = slice(start, start + scores.shape[-2])
            whole = 0.5 * np.einsum("bhld,bhsd->bhls", q[:, :, rows], np.repeat(k, 2, axis=1))
            seen = np.arange(LENGTH) <= np.arange(LENGTH)[rows][:, None]
            exponentials = np.where(seen, np.exp(whole), 0)
            expected = exponentials / exponentials.sum(-1, keepdims=True)
            assert np.abs(np.asarray(weights.tolist()) - expected[..., : weights.shape[-1]]).max() < 1e-5
    assert starts == list(range(0, LENGTH, starts[1]))
    assert len(starts) > 2


def test_a_layer_without_attention_has_no_blocks():
    assert LayerSteps() == LayerSteps({}, None)
