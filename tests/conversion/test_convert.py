"""Conversion: the result, the way back, and that nothing is lost when it fails."""

import json
import os
from collections import Counter
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from arrays import as_numpy
from checkpoints import TINY, YARN, random_weights, stored, write_checkpoint

from mlx_qwen3.conversion.certificate import Certificate
from mlx_qwen3.conversion.convert import convert
from mlx_qwen3.errors import CheckpointError, OutputError, Qwen3Error, SourceError, UsageError
from mlx_qwen3.model.load import load_model
from mlx_qwen3.progress import Stage


def in_dtype(folder: Path, dtype: mx.Dtype, **changes) -> Path:
    write_checkpoint(folder, **changes)
    weights = random_weights({**TINY, **changes})
    arrays = {name: mx.array(value).astype(dtype) for name, value in weights.items()}
    mx.save_safetensors(str(folder / "model.safetensors"), arrays, {"format": "pt"})
    return folder


@pytest.mark.parametrize("dtype", [mx.bfloat16, mx.float16, mx.float32], ids=str)
@pytest.mark.parametrize("tied", [True, False])
def test_native_to_hf_gives_back_the_tensors_bit_for_bit(dtype, tied, tmp_path):
    source = in_dtype(tmp_path / "source", dtype, tie_word_embeddings=tied)
    convert(source, tmp_path / "native")
    convert(tmp_path / "native", tmp_path / "hf", layout="hf")
    assert stored(tmp_path / "hf") == stored(source)


def test_so_does_hf_to_hf_and_native_to_native(tiny, tmp_path):
    convert(tiny, tmp_path / "hf", layout="hf")
    convert(tiny, tmp_path / "native")
    convert(tmp_path / "native", tmp_path / "again")
    assert stored(tmp_path / "hf") == stored(tiny)
    assert stored(tmp_path / "again") == stored(tmp_path / "native")


def test_a_repeated_lm_head_comes_back_too(tmp_path):
    weights = random_weights(TINY)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    source = write_checkpoint(tmp_path / "source", weights=weights)
    convert(source, tmp_path / "native")
    assert "lm_head.weight" not in stored(tmp_path / "native")
    convert(tmp_path / "native", tmp_path / "hf", layout="hf")
    assert stored(tmp_path / "hf") == stored(source)


def test_config_and_text_files_are_carried_over(tmp_path):
    source = write_checkpoint(tmp_path / "source", rope_scaling=YARN)
    files = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json", "merges.txt")
    templates = ("additional_chat_templates/rag.jinja", "additional_chat_templates/tool_use.jinja")
    (source / "additional_chat_templates").mkdir()
    for name in (*files, *templates):
        (source / name).write_text(f"content of {name}")
    (source / "pytorch_model.bin").write_text("not this")
    out = tmp_path / "native"
    convert(source, out)
    assert {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()} == {
        *files,
        *templates,
        "config.json",
        "model.safetensors",
        "certificate.json",
    }
    assert all((out / name).read_text() == f"content of {name}" for name in (*files, *templates))
    before, after = (json.loads((f / "config.json").read_text()) for f in (source, tmp_path / "native"))
    note = {"format": 1, "layout": "native", "dtype": "float32", "quantization": None}
    assert after == {**before, "mlx_qwen3": note}
    convert(tmp_path / "native", tmp_path / "hf", layout="hf")
    assert json.loads((tmp_path / "hf" / "config.json").read_text()) == before


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("scaling", [None, YARN], ids=["default", "yarn"])
def test_the_hf_layout_loads_in_transformers_and_mlx_lm(
    tied, scaling, tmp_path, ids, transformers_model, transformers_states
):
    mlx_lm = pytest.importorskip("mlx_lm.utils")
    source = write_checkpoint(tmp_path / "source", tie_word_embeddings=tied, rope_scaling=scaling)
    convert(source, tmp_path / "native")
    convert(tmp_path / "native", tmp_path / "hf", layout="hf")
    ours = as_numpy(load_model(tmp_path / "native", "fp32")(mx.array(ids)))
    _, theirs = transformers_states(transformers_model(tmp_path / "hf"), ids)
    assert np.abs(ours - theirs).max() < 2e-5
    peer = as_numpy(mlx_lm.load_model(tmp_path / "hf")[0](mx.array(ids)))
    assert np.abs(ours - peer).max() < 5e-5  # measured 1e-5: their frequencies are less exact


