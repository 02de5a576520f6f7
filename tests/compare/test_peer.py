"""transformers, one layer at a time, is transformers."""

import mlx.core as mx
import numpy as np
import pytest
from checkpoints import TINY_MOE, YARN, write_checkpoint

from mlx_qwen3.compare.steps import transformers_steps
from mlx_qwen3.files.checkpoint import Checkpoint


@pytest.mark.parametrize("changes", [{}, {"rope_scaling": YARN}, {"tie_word_embeddings": False}, TINY_MOE], ids=str)
def test_the_steps_of_transformers_are_those_of_its_own_pass(changes, ids, tmp_path, transformers_model):
    """The pass is made layer by layer; its logits are the bits of transformers' pass in one piece."""
    folder = write_checkpoint(tmp_path, **changes)
    *layers, last = transformers_steps(Checkpoint(folder), mx.array(ids))
    torch = pytest.importorskip("torch")
    with torch.no_grad():
        whole = transformers_model(folder)(torch.tensor(ids), output_hidden_states=True)
    np.testing.assert_array_equal(last.arrays["logits"].numpy(), whole.logits.numpy())
    np.testing.assert_array_equal(last.arrays["final_norm"].numpy(), whole.hidden_states[-1].numpy())
    for layer, state in zip(layers, whole.hidden_states, strict=False):
        np.testing.assert_array_equal(layer.arrays["input"].numpy(), state.numpy())
