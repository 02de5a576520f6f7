"""The progress bar, by the width of the terminal."""

import os
from itertools import pairwise
from types import SimpleNamespace

import pytest
from screens import Screen

from mlx_qwen3.cli import progress
from mlx_qwen3.cli.progress import Bar, bar_line
from mlx_qwen3.progress import BYTES, Stage

BYTE_STAGE = Stage("measuring", 12_345_678_901, BYTES)


class Terminal(Screen):
    def fileno(self):
        return 2


@pytest.fixture
def screen(monkeypatch):
    found = Terminal()
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=found))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(os, "get_terminal_size", lambda descriptor: os.terminal_size((found.columns, 24)))
    found.columns = 80
    return found


@pytest.mark.parametrize("columns", [20, 40, 60, 79, 80, 81, 120, 300])
@pytest.mark.parametrize("share", [0, 0.333, 1])
def test_a_line_is_narrower_than_the_terminal(columns, share):
    line = bar_line("hashing the source", share, "12.346 of 12.346 GB, 1,234 MB/s", columns)
    assert len(line) < columns
    assert line.startswith("hashing the source"[: columns - 1])


@pytest.mark.parametrize(("columns", "begin"), [(80, "measuring [######"), (40, "measuring  50%  6.17")])
def test_a_stage_is_drawn_in_one_line(screen, columns, begin):
    screen.columns = columns
    with Bar(None) as bar:
        for _ in range(100):
            bar(BYTE_STAGE, BYTE_STAGE.total // 200)
    assert screen.getvalue().count("\n") == 1
    drawn = screen.getvalue().rstrip("\n").split("\r")
    assert max(map(len, drawn)) < columns
    assert drawn[-1].startswith(begin)
    assert " 50%  6.173 of 12.346 GB" in drawn[-1]


def test_small_amounts_are_in_megabytes(screen):
    with Bar(None) as bar:
        bar(Stage("writing", 2_860_000, BYTES), 1_430_000)
    assert " 50%  1.4 of 2.9 MB" in screen.getvalue()


def test_a_narrow_line_loses_its_rate_and_not_half_of_it():
    assert bar_line("hashing", 0.5, "6.173 of 12.346 GB, 1,234 MB/s", 40) == "hashing  50%  6.173 of 12.346 GB"
    assert bar_line("hashing", 0.5, "6.173 of 12.346 GB", 20) == "hashing  50%  6.173"


def test_every_stage_has_a_line_of_its_own(screen):
    with Bar(None) as bar:
        bar(Stage("writing", 10, "tensors"), 10)
        bar(Stage("comparing", 4, "layers"), 1)
    lines = screen.getvalue().split("\n")
    assert lines[0].endswith("100%  10 of 10 tensors")
    assert lines[1].endswith("25%  1 of 4 layers")


def test_a_shorter_line_leaves_nothing_of_a_longer_one(screen, monkeypatch):
    monkeypatch.setattr(Bar, "_rate", lambda bar, stage: "x" * (40 - bar._done))
    screen.columns = 70
    with Bar(None) as bar:
        for _ in range(4):
            bar(Stage("s", 40, "steps"), 10)
    drawn = screen.getvalue().rstrip("\n").split("\r")[1:]
    assert all(len(line) >= len(before.rstrip()) for before, line in pairwise(drawn))


def test_a_dumb_terminal_gets_lines(screen, monkeypatch):
    monkeypatch.setenv("TERM", "dumb")
    with Bar(None) as bar:
        for _ in range(20):
            bar(Stage("writing", 20, "tensors"), 1)
    assert "\r" not in screen.getvalue()
    assert screen.getvalue().splitlines()[-1] == "writing 100%  20 of 20 tensors"
    assert len(screen.getvalue().splitlines()) == 10


def test_nothing_is_shown_in_a_pipe_unless_it_is_asked_for(capsys):
    for wanted, lines in ((None, 0), (False, 0), (True, 1)):
        with Bar(wanted) as bar:
            bar(Stage("writing", 1, "tensors"), 1)
        assert capsys.readouterr().err.count("\n") == lines


def test_ctrl_c_leaves_the_line(screen, monkeypatch):
    written = []
    monkeypatch.setattr(progress.os, "write", lambda descriptor, text: written.append((descriptor, text)))
    bar = Bar(None)
    bar._leave_line()
    bar(Stage("writing", 2, "tensors"), 1)
    bar._leave_line()
    assert written == [(2, b"\n")]


@pytest.mark.parametrize("term", ["xterm", "dumb"])
def test_a_stage_without_work_is_complete(screen, monkeypatch, term):
    monkeypatch.setenv("TERM", term)
    with Bar(None) as bar:
        bar(Stage("writing", 0, "tensors"), 0)
    assert "100%" in screen.getvalue()


def test_no_rate_of_a_stage_that_is_reported_once(screen):
    """The time of the first report is not known: hashing 10 MB looked like 451,636 MB/s."""
    with Bar(None) as bar:
        bar(BYTE_STAGE, BYTE_STAGE.total)
    assert "12.346 of 12.346 GB" in screen.getvalue()
    assert "MB/s" not in screen.getvalue()