def test_an_existing_folder_is_not_touched(tiny, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("data")
    with pytest.raises(OutputError, match="out exists already"):
        convert(tiny, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["precious"]


@pytest.mark.parametrize("failure", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_conversion_that_fails_at_its_end_is_not_published(tmp_path, monkeypatch, failure):
    def fail(*_):
        raise failure

    source = write_checkpoint(tmp_path / "source")
    monkeypatch.setattr(Certificate, "write", fail)  # after everything else is written
    with pytest.raises((OutputError, KeyboardInterrupt)):
        convert(source, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"source", ".out.partial"}


def test_a_file_in_place_of_the_parent_folder(tiny, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="file cannot be written"):
        convert(tiny, tmp_path / "file" / "out")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"layout": "gguf"}, UsageError, "layout is 'gguf'; expected native or hf"),
        ({"dtype": "int4"}, UsageError, "dtype is 'int4'"),
        ({"source": "/nowhere"}, SourceError, "there is no folder '/nowhere'"),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_written(tiny, tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        convert(**{"source": tiny, "out": tmp_path / "out", **options})
    assert list(tmp_path.iterdir()) == []


def test_a_broken_source_writes_nothing(tmp_path):
    source = write_checkpoint(tmp_path / "source", num_hidden_layers=3, weights=random_weights(TINY))
    with pytest.raises(Qwen3Error, match="lacks layers"):
        convert(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_progress_counts_every_byte_once(tiny, tmp_path):
    calls: list[tuple[Stage, int]] = []
    certificate = convert(tiny, tmp_path / "out", progress=lambda *call: calls.append(call))
    done: Counter[Stage] = Counter()
    for stage, count in calls:
        done[stage] += count
    writing, comparing = done
    assert (writing, done[writing]) == (Stage("writing", certificate.bytes, "bytes"), certificate.bytes)
    assert (comparing.name, comparing.unit, comparing.total) == ("comparing", "steps", done[comparing])


def test_an_existing_folder_is_refused_before_a_download(tmp_path):
    with pytest.raises(OutputError, match="exists already"):
        convert("Qwen/Nonexistent", tmp_path)


@pytest.mark.parametrize("name", ["..", ".", "", "demo", "./demo-moe"])
def test_out_needs_a_name_of_its_own(tiny, name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError, match="is the name of a model of the package" if "demo" in name else "has no name"):
        convert(tiny, Path(name) if name else "")


def test_parents_that_were_made_are_removed_again(tmp_path):
    weights = random_weights(TINY)
    weights["model.norm.weight"][0] = 70000
    source = write_checkpoint(tmp_path / "source", weights=weights)
    with pytest.raises(Qwen3Error, match="past float16"):
        convert(source, tmp_path / "new" / "folders" / "out", dtype="fp16")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda path: path.symlink_to("nowhere"), "is a link to a file that does not exist"),
        (lambda path: path.mkdir(), "is a folder, not a file"),
        (os.mkfifo, "is a named pipe, not a file"),
    ],
)
def test_a_file_to_carry_over_that_cannot_be_read_is_named(tmp_path, make, problem):
    source = write_checkpoint(tmp_path / "source")
    make(source / "merges.txt")
    with pytest.raises(CheckpointError, match=rf"merges\.txt {problem}"):
        convert(source, tmp_path / "out", divergence=False)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_both_styles_of_the_dtype_follow(tmp_path):
    source = write_checkpoint(tmp_path / "source", dtype="float32")
    convert(source, tmp_path / "out", dtype="bf16", divergence=False)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["dtype"], config["torch_dtype"]) == ("bfloat16", "bfloat16")
