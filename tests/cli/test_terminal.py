"""What reaches a terminal, a pipe, a stream that is closed or full, and what comes from standard input."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import VOCABULARY, write_checkpoint, write_tokenizer
from commands import GENERATE, QUIET, ROOT, here, run


def test_thinking_stands_in_tags_in_a_pipe_and_is_dimmed_on_a_terminal(chat, tmp_path):
    """The prompt ends in an open think block, so all that random weights say is thinking."""
    template = "{{ messages[0].content }}<think>\n"
    folder = write_tokenizer(write_checkpoint(tmp_path, vocab_size=VOCABULARY), template)
    command = [*GENERATE, "--prompt", "hi", "--model", str(folder), "--max-tokens", "8", "--seed", "1"]
    piped = run(*command).stdout
    assert piped.startswith(b"<think>\n")
    assert piped.endswith(b"</think>\n\n")
    ours, theirs = pty.openpty()
    assert run(*command, capture_output=False, stdout=theirs, stderr=subprocess.DEVNULL).returncode == 0
    os.close(theirs)
    shown = os.read(ours, 4096)
    os.close(ours)
    assert shown.startswith(b"\x1b[2m")
    assert b"\x1b[0m" in shown


def test_a_reader_that_closes_early_is_no_error(chat):
    command = [*GENERATE, "--prompt", "hi", "--model", str(chat), "--seed", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=QUIET) as process:
        process.stdout.read(1)
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=30) == 1


CLOSED = {
    "stdin": ("--prompt - <&-", 2, "standard input is empty"),
    "stdout": ("--prompt x --max-tokens 2 >&-", 0, "2 generated"),
    "full": ("--prompt x --max-tokens 2 >/dev/full", 1, "No space left on device"),
}


@pytest.mark.parametrize(("redirection", "code", "message"), CLOSED.values(), ids=CLOSED.keys())
def test_streams_that_are_closed_or_full(chat, redirection, code, message):
    if redirection.endswith("/dev/full") and not Path("/dev/full").exists():
        pytest.skip("/dev/full is Linux's")
    command = f"{sys.executable} {ROOT / 'generate.py'} --raw --model '{chat}' {redirection}"
    result = run("sh", "-c", command)
    assert (result.returncode, result.stderr.count(b"\n")) == (code, 1)
    assert message in result.stderr.decode()


def test_a_terminal_without_unicode_gets_question_marks(chat):
    """Random weights write bytes that are no characters, which come out as U+FFFD."""
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
    assert (result.returncode, result.stdout) == (1, b"<think>\nhm\n</think>\n\n")
    assert b"out of memory" in result.stderr


def test_input_that_is_no_text(chat):
    result = here("generate", "--prompt", "-", "--model", chat, input=b"\xff\xfe")
    assert result.returncode == 2
    assert b"standard input is not UTF-8 text" in result.stderr
