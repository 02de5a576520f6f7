"""The progress bar of a command."""

import os
import sys
import time

from .. import interrupt
from ..progress import BYTES, Stage
from ..table import DIM, Line
from .styles import dumb
from .terminal import say

WIDEST = 100  # columns of a bar with its text
FEWEST = 10  # columns of the bar itself; a narrower terminal gets the text alone


class Bar:
    """Progress on stderr: one bar for each stage, with its unit. If stderr is not a terminal, lines."""

    def __init__(self, wanted: bool | None) -> None:
        self._terminal = sys.stderr.isatty() and not dumb()
        self._on = sys.stderr.isatty() if wanted is None else wanted
        self._stage: Stage | None = None
        self._done = self._tenths = 0
        self._began, self._first = 0.0, 0  # the time and the amount of a stage's first report
        self._shown = ""  # the text of the terminal's current line

    def __enter__(self) -> "Bar":
        interrupt.register(self._leave_line)
        return self

    def __exit__(self, *_: object) -> None:
        interrupt.unregister(self._leave_line)
        self._close()

    def __call__(self, stage: Stage, done: int) -> None:
        if not self._on:
            return
        if stage != self._stage:
            self._close()
            self._stage, self._done, self._tenths = stage, 0, 0
            self._began, self._first = time.monotonic(), done
        self._done = min(self._done + done, stage.total)  # `mixed` measures some parts twice
        if self._terminal:
            self._draw(stage)
        elif int(self._share(stage) * 10) > self._tenths:
            self._tenths = int(self._share(stage) * 10)
            _print(f"{stage.name} {10 * self._tenths}%  {self._rate(stage)}\n")

    def note(self, text: str) -> None:
        """A line between two bars."""
        if self._on:
            self._close()
            say(Line(text, DIM))

    def _draw(self, stage: Stage) -> None:
        columns = os.get_terminal_size(sys.stderr.fileno()).columns or 80  # some pseudo-terminals say 0
        line = bar_line(stage.name, self._share(stage), self._rate(stage), columns)
        if line != self._shown:
            _print("\r" + line.ljust(len(self._shown)))
            self._shown = line

    def _share(self, stage: Stage) -> float:
        return self._done / stage.total if stage.total else 1.0

    def _rate(self, stage: Stage) -> str:
        if stage.unit != BYTES:
            return f"{self._done} of {stage.total} {stage.unit}"
        size, name, digits = (1e9, "GB", 3) if stage.total >= 1e9 else (1e6, "MB", 1)
        amount = f"{self._done / size:.{digits}f} of {stage.total / size:.{digits}f} {name}"
        seconds = time.monotonic() - self._began  # from the first report, whose own time is not known
        later = self._done - self._first
        return f"{amount}, {later / seconds / 1e6:,.0f} MB/s" if later and seconds else amount

    def _close(self) -> None:
        if self._shown:
            _print("\n")
            self._shown = ""

    def _leave_line(self) -> None:
        if self._shown:
            os.write(sys.stderr.fileno(), b"\n")


def _print(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


def bar_line(stage: str, share: float, text: str, columns: int) -> str:
    """A line that is narrower than the terminal. A line of the full width would scroll with every update."""
    room = min(columns - 1, WIDEST)
    before, after = f"{stage} [", f"] {share:4.0%}  {text}"
    cells = room - len(before) - len(after)
    if cells < FEWEST:
        line = f"{stage} {share:4.0%}  {text}"
        return line if len(line) <= room else line.rpartition(", ")[0][:room] or line[:room]
    return f"{before}{'#' * round(share * cells):-<{cells}}{after}"
