"""`generate`: the options of the chat template."""

import json

import pytest
from checkpoints import TEMPLATE, VOCABULARY, write_checkpoint, write_tokenizer
from click.testing import CliRunner

from mlx_qwen3.cli.app import cli
from mlx_qwen3.text.tokenizer import Tokenizer

STYLE = "{{ style }}{% for m in messages %}{{ m.role }}:{{ m.content }} {% endfor %}"


@pytest.fixture(scope="module")
def chat(tmp_path_factory):
    folder = write_checkpoint(tmp_path_factory.mktemp("chat"), vocab_size=VOCABULARY, eos_token_id=258)
    write_tokenizer(folder, TEMPLATE)
    (folder / "additional_chat_templates").mkdir()
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    (folder / "additional_chat_templates" / "style.jinja").write_text(STYLE)
    return folder


def run(chat, *options):
    """(exit code, stdout, stderr) of a command in this process."""
    command = ["generate", "--model", str(chat), "--prompt", "hi", "--max-tokens", "1", "--json", *options]
    result = CliRunner().invoke(cli, command)
    return result.exit_code, result.stdout, result.stderr


def prompt_tokens(chat, *options):
    code, stdout, stderr = run(chat, *options)
    assert (code, stderr) == (0, "")
    return json.loads(stdout)["prompt_tokens"]


def test_a_template_is_chosen_by_name_or_file_and_its_variables_are_set(chat, tmp_path):
    named = prompt_tokens(chat, "--chat-template", "style", "--template-arg", 'style="brief "')
    assert named == len("brief user:hi ")
    own = tmp_path / "own.jinja"
    own.write_text("{{ style[1] }}{{ n + 1 }}{{ messages | length }}")
    options = ["--system", "s", "--template-arg", "style=[1, 22]", "--template-arg", "n=99"]
    assert prompt_tokens(chat, "--chat-template", str(own), *options) == len("221002")


def test_a_reply_may_be_begun(chat):
    expected = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\nSo a"
    assert prompt_tokens(chat, "--prefill", "So a") == len(Tokenizer(chat).encode(expected))
    code, stdout, _ = run(chat, "--prefill", "<think>\nSo", "--seed", "1", "--max-tokens", "8")
    reply = json.loads(stdout)
    assert (code, reply["text"]) == (0, "")
    assert "So" not in reply["thinking"] != ""


def test_thinking_may_be_switched_as_a_variable(chat):
    variable, option = (
        json.loads(run(chat, *options)[1]) for options in (["--template-arg", "enable_thinking=false"], ["--no-think"])
    )
    for key in ("top_p", "temperature"):
        assert variable["sampling"][key] == option["sampling"][key]
    assert variable["prompt_tokens"] == option["prompt_tokens"] > prompt_tokens(chat)


def test_control_tokens_of_a_message_stay_text(chat):
    """The end of a turn is one token, and ten letters as text."""
    tokens = {literal: prompt_tokens(chat, "--system", "a<|im_end|>", *literal) for literal in [(), ("--literal",)]}
    assert tokens["--literal",] - tokens[()] == len("<|im_end|>") - 1


REFUSED = {
    "raw and literal": (["--raw", "--literal"], 2, "--literal belongs to the chat template"),
    "raw and prefill": (["--raw", "--prefill", "x"], 2, "--prefill belongs to the chat template"),
    "raw and template": (["--raw", "--chat-template", "style"], 2, "--chat-template belongs to the chat template"),
    "raw and variable": (["--raw", "--template-arg", "a=1"], 2, "--template-arg belongs to the chat template"),
    "no value": (["--template-arg", "style"], 2, "--template-arg is 'style'; expected KEY=JSON"),
    "no name": (["--template-arg", "=1"], 2, "--template-arg is '=1'; expected KEY=JSON"),
    "no JSON": (["--template-arg", "style=brief"], 2, "'brief' is not JSON; text needs quotes"),
    "twice": (["--template-arg", "a=1", "--template-arg", "a=2"], 2, "--template-arg gives 'a' twice"),
    "unknown": (
        ["--template-arg", "stile=1"],
        2,
        "the chat template has no variable 'stile'; it reads enable_thinking",
    ),
    "an option": (["--template-arg", "messages=[]"], 2, "template_args may not set messages"),
    "no template": (["--chat-template", "rag"], 2, "there is no chat template 'rag'; give a file or a name: this "),
    "opposites": (["--think", "--template-arg", "enable_thinking=false"], 2, "to different values"),
}


@pytest.mark.parametrize(("options", "code", "message"), REFUSED.values(), ids=REFUSED)
def test_options_that_make_no_sense_are_refused(chat, options, code, message):
    found = run(chat, *options)
    assert found[:2] == (code, "")
    assert message in found[2]
    assert found[2].count("\n") == 1
