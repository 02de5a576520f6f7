"""The safetensors format: what the library accepts is read as the library reads it, and all else is refused."""

import json
import os
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import stored
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from mlx_qwen3.conversion.convert import convert
from mlx_qwen3.errors import CheckpointError, Qwen3Error
from mlx_qwen3.files.headers import StoredTensor, TensorFile, join, tensors_of

VALUES = {
    "b": np.arange(12, dtype=np.float32).reshape(4, 3),
    "a": np.arange(6, dtype=np.uint8).reshape(3, 2),
    "c": np.array([1.5, -2], np.float16),
    "n": np.array(7, np.int64),
}


@pytest.fixture
def path(tmp_path) -> Path:
    save_file(VALUES, tmp_path / "x.safetensors", {"format": "pt"})
    return tmp_path / "x.safetensors"


def tensors(path: Path) -> dict[str, StoredTensor]:
    return {tensor.name: tensor for tensor in tensors_of(TensorFile(path))}


def write(path: Path, header: Any, data: bytes = b"") -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    return path


def library_reads(path: Path) -> bool:
    try:
        with safe_open(path, framework="numpy"):
            return True
    except (SafetensorError, OSError):
        return False


def test_tensors_are_those_of_the_library(path):
    found = tensors(path)
    assert found.keys() == VALUES.keys()
    for name, value in load_file(path).items():
        assert (found[name].shape, found[name].read()) == (value.shape, value.tobytes())
        assert b"".join(found[name].chunks(5)) == value.tobytes()


def test_rows_and_blocks_of_rows(path):
    whole = tensors(path)["b"]
    assert whole.rows(1, 2).read() == VALUES["b"][1:3].tobytes()
    assert whole.rows(1, 3).rows(1, 1).read() == VALUES["b"][2:3].tobytes()
    assert [block.shape for block in whole.row_blocks(24)] == [(2, 3), (2, 3)]
    assert [block.shape for block in whole.row_blocks(1)] == [(1, 3)] * 4
    assert b"".join(bytes(block.read()) for block in whole.row_blocks(30)) == VALUES["b"].tobytes()
    vector = tensors(path)["c"]
    assert list(vector.row_blocks(1)) == [vector]


def test_runs_that_follow_each_other_become_one(path):
    file = TensorFile(path)
    whole = next(tensor for tensor in tensors_of(file) if tensor.name == "b")
    first, second, third = whole.rows(0, 1), whole.rows(1, 2), whole.rows(3, 1)
    assert join([first, second, third]) == (whole,)
    assert join([first, third]) == (first, third)
    assert join([second, first]) == (second, first)


def test_a_file_is_closed_when_nothing_uses_it(path):
    before = len(os.listdir("/dev/fd"))
    found = [tensors(path) for _ in range(50)]
    assert len(os.listdir("/dev/fd")) >= before + 50
    del found
    assert len(os.listdir("/dev/fd")) == before


def test_a_file_that_is_cut_while_it_is_read(path):
    found = tensors(path)
    os.truncate(path, path.stat().st_size - 1)
    last = max(found.values(), key=lambda tensor: tensor.start)
    with pytest.raises(CheckpointError, match=rf"x\.safetensors ends inside {last.name}; it changed while it was read"):
        last.read()


ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
BROKEN = {
    "no header": b"",
    "not JSON": b"{",
    "not UTF-8": b'{"\xff": 1}',
    "a list": [],
    "text": "x",
    "a tensor that is a list": {"a": []},
    "a tensor that is null": {"a": None},
    "no dtype": {"a": {"shape": [2], "data_offsets": [0, 8]}},
    "no offsets": {"a": {"dtype": "F32", "shape": [2]}},
    "one offset": {"a": ENTRY | {"data_offsets": [0]}},
    "text as an offset": {"a": ENTRY | {"data_offsets": ["0", "8"]}},
    "fractional offset": {"a": ENTRY | {"data_offsets": [0, 8.0]}},
    "negative offset": {"a": ENTRY | {"data_offsets": [-8, 0]}},
    "a negative size": {"a": ENTRY | {"shape": [-1, -2]}},
    "a size that is true": {"a": ENTRY | {"shape": [True, 2]}},
    "a shape that is a number": {"a": ENTRY | {"shape": 2}},
    "another shape": {"a": ENTRY | {"shape": [3]}},
    "huge shape": {"a": ENTRY | {"shape": [2**62, 2**62]}},
    "a dtype that is a number": {"a": ENTRY | {"dtype": 32}},
    "past the end": {"a": ENTRY, "b": ENTRY | {"data_offsets": [8, 16]}},
    "overlapping": {"a": ENTRY, "b": ENTRY | {"shape": [1], "data_offsets": [4, 8]}},
    "the same bytes twice": {"a": ENTRY, "b": ENTRY},
    "a hole": {"a": ENTRY | {"shape": [1], "data_offsets": [4, 8]}},
    "bytes left over": {"a": ENTRY | {"shape": [1], "data_offsets": [0, 4]}},
    "nested": b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
}


@pytest.mark.parametrize("header", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_header_is_refused_as_by_the_library(header, tmp_path):
    path = write(tmp_path / "x.safetensors", header, bytes(8))
    assert not library_reads(path)
    with pytest.raises(CheckpointError, match="not a whole safetensors file") as error:
        tensors(path)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 500


def test_a_name_that_is_listed_twice_is_refused(tmp_path):
    """The library takes one of the two."""
    header = b'{"a": %s, "a": %s}' % ((json.dumps(ENTRY).encode(),) * 2)
    with pytest.raises(CheckpointError, match=r"not a whole safetensors file .*a is listed twice"):
        tensors(write(tmp_path / "x.safetensors", header, bytes(8)))


def test_a_long_name_is_shortened(tmp_path):
    path = write(tmp_path / "x.safetensors", {"x" * 5000: ENTRY | {"dtype": "F8_E5M2", "shape": [8]}}, bytes(8))
    with pytest.raises(CheckpointError, match=r"x\.\.\.x+ \(5000 characters\) .*has dtype F8_E5M2; supported") as error:
        tensors(path)
    assert len(str(error.value)) < 400


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_changed_byte_is_read_as_by_the_library_or_refused(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("changed") / "x.safetensors"
    save_file(VALUES, path)
    content = bytearray(path.read_bytes())
    size = 8 + int.from_bytes(content[:8], "little")
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, size - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    found, refusal = {}, ""
    try:
        found = tensors(path)
    except CheckpointError as error:
        refusal = str(error)
    if refusal:
        # Names that are listed twice and dtypes that MLX does not have: the library lets them pass.
        assert "is listed twice" in refusal or "has dtype" in refusal or not library_reads(path)
        return
    with safe_open(path, framework="numpy") as file:
        assert set(file.keys()) == found.keys()
        for name, tensor in found.items():
            assert list(tensor.shape) == file.get_slice(name).get_shape()


@pytest.mark.parametrize("keep", [0, 7, 100, 300, -1])
def test_a_truncated_file_is_refused(path, keep):
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"x\.safetensors is not a whole safetensors file"):
        tensors(path)


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
