"""`chat`: lines from a pipe, in a dumb terminal and in an editor; Ctrl-C; errors that do not end it."""

import json
import os
import re

import pytest
from checkpoints import TEMPLATE, VOCABULARY, write_checkpoint, write_tokenizer
from click.testing import CliRunner
from terminals import Terminal

from mlx_qwen3.cli.app import cli
from mlx_qwen3.engine import engine as engines

QUESTION, ANSWER = "What is 17 + 25?", "17 + 25 = 42."


def run(*lines, options=(), source="demo"):
    """(exit code, stdout, stderr) of a chat that is given these lines."""
    command = ["chat", source, "--temp", "0", *options]
    result = CliRunner().invoke(cli, command, input="\n".join(lines) + "\n")
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture(scope="module")
def endless(tmp_path_factory):
    """A model whose greedy replies are the letter z, up to the end of a long context."""
    folder = write_checkpoint(
        tmp_path_factory.mktemp("endless"), vocab_size=VOCABULARY, eos_token_id=258, max_position_embeddings=100_000
    )
    begun = TEMPLATE.replace("<|im_start|>assistant\n", "<|im_start|>assistant\nz")  # tied weights repeat a token
    return str(write_tokenizer(folder, begun))


def test_turns_from_a_pipe():
    code, stdout, stderr = run(QUESTION, "", "hello", options=["--no-think"])
    assert code == 0
    assert stdout.splitlines()[0] == ANSWER
    assert len(stdout.splitlines()) == 2
    assert stderr == ""


def test_thinking_is_shown_or_hidden():
    _, stdout, stderr = run(QUESTION, "/thinking", "/retry", "/thinking")
    assert stdout.startswith("<think>\n17 + 25")
    assert stdout.count("<think>") == 1
    assert stdout.count(ANSWER) == 2
    assert "(thinking ... " in stderr
    assert stderr.count("1 + 2: 1 + 2 + 1 = 4") == 1  # the hidden one, when it is shown again


def test_commands(tmp_path):
    file = tmp_path / "talk.json"
    code, stdout, stderr = run(
        "/no-think", QUESTION, f"/save {file}", "/undo", "/undo", "/stats", f"/load {file}", "/retry", "/stats",
        "/temp 0.5", "/temp", "/temp default", "/temp hot", "/top-k 3", "/system Be brief.", "/system none",
        "/seed 1", "/max-tokens 9", "/think", "/new", "/retry", "/udno", "/help", "/quit", "hello",
    )  # fmt: skip
    assert code == 0
    assert stdout == f"{ANSWER}\n{ANSWER}\n"
    assert json.loads(file.read_text())["messages"][1]["content"] == ANSWER
    for line in (
        f"1 turn saved to {file}",
        "error: there is no turn to undo",
        "0 turns, 0 of 4,096 tokens (0%)",
        f"1 turn loaded from {file}",
        "last reply: ",
        "temp: 0.5",
        "temp: default",
        "error: /temp is 'hot'; expected a number, or default",
        "top-k: 3",
        "system: Be brief.",
        "there is no system message",
        "seed: 1",
        "max-tokens: 9",
        "thinking is on",
        "error: there is no turn to ask again",
        "error: there is no /udno, did you mean /undo?",
        "/think-budget X",
    ):
        assert line in stderr, line


def test_a_line_may_go_on_and_a_space_makes_a_slash_text():
    _, stdout, stderr = run("What is \\", "17 + 25?", " /undo", "/stats", options=["--no-think", "--max-tokens", "3"])
    assert len(stdout.splitlines()) == 2
    assert "2 turns" in stderr
    assert stderr.count("the reply was cut at its token limit") >= 1


def test_errors_end_nothing(tmp_path, monkeypatch):
    bad = tmp_path / "bad.json"
    bad.write_text("{")
    hot = tmp_path / "hot.json"
    hot.write_text('{"format": "mlx-qwen3 chat 1", "settings": {"sampling": {"temperature": "hot"}}, "messages": []}')
    submit, seen = engines.Engine.submit, []

    def failing(engine, request):
        seen.append(request)
        if len(seen) == 1:
            raise ZeroDivisionError("oh")
        return submit(engine, request)

    monkeypatch.setattr(engines.Engine, "submit", failing)
    code, stdout, stderr = run(
        "a", f"/load {bad}", f"/load {hot}", "/load", "x " * 5000, QUESTION, "/stats", options=["--no-think"]
    )
    assert (code, stdout) == (0, f"{ANSWER}\n")
    assert "error: unexpected ZeroDivisionError: oh" in stderr
    assert f"error: {bad} is not JSON" in stderr
    assert f"error: {hot}: temperature is 'hot'; expected a number" in stderr
    assert "fill the context of 4096" in stderr
    assert "1 turn," in stderr  # what failed is not in the history


