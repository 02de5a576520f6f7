"""A checkpoint folder as one object: every file is opened once, and a wrong one is named."""

import json
import os
import re
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from adapting import write_peft
from checkpoints import TINY, VOCABULARY, random_weights, write_checkpoint, write_shards, write_tokenizer
from safetensors.numpy import save_file

from mlx_qwen3.cli.app import cli
from mlx_qwen3.conversion import staging
from mlx_qwen3.conversion.convert import convert
from mlx_qwen3.conversion.plan import Options, make_plan
from mlx_qwen3.errors import CheckpointError
from mlx_qwen3.files.checkpoint import Checkpoint
from mlx_qwen3.model.load import load_model

INDEX = "model.safetensors.index.json"
opened: list[tuple[str, object, int]] | None = None  # (path, mode, flags) of every opened file, during a test


def _hook(event: str, arguments: tuple) -> None:
    if event == "open" and opened is not None and isinstance(arguments[0], str | os.PathLike):
        opened.append((os.fspath(arguments[0]), arguments[1], arguments[2]))


sys.addaudithook(_hook)  # Python announces every open, and a hook cannot be removed


def _load_no_path(load: Callable) -> Callable:
    """MLX's load, without files that it would open by itself."""

    def checked(file: Any, **options: Any) -> Any:
        assert not isinstance(file, str | os.PathLike), file
        return load(file, **options)

    return checked


@pytest.fixture
def reads(monkeypatch):
    """How often each file is opened for reading by this process; the libraries that open files by themselves fail."""
    monkeypatch.setattr(mx, "load", _load_no_path(mx.load))
    monkeypatch.setattr(staging, "sync", lambda path: None)  # opens files, but reads nothing
    monkeypatch.setattr(sys.modules[__name__], "opened", [])

    def count() -> Counter:
        return Counter(path for path, _, flags in opened if flags & os.O_ACCMODE == os.O_RDONLY)

    return count


@pytest.fixture
def chat(tmp_path):
    return write_shards(write_tokenizer(write_checkpoint(tmp_path / "chat", vocab_size=VOCABULARY)), 3)


def tensors(folder: Path) -> dict:
    return Checkpoint(folder).tensors


def once(folder: Path, counts: Counter) -> None:
    """config.json, the index and every file of weights were opened exactly once."""
    names = [path for path in folder.iterdir() if path.suffix == ".safetensors" or path.name in ("config.json", INDEX)]
    assert len(names) >= 5
    assert {path.name: counts[str(path)] for path in names} == {path.name: 1 for path in names}


def test_generate_opens_every_file_once(chat, tmp_path, reads, capsys):
    draft = write_shards(
        write_tokenizer(write_checkpoint(tmp_path / "draft", vocab_size=VOCABULARY, num_hidden_layers=1)), 3
    )
    options = ["--model", str(chat), "--draft", str(draft), "--prompt", "Hi", "--max-tokens", "3"]
    with pytest.raises(SystemExit) as ended:
        cli.main(["generate", *options])
    assert ended.value.code == 0, capsys.readouterr().err
    once(chat, reads())
    once(draft, reads())


def test_convert_opens_every_file_of_source_and_result_once(chat, tmp_path, reads):
    convert(chat, tmp_path / "out", shard_bytes=50_000)
    counts = reads()
    once(chat, counts)
    renamed = Counter({path.replace("/.out.partial/new/", "/out/"): number for path, number in counts.items()})
    once(tmp_path / "out", renamed)


