"""Which files belong to a checkpoint, and that no name of one leads out of its folder."""

import pytest

from mlx_qwen3.files.members import CARRIED, MEMBERS, is_member, members

TEMPLATE = "additional_chat_templates/tool_use.jinja"


def test_the_files_of_a_folder(tmp_path):
    names = [
        "config.json",
        "generation_config.json",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
    ]
    names += ["added_tokens.json", "merges.txt", "tokenizer.json", TEMPLATE]
    others = ["README.md", "consolidated.safetensors", "pytorch_model.bin", "additional_chat_templates/notes.txt"]
    others += ["onnx/config.json", "training_args.bin"]
    for name in [*names, *others]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    (tmp_path / "vocab.json").symlink_to("nowhere")
    assert members(tmp_path) == sorted([*names, "vocab.json"])
    assert members(tmp_path, CARRIED) == sorted(
        ["added_tokens.json", "merges.txt", "tokenizer.json", TEMPLATE, "generation_config.json", "vocab.json"]
    )


@pytest.mark.parametrize(
    "name",
    [
        "../config.json",
        "/config.json",
        "sub/config.json",
        "model/../x.safetensors",
        "model\0.safetensors",
        "additional_chat_templates/../x.jinja",
        "additional_chat_templates/a/b.jinja",
        "additional_chat_templates",
        "",
        "..",
    ],
)
def test_names_outside_a_checkpoint(name):
    assert not is_member(name)


@pytest.mark.parametrize("name", [pattern.replace("*", "-1") for pattern in MEMBERS])
def test_every_pattern_has_a_name(name):
    assert is_member(name)
