"""The fingerprint of a model: the same for the same files, and another if keys and values would change."""

import os

import mlx.core as mx
import pytest
from checkpoints import YARN, write_checkpoint, write_shards

from mlx_qwen3.files.checkpoint import Checkpoint
from mlx_qwen3.files.fingerprint import fingerprint

DAY = 1_700_000_000


def made(folder, shards=0, **changes):
    """A checkpoint whose files all have the same date."""
    write_checkpoint(folder, **changes)
    if shards:
        write_shards(folder, shards)
    for path in folder.iterdir():
        os.utime(path, (DAY, DAY))
    return folder


def of(folder, dtype=mx.float32):
    return fingerprint(Checkpoint(folder), dtype)


def test_it_is_the_same_for_the_same_files(tmp_path):
    folder = made(tmp_path / "a")
    assert of(folder) == of(folder)
    assert len(of(folder)) == 64


@pytest.mark.parametrize(
    "changes",
    [{"rope_theta": 1e5}, {"rope_scaling": YARN}, {"rms_norm_eps": 1e-5}, {"num_hidden_layers": 3}, {"shards": 2}],
    ids=str,
)
def test_another_model_has_another(changes, tmp_path):
    assert of(made(tmp_path / "a")) != of(made(tmp_path / "b", **changes))


def test_another_dtype_has_another(tmp_path):
    folder = made(tmp_path / "a")
    assert of(folder) != of(folder, mx.bfloat16)


def test_unpacked_weights_have_another(tmp_path):
    checkpoint = Checkpoint(made(tmp_path / "a"))
    assert fingerprint(checkpoint, mx.float32, unpacked=True) != fingerprint(checkpoint, mx.float32)


@pytest.mark.parametrize("name", ["model.norm.weight", "model.layers.1.mlp.up_proj.weight"])
@pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
def test_a_fine_tune_of_equal_shape_and_date_has_another(name, place, tmp_path):
    folder = made(tmp_path / "a")
    before = of(folder)
    tensor = Checkpoint(folder).tensors[name]
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[tensor.start + int((tensor.nbytes - 1) * place)] ^= 1
    path.write_bytes(content)
    os.utime(path, (DAY, DAY))
    assert of(folder) != before


def test_a_copy_of_another_day_has_another(tmp_path):
    folder = made(tmp_path / "a")
    before = of(folder)
    os.utime(folder / "model.safetensors", (DAY, DAY + 1))
    assert of(folder) != before
