"""A safetensors file that is not whole is one clear error, whatever is wrong with it."""

import shutil
from pathlib import Path

import pytest
from checkpoints import stored, write_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_qwen3.conversion.convert import convert
from mlx_qwen3.errors import CheckpointError, Qwen3Error
from mlx_qwen3.model.load import load_model


@pytest.mark.parametrize("keep", [0, 7, 100, 3000, -1])
def test_a_truncated_file_is_refused(tmp_path, keep):
    path = write_checkpoint(tmp_path) / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is not a whole safetensors file"):
        load_model(tmp_path)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_corrupt_header_is_one_clear_error_and_writes_nothing(tiny, tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("corrupt")
    source = Path(shutil.copytree(tiny, folder / "source"))
    content = bytearray((source / "model.safetensors").read_bytes())
    length = int.from_bytes(content[:8], "little")
    kind = data.draw(st.sampled_from(["flip", "cut", "insert"]))
    position = data.draw(st.integers(0, 8 + length - 1))
    if kind == "flip":
        content[position] ^= data.draw(st.integers(1, 255))
    elif kind == "cut":
        del content[position:]
    else:
        content[position:position] = data.draw(st.binary(min_size=1, max_size=9))
    (source / "model.safetensors").write_bytes(bytes(content))
    try:
        convert(source, folder / "out", divergence=False)
    except Qwen3Error:  # any other exception fails the test
        assert [path.name for path in folder.iterdir()] == ["source"]
    else:  # the change meant nothing: in the metadata, say
        assert stored(source).keys() == stored(tiny).keys()
