"""OUT is a free place, or a checkpoint that may be replaced; never the source."""

import json
import shutil

import pytest
from checkpoints import write_checkpoint, write_tokenizer

from mlx_qwen3.conversion.convert import convert
from mlx_qwen3.conversion.verify import verify
from mlx_qwen3.errors import OutputError, UsageError


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_tokenizer(write_checkpoint(tmp_path_factory.mktemp("source")))


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_existing_out_needs_overwrite(source, tmp_path):
    out = tmp_path / "out"
    convert(source, out, dtype="fp16", divergence=False)
    before = content(out)
    with pytest.raises(OutputError, match=r"out exists already; .*--overwrite"):
        convert(source, out)
    assert content(out) == before
    convert(source, out, overwrite=True, divergence=False)
    assert json.loads((out / "config.json").read_text())["torch_dtype"] == "float32"
    verify(out)


def test_overwrite_is_for_checkpoints(source, tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "letters").write_text("data")
    with pytest.raises(OutputError, match=r"precious has no config\.json, so it is not a checkpoint"):
        convert(source, tmp_path / "precious", overwrite=True)
    (tmp_path / "link").symlink_to(tmp_path / "precious")
    (tmp_path / "file").write_text("")
    for name in ("link", "file"):
        with pytest.raises(OutputError, match=f"{name} exists and is not a folder"):
            convert(source, tmp_path / name, overwrite=True)
    assert (tmp_path / "precious" / "letters").read_text() == "data"


def test_the_source_is_never_overwritten(source, tmp_path):
    own = shutil.copytree(source, tmp_path / "models" / "own")
    (tmp_path / "models" / "config.json").write_text("{}")
    for out in (own, tmp_path / "models"):
        with pytest.raises(UsageError, match=r"holds SOURCE .*, which would be replaced"):
            convert(own, out, overwrite=True)
    assert content(own) == content(source)
    convert(own, own / "inside", divergence=False)
    verify(own / "inside", own)
