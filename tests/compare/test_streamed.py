"""A forward pass that reads one layer, and one expert, at a time."""

import mlx.core as mx
import numpy as np
import oracle
import pytest
from arrays import as_numpy
from checkpoints import TINY, TINY_MOE, random_weights

from mlx_qwen3.compare import streamed
from mlx_qwen3.compare.streamed import Sequences, Streamed
from mlx_qwen3.files.checkpoint import Checkpoint
from mlx_qwen3.model.load import load_model

SEQUENCES = [[5, 77, 3, 140, 9], [7], [1, 2, 3, 4, 5, 6, 7, 8, 9]]


@pytest.mark.parametrize(("source", "config"), [("tiny", TINY), ("tiny_moe", TINY_MOE)])
@pytest.mark.parametrize("together", [1, 8, 1000], ids="at most {} tokens".format)
def test_the_states_of_each_sequence_are_those_of_the_oracle(source, config, together, request, monkeypatch):
    """However many sequences share a pass, none sees another."""
    monkeypatch.setattr(streamed, "PASS", together)
    folder = request.getfixturevalue(source)
    states = Streamed(Checkpoint(folder)).hidden(SEQUENCES)
    first, weights = 0, random_weights(config)
    for ids in SEQUENCES:
        right = oracle.hidden_states(config, weights, np.array([ids]))[-1][0]
        right = oracle.rms_norm(right, weights["model.norm.weight"], config)
        np.testing.assert_allclose(states[first : first + len(ids)], right, atol=1e-5)
        first += len(ids)
    assert first == len(states)


def test_experts_are_read_one_by_one_and_only_those_with_tokens(tiny_moe, monkeypatch):
    read = []
    weight = Streamed._weight

    def noted(self, name):
        if ".experts." in name:
            read.append(name)
        return weight(self, name)

    monkeypatch.setattr(Streamed, "_weight", noted)
    Streamed(Checkpoint(tiny_moe)).hidden([[5]])
    names = [name.rsplit(".", 2)[-2] for name in read if "layers.0" in name]
    assert len(set(names)) == 3 == TINY_MOE["num_experts_per_tok"]
    assert [name.rsplit(".", 1)[1] for name in read[:3]] == ["gate_proj", "up_proj", "down_proj"]
    assert len(read) == 2 * 3 * 3


def test_a_view_of_several_sequences_is_several_views(tiny, ids):
    model = load_model(tiny)
    first, second = ids[:1, :9], ids[1:, :14]
    view = Sequences([9, 14])
    together = model.forward(mx.array(np.concatenate([first, second], axis=1)), view)
    for part, alone in ((together[:, :9], first), (together[:, 9:], second)):
        np.testing.assert_allclose(as_numpy(part), as_numpy(model.hidden(alone)), atol=1e-5)
