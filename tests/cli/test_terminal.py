"""Output to a terminal, a pipe, and a stream that is closed or full; input from standard input."""

import io
import json
import os
import pty
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
from checkpoints import VOCABULARY, write_checkpoint, write_tokenizer
from commands import GENERATE, QUIET, ROOT, here, run

from mlx_qwen3.cli import terminal
from mlx_qwen3.cli.app import cli
from mlx_qwen3.cli.terminal import Printer, one_line
from mlx_qwen3.table import escape

TITLE = "\x1b]0;owned\x07"
ATTACKS = {
    "colour": "\x1b[31mred",
    "title": TITLE,
    "clipboard": "\x1b]52;c;aGk=\x1b\\",
    "C1 CSI": "\x9b31mred",
    "C1 OSC": "\x9d0;owned\x9c",
    "backspace": "safe\b\b\b\bevil",
    "return": "safe\revil",
    "delete": "a\x7f",
    "shift out": "\x0e\x0f",
    "null": "a\x00b",
    "form feed": "\x0b\x0c",
}
HARMLESS = (
    "plain\n\ttext\r\n",
    "👩‍👩‍👧 🇩🇪 👍🏽",
    "e\u0301 \u0928\u093f",
    "\u0645\u0631\u062d\u0628\u0627 \u200f!",
    "你好",
    "\ufeff\u00a0\u2028",
)


def test_thinking_is_in_tags_in_a_pipe_and_dimmed_on_a_terminal(chat, tmp_path):
    """The prompt ends in an open think block, so everything that random weights say is thinking."""
    template = "{{ messages[0].content }}<think>\n"
    folder = write_tokenizer(write_checkpoint(tmp_path, vocab_size=VOCABULARY), template)
    command = [*GENERATE, "--prompt", "hi", "--model", str(folder), "--max-tokens", "8", "--seed", "1"]
    piped = run(*command).stdout
    assert piped.startswith(b"<think>\n")
    assert b"</think>" not in piped  # the reply was cut
    assert piped.endswith(b"\n")
    ours, theirs = pty.openpty()
    assert run(*command, capture_output=False, stdout=theirs, stderr=subprocess.DEVNULL).returncode == 0
    os.close(theirs)
    shown = b""
    with suppress(OSError):  # the end, after the last byte
        while part := os.read(ours, 4096):
            shown += part
    os.close(ours)
    assert shown.startswith(b"\x1b[2m")
    assert b"\x1b[0m" in shown


def test_a_reader_that_closes_early_is_not_an_error(chat):
    command = [*GENERATE, "--prompt", "hi", "--model", str(chat), "--seed", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=QUIET) as process:
        process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=60) == 1


CLOSED = {
    "stdin": ("--prompt - <&-", 2, 1, "standard input is empty"),
    "stdout": ("--prompt x --max-tokens 2 >&-", 0, 2, "2 tokens, "),
    "full": ("--prompt x --max-tokens 2 >/dev/full", 1, 1, "No space left on device"),
}


@pytest.mark.parametrize(("redirection", "code", "lines", "message"), CLOSED.values(), ids=CLOSED.keys())
def test_streams_that_are_closed_or_full(chat, redirection, code, lines, message):
    if redirection.endswith("/dev/full") and not Path("/dev/full").exists():
        pytest.skip("/dev/full is Linux's")
    command = f"{sys.executable} {ROOT / 'generate.py'} --raw --model '{chat}' {redirection}"
    result = run("sh", "-c", command)
    assert (result.returncode, result.stderr.count(b"\n")) == (code, lines)
    assert message in result.stderr.decode()


def test_a_terminal_without_unicode_gets_question_marks(chat):
    """Random weights write bytes that are not characters, which come out as U+FFFD."""
    environment = {**QUIET, "PYTHONIOENCODING": "ascii"}
    result = run(*GENERATE, "--prompt", "hi", "--model", chat, "--max-tokens", "40", "--seed", "1", env=environment)
    assert result.returncode == 0
    assert b"?" in result.stdout


