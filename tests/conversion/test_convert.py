"""Conversion: what comes out, that it comes back, and that nothing is lost when it fails."""

import json
import os
import shutil
from collections import Counter
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from arrays import as_numpy
from checkpoints import TINY, YARN, random_weights, stored, write_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from mlx_qwen3.conversion.certificate import Certificate
from mlx_qwen3.conversion.convert import convert
from mlx_qwen3.conversion.plan import parse_size
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


def test_parts_of_different_dtypes_are_not_forced_into_one(tmp_path):
    source = write_checkpoint(tmp_path / "source")
    arrays = {name: mx.array(value) for name, value in random_weights(TINY).items()}
    odd = "model.layers.0.self_attn.k_proj.weight"
    arrays[odd] = arrays[odd].astype(mx.bfloat16)
    mx.save_safetensors(str(source / "model.safetensors"), arrays)
    convert(source, tmp_path / "native")
    assert "layers.0.self_attn.k_proj.weight" in stored(tmp_path / "native")
    assert "layers.1.self_attn.qkv_proj.weight" in stored(tmp_path / "native")
    convert(tmp_path / "native", tmp_path / "hf", layout="hf")
    assert stored(tmp_path / "hf") == stored(source)
    same = mx.array([[1, 2, 3]])
    assert mx.array_equal(load_model(tmp_path / "native")(same), load_model(source)(same))


def test_names_and_shapes_of_the_native_layout(tiny, tmp_path):
    convert(tiny, tmp_path / "native")
    shapes = {name: shape for name, (_, shape, _) in stored(tmp_path / "native").items()}
    block = {
        "input_layernorm.weight": (48,),
        "self_attn.qkv_proj.weight": (200, 48),
        "self_attn.q_norm.weight": (20,),
        "self_attn.k_norm.weight": (20,),
        "self_attn.o_proj.weight": (48, 120),
        "post_attention_layernorm.weight": (48,),
        "mlp.gate_up_proj.weight": (160, 48),
        "mlp.down_proj.weight": (48, 80),
    }
    expected = {f"layers.{i}.{name}": shape for i in (0, 1) for name, shape in block.items()}
    assert shapes == {**expected, "embed_tokens.weight": (151, 48), "norm.weight": (48,)}


@pytest.mark.parametrize(("option", "dtype"), [("bf16", mx.bfloat16), ("fp16", mx.float16), ("fp32", mx.float32)])
@pytest.mark.parametrize("layout", ["native", "hf"])
def test_dtype_casts_every_tensor_once(tiny, option, dtype, layout, tmp_path):
    certificate = convert(tiny, tmp_path / "out", dtype=option, layout=layout)
    weights = mx.load(str(tmp_path / "out" / "model.safetensors"))
    assert {array.dtype for array in weights.values()} == {dtype}
    name = {"native": "layers.1.mlp.down_proj.weight", "hf": "model.layers.1.mlp.down_proj.weight"}[layout]
    expected = mx.array(random_weights(TINY)["model.layers.1.mlp.down_proj.weight"]).astype(dtype)
    assert mx.array_equal(weights[name], expected)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["torch_dtype"] == certificate.dtype == str(dtype).removeprefix("mlx.core.")


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


