"""The look of output: on a terminal, and nowhere else."""

import fcntl
import io
import os
import pty
import struct
import termios

import pytest

from mlx_qwen3.cli.styles import LOOKS, rendered
from mlx_qwen3.table import DIM, GOOD, STYLES, Line, Table

TABLE = Table("T", ("name", "n"), [["a", "5"]], "ll")


def test_every_style_has_a_look():
    assert set(LOOKS) == set(STYLES)


def test_a_terminal_gets_styles(screen):
    parts = ["plain", Line("fine", GOOD), TABLE, "error: no"]
    assert rendered(parts, screen, harmless=True).split("\n") == [
        "plain",
        "\x1b[32mfine\x1b[0m",
        "\x1b[1mT\x1b[0m",
        "\x1b[2m  name  n\x1b[0m",
        "  a     5",
        "\x1b[31merror:\x1b[0m no",
    ]


@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_a_terminal_without_colours_gets_none(screen, monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert "\x1b" not in rendered([Line("fine", GOOD), TABLE, "error: no"], screen, harmless=True)


def test_a_pipe_gets_no_styles_and_no_limit(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    wide = Table("", ("name",), [["word " * 30]], "l")
    assert (
        rendered([Line("fine", DIM), wide], io.StringIO(), harmless=False) == f"fine\nname\n{('word ' * 30).rstrip()}"
    )


@pytest.mark.parametrize("columns", ["20", "40", "200"])
def test_a_table_fits_the_terminal(screen, monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", columns)
    wide = Table("", ("name", "more"), [["word " * 30, "x" * 30]], "ll")
    assert max(map(len, rendered([wide], screen, harmless=True).split("\n"))) <= int(columns) + len("\x1b[2m\x1b[0m")


@pytest.mark.parametrize(("asked", "width"), [("", 40), ("30", 30)])
def test_the_width_is_that_of_the_stream(monkeypatch, asked, width):
    """stdout may be a file meanwhile. COLUMNS counts more."""
    monkeypatch.setenv("COLUMNS", asked)
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 40, 0, 0))
    with open(theirs, "w") as stream:
        lines = rendered([Line("word " * 50)], stream, harmless=True).split("\n")
    os.close(ours)
    assert width - 6 < max(map(len, lines)) <= width