def test_a_head_that_differs_from_the_embedding_is_refused_before_weights_are_used(tmp_path):
    """transformers 5 would use it, and transformers 4 the embedding."""
    weights = random_weights(TINY)
    weights["lm_head.weight"] = np.zeros_like(weights["model.embed_tokens.weight"])
    checkpoint = Checkpoint(write_checkpoint(tmp_path, weights=weights))
    assert "embed_tokens" in checkpoint.parts, "headers alone do not show it"
    with pytest.raises(CheckpointError, match=r"tie_word_embeddings is true, but lm_head\.weight differs"):
        load_model(checkpoint)
    with pytest.raises(CheckpointError, match=r"tie_word_embeddings is true, but lm_head\.weight differs"):
        make_plan(checkpoint, Options())


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16], ids=str)
def test_a_repeated_lm_head_may_have_another_dtype(tmp_path, dtype):
    folder = write_checkpoint(tmp_path)
    weights = {name: mx.array(value).astype(mx.bfloat16) for name, value in random_weights(TINY).items()}
    weights = {name: value.astype(dtype) if value.ndim == 2 else value for name, value in weights.items()}
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].astype(mx.float32)
    path = str(folder / "model.safetensors")
    mx.save_safetensors(path, weights)
    Checkpoint(folder).check_repeated_head()
    weights["lm_head.weight"][150, 47] += 1e-3
    mx.save_safetensors(path, weights)
    with pytest.raises(CheckpointError, match="differs from the embedding"):
        Checkpoint(folder).check_repeated_head()


def test_angles_of_rope_are_left_out_as_in_transformers(tmp_path, transformers_model, transformers_states, ids):
    weights = random_weights(TINY)
    for name, dtype in (
        ("model.rotary_emb.inv_freq", np.float64),
        ("model.layers.1.self_attn.rotary_emb.inv_freq", "f4"),
    ):
        weights[name] = np.full(10, 3.5, dtype)
    folder = write_checkpoint(tmp_path / "source", weights=weights)
    _, theirs = transformers_states(transformers_model(folder), ids)
    np.testing.assert_allclose(np.array(load_model(folder, "fp32")(mx.array(ids))), theirs, atol=1e-4)
    dropped = convert(folder, tmp_path / "out", divergence=False).dropped
    assert sorted(dropped) == ["model.layers.1.self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq"]


# --- the index


@pytest.mark.parametrize(
    "content",
    [
        {"weight_map": {"a": None}},
        {"weight_map": {"a": 3}},
        {"weight_map": {"a": ["model.safetensors"]}},
        {"weight_map": {"a": {"file": "model.safetensors"}}},
        {"weight_map": {"a": ""}},
        {"weight_map": {"a": ".."}},
        {"weight_map": {"a": "/etc/passwd"}},
        {"weight_map": {"a": "sub/model.safetensors"}},
        {"weight_map": {"a": "model\0.safetensors"}},
        {"weight_map": []},
        {"weight_map": ["model.safetensors"]},
        {"weight_map": "model.safetensors"},
        {"weight_map": 1},
        {"metadata": {}},
        {},
        [],
        None,
        "weight_map",
    ],
    ids=str,
)
def test_an_index_of_another_form_is_refused(tmp_path, content):
    folder = write_checkpoint(tmp_path)
    (folder / INDEX).write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.index\.json (has no weight|names|holds a)"):
        tensors(folder)


def test_an_index_needs_no_metadata(tmp_path):
    folder = write_shards(write_checkpoint(tmp_path), 3)
    (folder / INDEX).write_text(json.dumps({"weight_map": json.loads((folder / INDEX).read_text())["weight_map"]}))
    assert len(Checkpoint(folder).parts) == 2 + 11 * TINY["num_hidden_layers"]


def test_a_tensor_that_the_index_does_not_list_is_named(tmp_path):
    folder = write_shards(write_checkpoint(tmp_path), 3)
    index = json.loads((folder / INDEX).read_text())
    file = index["weight_map"].pop("model.layers.1.mlp.up_proj.weight")
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=rf"{file} holds .*1\.mlp\.up_proj\.weight, which .* not list"):
        tensors(folder)


def test_a_long_name_is_shortened(tmp_path):
    folder = write_shards(write_checkpoint(tmp_path), 3)
    index = json.loads((folder / INDEX).read_text())
    for file in ("x" * 5000, "y" * 5000 + "/z", "model-" + "z" * 200 + ".safetensors"):
        changed = index["weight_map"] | {"model.norm.weight": file}
        (folder / INDEX).write_text(json.dumps({"weight_map": changed}))
        with pytest.raises(CheckpointError, match=r"\.\.\..* characters\)") as error:
            tensors(folder)
        assert len(str(error.value)) < 600