@settings(max_examples=20, deadline=None)
@given(limit=st.integers(1, 200_000))
def test_shards_hold_everything_once_whatever_their_size(tiny, tmp_path_factory, limit):
    out = tmp_path_factory.mktemp("shards") / "out"
    convert(tiny, out, layout="hf", shard_bytes=limit)
    assert stored(out) == stored(tiny)
    for path in out.glob("*.safetensors"):
        tensors = load_file(path)
        assert len(tensors) == 1 or sum(array.nbytes for array in tensors.values()) <= limit
    assert mx.array_equal(load_model(out)(mx.array([[1, 2]])), load_model(tiny)(mx.array([[1, 2]])))


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
def test_a_conversion_that_fails_leaves_nothing(tmp_path, monkeypatch, failure):
    def fail(*_):
        raise failure

    source = write_checkpoint(tmp_path / "source")
    monkeypatch.setattr(Certificate, "write", fail)  # after everything else is written
    with pytest.raises((OutputError, KeyboardInterrupt)):
        convert(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


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


def test_float16_overflow_is_refused_and_writes_nothing(tmp_path):
    weights = random_weights(TINY)
    weights["model.norm.weight"][0] = 70000
    source = write_checkpoint(tmp_path / "source", weights=weights)
    with pytest.raises(Qwen3Error, match=r"model\.norm\.weight reaches 70000, past float16's 65504"):
        convert(source, tmp_path / "out", dtype="fp16")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


# --- properties


@settings(max_examples=25, deadline=None)
@given(
    layers=st.integers(1, 3),
    head_dim=st.sampled_from([2, 6, 20]),
    kv_heads=st.integers(1, 3),
    repeats=st.integers(1, 3),
    inner=st.integers(1, 70),
    hidden=st.integers(1, 50),
    vocabulary=st.integers(1, 97),
    tied=st.booleans(),
    limit=st.integers(1, 20_000),
    prefix=st.booleans(),
)
def test_any_shape_names_and_split_come_back(
    tmp_path_factory, layers, head_dim, kv_heads, repeats, inner, hidden, vocabulary, tied, limit, prefix
):
    """To native in files of any size and back, from names with and without `model.`."""
    config = {
        "num_hidden_layers": layers,
        "head_dim": head_dim,
        "num_key_value_heads": kv_heads,
        "num_attention_heads": kv_heads * repeats,
        "intermediate_size": inner,
        "hidden_size": hidden,
        "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
    }
    folder = tmp_path_factory.mktemp("any")
    weights = random_weights({**TINY, **config})
    named = weights if prefix else {name.removeprefix("model."): value for name, value in weights.items()}
    source = write_checkpoint(folder / "source", {**TINY, **config}, named)
    native = convert(source, folder / "native", shard_bytes=limit, divergence=False)
    convert(folder / "native", folder / "hf", layout="hf", shard_bytes=limit, divergence=False)
    back = stored(folder / "hf")
    assert {name: (shape, raw) for name, (_, shape, raw) in back.items()} == {
        name: (value.shape, value.tobytes()) for name, value in weights.items()
    }
    assert {name for record in native.tensors for name in record.sources} == named.keys()


@settings(max_examples=25, deadline=None)
@given(limit=st.integers(1, 60_000), layout=st.sampled_from(["native", "hf"]))
def test_packed_tensors_split_over_files_are_the_same(tmp_path_factory, limit, layout):
    """A file may end between the weight and its scales."""
    folder = tmp_path_factory.mktemp("split")
    source = write_checkpoint(folder / "source", hidden_size=64, head_dim=32, intermediate_size=64)
    convert(source, folder / "one", quantize="affine4g32", layout=layout, divergence=False)
    convert(source, folder / "many", quantize="affine4g32", layout=layout, shard_bytes=limit, divergence=False)
    assert stored(folder / "many") == stored(folder / "one")
    for path in (folder / "many").glob("*.safetensors"):
        tensors = mx.load(str(path))
        assert len(tensors) == 1 or sum(array.nbytes for array in tensors.values()) <= limit
    index = folder / "many" / "model.safetensors.index.json"
    if index.exists():
        content = json.loads(index.read_text())
        assert content["weight_map"].keys() == stored(folder / "one").keys()
        assert content["metadata"]["total_size"] == sum(len(raw) for _, _, raw in stored(folder / "one").values())


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


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("5GB", 5 * 10**9),
        ("20G", 20 * 10**9),
        ("500MB", 5 * 10**8),
        ("512M", 512 * 10**6),
        ("4.1M", 4_100_000),
        ("4.1MB", 4_100_000),
        ("0.1 t", 10**11),
        ("2GiB", 2**31),
        ("1.5 kb", 1500),
        ("3b", 3),
    ],
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "5", "5000000000", "GB", "-1GB", "5 XB", "0GB", "0.1B", "1e9", "five", "5Gi", "٥GB", "nanGB"]
)
def test_sizes_that_are_none(text):
    with pytest.raises(UsageError, match="expected a number with a unit"):
        parse_size(text)


def test_progress_counts_every_byte_once(tiny, tmp_path):
    calls: list[tuple[Stage, int]] = []
    certificate = convert(tiny, tmp_path / "out", progress=lambda *call: calls.append(call))
    done: Counter[Stage] = Counter()
    for stage, count in calls:
        done[stage] += count
    writing, comparing = done
    assert (writing, done[writing]) == (Stage("writing", certificate.bytes, "bytes"), certificate.bytes)
    assert (comparing.name, comparing.unit, comparing.total) == ("comparing", "steps", done[comparing])


def test_an_existing_folder_is_told_before_a_download(tmp_path):
    with pytest.raises(OutputError, match="exists already"):
        convert("Qwen/Nonexistent", tmp_path)


@pytest.mark.parametrize("name", ["..", ".", ""])
def test_out_needs_a_name(tiny, name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputError, match="has no name of its own"):
        convert(tiny, Path(name) if name else "")


def test_parents_that_were_made_go_again(tmp_path):
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


def test_the_dtype_of_a_checkpoint_is_that_of_most_of_it(tmp_path):
    source = write_checkpoint(tmp_path / "source")
    arrays = {name: mx.array(value).astype(mx.bfloat16) for name, value in random_weights(TINY).items()}
    arrays["model.norm.weight"] = arrays["model.norm.weight"].astype(mx.float32)
    mx.save_safetensors(str(source / "model.safetensors"), arrays)
    assert convert(source, tmp_path / "out", divergence=False).dtype == "bfloat16"
