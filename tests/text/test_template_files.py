"""Which template of a checkpoint is used: the one that transformers uses."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from chats import HI, TIME, TOKENS

from mlx_qwen3.errors import CheckpointError, PromptError, UsageError
from mlx_qwen3.files.members import TEMPLATES as FOLDER
from mlx_qwen3.text.template_files import ChatTemplates

NAMED = [{"name": "default", "template": "plain"}, {"name": "tool_use", "template": "tools"}]


def write(folder: Path, config: Any = None, file: str | None = None, **additional: str) -> ChatTemplates:
    """The templates of a folder: those of the config, the file, and those of the folder of additional ones."""
    folder.mkdir(exist_ok=True)
    if file is not None:
        (folder / "chat_template.jinja").write_bytes(file.encode())
    for name, source in additional.items():
        (folder / FOLDER).mkdir(exist_ok=True)
        (folder / FOLDER / f"{name}.jinja").write_text(source, encoding="utf-8")
    return ChatTemplates(folder, {"chat_template": config}, TOKENS)


def chosen(templates: ChatTemplates, wanted: Any = None, tools: Any = None) -> str:
    return templates.choose(wanted, tools is not None).render(HI, tools).text


FOLDERS: dict[str, dict[str, Any]] = {
    "text": {"config": "text of {{ messages[0].content }}"},
    "list": {"config": NAMED},
    "list of one": {"config": NAMED[:1]},
    "object": {"config": {"default": "plain", "tool_use": "tools", "rag": "rag"}},
    "same name twice": {"config": [*NAMED, {"name": "default", "template": "second"}]},
    "file": {"file": "文件 {{ messages[0].content }}"},
    "line ends of Windows": {"file": "a\r\n{% if true %}\r\nb{{ 'c\r\nd' }}\r\n{% endif %}\r\n"},
    "file and config": {"config": NAMED, "file": "file"},
    "file and folder": {"file": "file", "tool_use": "tools", "rag": "rag"},
    "folder and config": {"config": "text", "tool_use": "tools", "default": "default of the folder"},
    "default in the folder": {"file": "file", "default": "default of the folder"},
}


@pytest.mark.parametrize("tools", [None, [], [TIME]])
@pytest.mark.parametrize("files", FOLDERS.values(), ids=FOLDERS)
def test_the_template_is_that_of_transformers(tmp_path: Path, files: dict[str, Any], tools: Any) -> None:
    import tokenizers

    transformers = pytest.importorskip("transformers")
    templates = write(tmp_path, **files)
    tokenizers.Tokenizer(tokenizers.models.BPE({"<end>": 0, "<pad>": 1}, [])).save(str(tmp_path / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": files.get("config")}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    expected = theirs.apply_chat_template(HI, tools=tools, tokenize=False, add_generation_prompt=True)
    assert chosen(templates, tools=tools) == expected


def test_what_transformers_saves_is_read(tmp_path: Path) -> None:
    import tokenizers

    transformers = pytest.importorskip("transformers")
    backend = tokenizers.Tokenizer(tokenizers.models.BPE({"<end>": 0}, []))
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=backend)
    theirs.chat_template = {"default": "plain", "tool_use": "{{ tools[0].function.name }}", "rag": "rag"}
    theirs.save_pretrained(tmp_path)
    assert (tmp_path / FOLDER / "tool_use.jinja").is_file()
    templates = write(tmp_path)
    assert [chosen(templates), chosen(templates, tools=[TIME]), chosen(templates, "rag")] == ["plain", "now", "rag"]


def test_a_template_is_chosen_by_name_file_or_text(tmp_path: Path) -> None:
    templates = write(tmp_path, NAMED)
    own = tmp_path / "own.jinja"
    own.write_text("own {{ messages[0].content }}")
    assert chosen(templates, "tool_use") == "tools"
    assert chosen(templates, "default", tools=[TIME]) == "plain"
    assert chosen(templates, own) == chosen(templates, str(own)) == "own hi"
    assert chosen(templates, "text {{ messages[0].content }}") == "text hi"
    assert chosen(write(tmp_path / "empty"), own) == "own hi"
    reader, writer = os.pipe()  # as the shell's <(...) gives it
    os.write(writer, b"piped")
    os.close(writer)
    assert chosen(templates, f"/dev/fd/{reader}") == "piped"
    os.close(reader)


@pytest.mark.parametrize("wanted", ["tool_uses", "/nowhere/x.jinja", "x" * 5000, "a\0b", "", Path("nothing")])
def test_a_template_that_does_not_exist_is_refused(tmp_path: Path, wanted: Any) -> None:
    with pytest.raises(UsageError, match=r"no chat template .*: this checkpoint has default, tool_use") as caught:
        chosen(write(tmp_path, NAMED), wanted)
    assert len(str(caught.value)) < 250


def test_a_given_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "own").write_bytes(b"\xff\xfe{")
    with pytest.raises(UsageError, match="own is not UTF-8 text"):
        chosen(write(tmp_path, NAMED), tmp_path / "own")


@pytest.mark.parametrize("config", [None, [], "", {}])
def test_without_a_template_the_remedy_is_named(tmp_path: Path, config: Any) -> None:
    templates = write(tmp_path, config)
    assert not templates.has_default
    with pytest.raises(PromptError, match=r"has no chat template.*--chat-template FILE.*--raw"):
        chosen(templates)


def test_without_a_default_the_names_are_listed(tmp_path: Path) -> None:
    for templates in (write(tmp_path, {"rag": "x", "tool_use": "tools"}), write(tmp_path, rag="x", tool_use="tools")):
        with pytest.raises(PromptError, match=r"none is the default; choose one .*: rag, tool_use"):
            chosen(templates)
        assert chosen(templates, tools=[TIME]) == "tools"
        assert chosen(templates, "rag") == "x"


@pytest.mark.parametrize(
    "config",
    [
        5,
        True,
        [5],
        ["x"],
        [{"name": "default"}],
        [{"template": "x"}],
        [{"name": 5, "template": "x"}],
        [{"name": "default", "template": None}],
        [{"name": "default", "template": ["x"]}],
        {"default": 5},
        {"default": {"template": "x" * 9999}},
    ],
)
def test_a_template_that_is_not_text_is_refused(tmp_path: Path, config: Any) -> None:
    with pytest.raises(CheckpointError, match=r"chat[ _]template") as caught:
        write(tmp_path, config)
    assert len(str(caught.value)) < 250


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff\xfe{")
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja is not UTF-8 text"):
        write(tmp_path, NAMED)


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_not_a_regular_file_is_refused(tmp_path: Path, make: Any) -> None:
    make(tmp_path / "chat_template.jinja")
    with pytest.raises(CheckpointError, match=r"chat_template\.jinja is a (named pipe|folder), not a file"):
        write(tmp_path, NAMED)