def test_the_end_of_the_context_is_announced(tmp_path):
    shape = {"vocab_size": VOCABULARY, "eos_token_id": 258, "max_position_embeddings": 400}
    source = str(write_tokenizer(write_checkpoint(tmp_path, **shape)))
    _, _, stderr = run("x y " * 80, options=["--no-think", "--max-tokens", "2"], source=source)
    assert re.search(r"warning: the conversation takes 3\d\d of 400 tokens", stderr)


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--top-p", "7"], 2, "--top-p is 7.0; expected a number in (0, 1] (1 is off)"),
        (["--kv-bits", "5"], 2, "--kv-bits is 5; expected 8 or 4, or leave it out for an unquantized cache"),
        (["--memory", "12"], 2, "--memory is '12'; expected a number with a unit, such as 5GB, 500M or 2GiB"),
        (["--memory", "1MB"], 1, "the weights take 20.33 MB and the memory budget is 1.00 MB; use fewer bits"),
        (["--template-arg", "mood=1"], 2, "the chat template has no variable 'mood'"),
        (["--chat-template", "rag"], 2, "there is no chat template 'rag'"),
        (["--stop", ""], 2, "a stop string is empty"),
        (["--cache-dir", "/dev/null"], 1, "/dev/null cannot be used as a folder of prefixes"),
        (["--draft", "/nowhere"], 1, "there is no folder '/nowhere'"),
    ],
)
def test_what_no_chat_can_honour_is_refused_at_once(options, code, message):
    found = run("hello", options=options)
    assert found[:2] == (code, "")
    assert found[2].startswith(f"error: {message}")
    assert found[2].count("\n") == 1


def test_the_options_of_a_reply_hold_in_a_chat(tmp_path):
    template = tmp_path / "own.jinja"
    template.write_text(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{{ style }}<|im_end|>\n{% endfor %}"
        "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )
    question = QUESTION.removesuffix("?")
    options = ["--chat-template", template, "--template-arg", 'style="?"', "--stop", " = ", "--literal"]
    file = tmp_path / "talk.json"
    assert run(question, f"/save {file}", options=options)[:2] == (0, "17 + 25\n")
    assert run(f"/load {file}", "/retry")[:2] == (0, "17 + 25\n")
    settings = json.loads(file.read_text())["settings"]
    assert (settings["stop"], settings["template_args"], settings["literal_content"]) == ([" = "], {"style": "?"}, True)


def test_drafts_and_the_cache_of_a_chat(tmp_path):
    """They change no token here. The second chat finds the files of the first one."""
    common = ["--no-think", "--system", "Be brief. " * 5]  # too short a beginning is not worth a file
    plain = run(QUESTION, options=common)[1]
    for cached in (False, True):
        options = ["--cache-dir", tmp_path / "kept", "--kv-bits", "8"]
        _, stdout, stderr = run(QUESTION, "/stats", options=[*common, *options])
        assert stdout == plain
        assert ("of them cached" in stderr) is cached
    for options in (["--draft", "demo"], ["--lookup"], ["--no-lookup"]):
        _, stdout, stderr = run(QUESTION, "/stats", options=[*common, *options])
        assert stdout == plain
        assert ("drafts" in stderr) is (options == ["--lookup"])  # a draft model as large as the model is not asked


def interrupt_a_reply(terminal: Terminal) -> None:
    """Ctrl-C ends the reply, and the conversation continues with the part that was made."""
    terminal.expect("/help lists the commands")
    terminal.expect(">")
    terminal.type("hi\r")
    terminal.expect("zzzz")
    terminal.type("\x03")
    terminal.expect("the reply was interrupted; /undo drops it")
    terminal.expect("of 100,000 tokens")
    terminal.expect(">")


def interrupt_twice(terminal: Terminal) -> None:
    """Two more at the prompt end the chat."""
    terminal.type("\x03")
    terminal.expect("Ctrl-C again, or /quit, ends the chat")
    terminal.expect(">")
    terminal.type("\x03")
    assert terminal.end() == 130
    assert "Traceback" not in terminal.shown


def test_in_a_dumb_terminal(endless):
    with Terminal("chat", endless, "--temp", "0", TERM="dumb") as terminal:
        interrupt_a_reply(terminal)
        terminal.type("/stats\r")
        terminal.expect("1 turn,")
        terminal.expect(">")
        interrupt_twice(terminal)
        assert "\x1b" not in terminal.shown


def test_in_the_editor(endless):
    """Completion, history and several lines, as prompt_toolkit has them."""
    pytest.importorskip("prompt_toolkit")
    with Terminal("chat", endless, "--temp", "0", "--max-tokens", "9000") as terminal:
        interrupt_a_reply(terminal)
        terminal.type("/max-t")
        terminal.expect("/max-tokens")  # what completes it
        terminal.type("\t 2\r")
        terminal.expect("max-tokens: 2")
        terminal.expect(">")
        terminal.type("\x1a")  # Ctrl-Z: no shell is here that could stop the process, so the prompt is drawn again
        terminal.expect(">")
        terminal.type("/stats\r")
        terminal.expect("1 turn,")
        terminal.expect(">")
        terminal.type("\x1b[A\r")  # the line before
        terminal.expect("1 turn,")
        terminal.expect(">")
        terminal.type("two\x1b\rlines\r")
        terminal.expect("the reply was cut at its token limit")
        terminal.expect(">")
        terminal.type("/undo\r")
        terminal.expect(r"'two\nlines'")
        terminal.expect(">")
        interrupt_twice(terminal)
        assert "^Z" not in terminal.shown


def test_a_terminal_without_the_editor(endless, tmp_path):
    (tmp_path / "prompt_toolkit.py").write_text("raise ImportError")
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    with Terminal("chat", endless, "--max-tokens", "3", "--temp", "0", PYTHONPATH=path) as terminal:
        terminal.expect("pip install 'mlx-qwen3[chat]'")
        terminal.expect(">")
        terminal.type("hi\r")
        terminal.expect("zzz")
        terminal.type("\x04")
        assert terminal.end() == 0
