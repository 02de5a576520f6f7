"""What the tests of compare/ share: a model of nine layers, and its comparison with a peer."""

from pathlib import Path

import mlx.core as mx
import pytest
from checkpoints import TINY

from mlx_qwen3.compare.bounds import GROWTH, STEPS, step_bound
from mlx_qwen3.compare.comparison import Comparison, differences
from mlx_qwen3.compare.steps import model_steps, reference_steps, transformers_steps
from mlx_qwen3.files.checkpoint import Checkpoint

NINE = {**TINY, "num_hidden_layers": 9}
PEERS = {"reference": reference_steps, "transformers": transformers_steps}


def against(peer, model, folder: Path, ids) -> Comparison:
    pytest.importorskip("torch")
    ours, theirs = model_steps(model, mx.array(ids)), PEERS[peer](Checkpoint(folder), mx.array(ids))
    bound = step_bound({name: bound.limit for name, bound in STEPS.items()}, model, same_weights=True)
    return Comparison(peer, tuple(differences(ours, theirs, bound, GROWTH.limit)))