def test_an_error_in_mid_reply_ends_the_line(chat):
    program = """
import sys
from mlx_qwen3.cli import app
from mlx_qwen3.engine import reply as generation
def run(*_):
    yield generation.Chunk(1, "", "hm")
    raise RuntimeError("out of memory")
generation.run = run
app.run(sys.argv[1:])
"""
    result = run(sys.executable, "-c", program, "generate", "--prompt", "hi", "--model", chat, cwd=ROOT)
    assert (result.returncode, result.stdout) == (1, b"<think>\nhm\n")
    assert b"out of memory" in result.stderr


def test_input_that_is_not_text(chat):
    result = here("generate", "--prompt", "-", "--model", chat, input=b"\xff\xfe")
    assert result.returncode == 2
    assert b"standard input is not UTF-8 text" in result.stderr


@pytest.fixture
def screen(screen, monkeypatch):
    """A terminal in place of stdout."""
    monkeypatch.setattr(terminal, "sys", SimpleNamespace(stdout=screen, stderr=screen))
    return screen


def control(text):
    return [
        character for character in text if (ord(character) < 32 or 127 <= ord(character) < 160) and character != "\n"
    ]


@pytest.mark.parametrize("text", ATTACKS.values(), ids=ATTACKS.keys())
def test_control_characters_become_visible(text):
    assert control(escape(text)) == []
    assert "\\x" in escape(text)
    assert escape(text).encode("ascii")


@pytest.mark.parametrize("text", HARMLESS)
def test_other_text_stays_as_it_is(text):
    assert escape(text) == text


def test_a_message_is_one_line_in_one_direction():
    assert one_line(f"a\n b\t{TITLE}\u202eevil\u2066") == "a b \\x1b]0;owned\\x07\\u202eevil\\u2066"


def test_a_reply_on_a_terminal_is_escaped_and_its_thinking_dimmed(screen):
    with Printer() as printer:
        printer.step("", "hm" + TITLE)
        printer.step(TITLE, "")
    assert screen.getvalue() == "\x1b[2mhm\\x1b]0;owned\\x07\n\x1b[0m\n\\x1b]0;owned\\x07\n"


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_a_terminal_without_colours_gets_tags(screen, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with Printer() as printer:
        printer.step("", "hm")
        printer.step("yes", "")
    assert screen.getvalue() == "<think>\nhm\n</think>\n\nyes\n"


def test_no_colour_has_to_be_said(screen, monkeypatch):
    monkeypatch.setenv("NO_COLOR", "")  # https://no-color.org: when not empty
    with Printer() as printer:
        printer.step("", "hm")
    assert "\x1b[2m" in screen.getvalue()


def test_a_pipe_gets_the_text_as_it_is(monkeypatch):
    pipe = io.StringIO()
    monkeypatch.setattr(terminal, "sys", SimpleNamespace(stdout=pipe))
    with Printer() as printer:
        printer.step(TITLE, "")
    assert pipe.getvalue() == TITLE + "\n"


@pytest.mark.parametrize("text", [*ATTACKS.values(), *HARMLESS, "caf\udce9"])
def test_json_means_the_same_and_is_safe(capsys, text):
    terminal.show_json({"text": text, "number": float("nan")})
    printed = capsys.readouterr().out
    assert control(printed) == []
    assert json.loads(printed) == {"text": text, "number": None}


def test_messages_and_results_are_escaped(screen, capsys):
    terminal.say(f"note: {TITLE}")
    terminal.show(f"table {TITLE}")
    shown = capsys.readouterr()
    assert control(shown.err + shown.out) == []


@pytest.mark.parametrize("arguments", [["inspect", f"/nowhere/{TITLE}"], ["verify", f"x{TITLE}\ny"], [f"--{TITLE}"]])
def test_an_error_is_one_line_whatever_was_given(capsys, arguments):
    with pytest.raises(SystemExit):
        cli.main(arguments)
    line = capsys.readouterr().err
    assert (line.count("\n"), control(line)) == (1, [])


def test_a_broken_checkpoint_does_not_reach_the_terminal(capsys, tmp_path):
    config = {"model_type": "qwen3" + TITLE}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(SystemExit):
        cli.main(["inspect", str(tmp_path)])
    line = capsys.readouterr().err
    assert "\\x1b]0;owned\\x07" in line
    assert (line.count("\n"), control(line)) == (1, [])
