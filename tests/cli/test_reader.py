"""Where a chat's lines come from; test_chat.py reads them from real terminals."""

import io
import sys
from types import SimpleNamespace

import pytest

from mlx_qwen3.cli import reader
from mlx_qwen3.cli.reader import PlainReader, make_reader


def typed(monkeypatch, content, terminal=False):
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content), isatty=lambda: terminal))


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        (b"one\ntwo", ["one", "two"]),
        (b"one\r\n\n", ["one", ""]),
        (b"one\\\ntwo\\\nthree\n", ["one\ntwo\nthree"]),
        (b"one\\", ["one"]),
        ("世界\n".encode() + b"\xff\n", ["世界", "\ufffd"]),
        (b"", []),
    ],
)
def test_lines_of_a_pipe(content, lines, monkeypatch, capsys):
    typed(monkeypatch, content)
    plain = PlainReader()
    assert [plain.read() for _ in lines] == lines
    with pytest.raises(EOFError):
        plain.read()
    assert capsys.readouterr().err == ""


def test_a_plain_terminal_shows_where_to_type(monkeypatch, capsys):
    typed(monkeypatch, b"one\\\ntwo\n", terminal=True)
    plain = PlainReader()
    assert plain.read() == "one\ntwo"
    with pytest.raises(EOFError):
        plain.read()
    assert capsys.readouterr().err == "> . > \n"  # the end of the input begins a new line


@pytest.mark.parametrize(("stdin", "stdout", "dumb"), [(False, True, False), (True, False, False), (True, True, True)])
def test_an_editor_needs_a_terminal_on_both_sides(stdin, stdout, dumb, monkeypatch):
    typed(monkeypatch, b"", terminal=stdin)
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(isatty=lambda: stdout))
    monkeypatch.setattr(reader, "dumb", lambda: dumb)
    monkeypatch.setattr(reader, "Editor", None)
    assert isinstance(make_reader(["help"]), PlainReader)


def test_the_editor_gets_the_commands_or_a_plain_reader_says_what_to_install(monkeypatch, capsys):
    typed(monkeypatch, b"", terminal=True)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(reader, "dumb", lambda: False)
    monkeypatch.setattr(reader, "Editor", lambda commands: ("editor", commands))
    assert make_reader(["help"]) == ("editor", ["help"])

    def missing(commands):
        raise ImportError

    monkeypatch.setattr(reader, "Editor", missing)
    assert isinstance(make_reader(["help"]), PlainReader)
    assert "mlx-qwen3[chat]" in capsys.readouterr().err
