"""Opening files of any kind: only a regular file is read, and anything else is an error in one line."""

import os
import socket
from pathlib import Path

import pytest
from checkpoints import VOCABULARY, write_checkpoint, write_tokenizer

from mlx_qwen3.conversion.convert import convert
from mlx_qwen3.errors import CheckpointError
from mlx_qwen3.files.reading import exists, open_file, parse_json, read_file, read_json, read_text, short
from mlx_qwen3.model.load import load_model
from mlx_qwen3.text.tokenizer import Tokenizer


def bound(path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


ODD = {
    "missing": (lambda path: None, "does not exist; download the checkpoint again"),
    "dangling": (lambda path: path.symlink_to("nowhere"), "is a link to a file that does not exist"),
    "folder": (lambda path: path.mkdir(), "is a folder, not a file"),
    "pipe": (os.mkfifo, "is a named pipe, not a file"),  # opening it would wait for ever
    "socket": (bound, "is a socket, not a file"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "is a device, not a file"),  # reading it would never end
    "loop": (lambda path: path.symlink_to(path), "cannot be read"),
}


@pytest.mark.parametrize(("make", "message"), ODD.values(), ids=ODD)
@pytest.mark.parametrize("read", [open_file, read_file, read_text, read_json])
def test_what_is_not_a_regular_file_is_named(read, make, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    path = tmp_path / "x"
    make(path if make is not bound else "x")
    with pytest.raises(CheckpointError, match=message) as error:
        read(path)
    assert str(path) in str(error.value)


def test_a_link_to_a_file_is_the_file(tmp_path):
    (tmp_path / "blob").write_text('{"a": 1}')
    (tmp_path / "x").symlink_to("blob")
    assert read_json(tmp_path / "x") == {"a": 1}


@pytest.mark.parametrize("name", ["a\0b", "x" * 5000])
def test_a_name_that_no_file_can_have(name, tmp_path):
    assert not exists(tmp_path / name)
    with pytest.raises(CheckpointError, match="cannot be read"):
        open_file(tmp_path / name)


def test_existence_counts_links_that_lead_nowhere(tmp_path):
    (tmp_path / "x").symlink_to("nowhere")
    assert exists(tmp_path / "x")
    assert not exists(tmp_path / "y")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is not valid JSON"),
        (b"{", "is not valid JSON"),
        (b'{"a": "\xff"}', "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b"[]", "holds a list, not a JSON object"),
        (b"null", "holds a NoneType, not a JSON object"),
    ],
    ids=["empty", "cut", "not UTF-8", "nested", "list", "null"],
)
def test_what_is_not_a_json_object_is_named(content, message, tmp_path):
    with pytest.raises(CheckpointError, match=message):
        parse_json(tmp_path / "config.json", content)


def test_text_must_be_utf_8(tmp_path):
    (tmp_path / "x").write_bytes(b"\xff")
    with pytest.raises(CheckpointError, match="is not UTF-8 text"):
        read_text(tmp_path / "x")


def test_a_long_name_is_cut_in_the_middle():
    assert short("x" * 120) == "x" * 120
    assert short("a" * 2000 + "b" * 3000) == "a" * 60 + "..." + "b" * 60 + " (5000 characters)"


# --- who opens them


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write_tokenizer(write_checkpoint(tmp_path_factory.mktemp("whole"), vocab_size=VOCABULARY))


USES = {
    "model": load_model,
    "tokenizer": Tokenizer,
    "conversion": lambda folder: convert(folder, folder.parent / "out"),
}
MODEL, TEXT = frozenset({"model", "conversion"}), frozenset({"tokenizer", "conversion"})
READ = {
    "config.json": USES.keys(),
    "model.safetensors": MODEL,
    "model.safetensors.index.json": MODEL,
    "generation_config.json": TEXT,
    "tokenizer.json": TEXT,
    "tokenizer_config.json": TEXT,
    "added_tokens.json": TEXT,
    "special_tokens_map.json": TEXT,
    "chat_template.jinja": TEXT,
    "additional_chat_templates/tool_use.jinja": TEXT,
    "vocab.json": {"conversion"},  # the tokenizer reads it, and merges.txt, if there is no tokenizer.json
    "merges.txt": {"conversion"},
}


@pytest.mark.parametrize("what", ["pipe", "folder", "device"])
@pytest.mark.parametrize("name", READ)
def test_every_file_of_a_checkpoint_is_checked(whole, name, what, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for path in whole.iterdir():
        os.link(path, folder / path.name)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).unlink(missing_ok=True)
    ODD[what][0](folder / name)
    for use in READ[name]:
        with pytest.raises(CheckpointError, match=rf"{Path(name).name} {ODD[what][1]}"):
            USES[use](folder)
    assert not (tmp_path / "out").exists()
