import numpy as np
import pytest
from adapting import peft_deltas, write_peft
from checkpoints import TINY, random_weights

from mlx_qwen3.files.adapted import AdaptedCheckpoint, files_of
from mlx_qwen3.files.adapters import open_adapter
from mlx_qwen3.files.checkpoint import Checkpoint
from mlx_qwen3.files.values import read_rows


@pytest.fixture
def merged(tiny, tmp_path):
    base, folder = Checkpoint(tiny), write_peft(tmp_path / "adapter")
    return AdaptedCheckpoint(base, [open_adapter(folder, base.config)]), folder


def test_a_part_has_the_sum_and_the_others_their_bytes(merged):
    checkpoint, folder = merged
    weights, deltas = random_weights(TINY), peft_deltas(folder)
    for name in ("layers.1.self_attn.k_proj", "layers.0.mlp.up_proj"):
        leaves, key = checkpoint.parts[name].leaves, f"model.{name}.weight"
        expected = weights[key] + deltas.get(key, 0)
        for first in (0, 7):  # any rows
            assert np.abs(read_rows(leaves, None, first, 20) - expected[first : first + 20]).max() < 1e-6
    assert checkpoint.parts["norm"] is checkpoint.base.parts["norm"]


def test_a_change_of_the_adapter_is_a_change_of_the_checkpoint(merged):
    checkpoint, folder = merged
    before = checkpoint.stamps()
    assert checkpoint.changed(before) is None
    config = folder / "adapter_config.json"
    config.write_text(config.read_text() + " ")
    assert checkpoint.changed(before) == str(config.absolute())
    assert files_of(checkpoint.adapters[0])[0] == config.absolute()