# --- what changes


def test_what_changed_is_named_and_a_new_link_is_not_a_change(tmp_path):
    folder = write_tokenizer(write_checkpoint(tmp_path / "source"))
    checkpoint = Checkpoint(folder)
    before = checkpoint.stamps()
    assert {"config.json", "model.safetensors", "tokenizer.json"} < before.keys()
    (folder / "README.md").write_text("no part of the checkpoint")
    for name in before:
        os.link(folder / name, tmp_path / name)
    assert checkpoint.changed(before) is None
    status = (folder / "config.json").stat()
    content = (folder / "config.json").read_text()
    (folder / "config.json").write_text(content.replace("1e-06", "1e-05"))
    os.utime(folder / "config.json", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (folder / "config.json").stat().st_size == status.st_size
    assert checkpoint.changed(before) == "config.json"
    (folder / "config.json").write_text(content)
    os.utime(folder / "config.json", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert checkpoint.changed(before) is None
    (folder / "chat_template.jinja").write_text("new")
    assert checkpoint.changed(before) == "chat_template.jinja"


# --- the weights


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.pt", "model.pth"])
def test_pickle_weights_are_refused_by_name(tmp_path, name):
    (write_checkpoint(tmp_path) / "model.safetensors").rename(tmp_path / name)
    with pytest.raises(CheckpointError, match=f"{re.escape(name)}, a pickle file"):
        load_model(tmp_path)


def test_gguf_is_refused_with_what_to_take_instead(tmp_path):
    (write_checkpoint(tmp_path) / "model.safetensors").rename(tmp_path / "qwen3-q8_0.gguf")
    with pytest.raises(CheckpointError, match=r"qwen3-q8_0.gguf, a GGUF file; GGUF cannot be read; take the bf16"):
        load_model(tmp_path)
    (tmp_path / "config.json").unlink()  # as most folders of GGUF files are
    with pytest.raises(CheckpointError, match=r"qwen3-q8_0.gguf, a GGUF file"):
        load_model(tmp_path)


def test_of_the_folder_of_a_training_the_last_checkpoint_is_named(tmp_path):
    for step in ("checkpoint-90", "checkpoint-100"):
        write_peft(tmp_path / step)
    (tmp_path / "training_args.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"has checkpoints of a training, and no model; .*/checkpoint-100$"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    with pytest.raises(CheckpointError, match="has checkpoints of a training"):
        load_model(tmp_path)


def test_a_folder_without_weights_says_so(tmp_path):
    (write_checkpoint(tmp_path) / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"has no model\*\.safetensors"):
        load_model(tmp_path)


def spoiled_index(folder: Path, change: Any) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index["weight_map"])
    path.write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update({"model.norm.weight": "model-00009-of-00003.safetensors"}), "lacks model-00009"),
        (
            lambda m: m.update({"ghost.weight": "model-00001-of-00003.safetensors"}),
            "ghost.weight is in .*but in no file",
        ),
        (lambda m: m.update({"model.norm.weight": "../elsewhere.safetensors"}), "names the file '../elsewhere"),
        (lambda m: [m.pop(k) for k, v in list(m.items()) if "00002" in v], "has model-00002.*does not list"),
        (lambda m: m.clear(), "has no weight_map"),
    ],
)
def test_an_index_that_lies_is_refused(tmp_path, change, message):
    write_shards(write_checkpoint(tmp_path), 3)
    spoiled_index(tmp_path, change)
    with pytest.raises(CheckpointError, match=message):
        load_model(tmp_path)


def test_a_tensor_in_two_files_is_refused(tmp_path):
    write_checkpoint(tmp_path)
    save_file({"model.norm.weight": np.ones(48, np.float32)}, tmp_path / "model-extra.safetensors")
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight is stored twice"):
        load_model(tmp_path)
