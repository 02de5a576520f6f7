"""The look of all commands: a handful of styles, which are off for NO_COLOR, TERM=dumb and anything but a terminal."""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import click

from ..table import BAD, DIM, EMPHASIS, GOOD, WARNING, Line, Part, Table, columns_of, escape, folded

LOOKS: dict[str, dict[str, Any]] = {
    EMPHASIS: {"bold": True},
    DIM: {"dim": True},
    GOOD: {"fg": "green"},
    WARNING: {"fg": "yellow"},
    BAD: {"fg": "red"},
}
FIRST_WORDS = {"error:": BAD, "warning:": WARNING, "note:": DIM}  # of a message -> the style of that word


def styled(stream: Any) -> bool:
    """Whether a stream is a terminal and the user allows colours: https://no-color.org."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and not dumb()


def dumb() -> bool:
    """Whether the terminal does not support control sequences, by its TERM variable."""
    return os.environ.get("TERM") == "dumb"


def rendered(parts: Sequence[Part], stream: Any, harmless: bool) -> str:
    """What to write to a stream: as wide as its terminal, with its styles. `harmless`: control characters are shown."""
    width = _width(stream)
    lines = [line for part in parts for line in _lines(part, width, harmless)]
    lines = [Line(escape(line.text), line.style) for line in lines] if harmless else lines
    return "\n".join(map(_painted, lines) if styled(stream) else (line.text for line in lines))


def _width(stream: Any) -> int | None:
    """The columns of a terminal: of this one, since stdout may be a pipe when stderr is a terminal."""
    if not stream.isatty():
        return None
    with suppress(OSError, ValueError):  # it has no file descriptor, or is closed
        if not os.environ.get("COLUMNS"):
            return os.get_terminal_size(stream.fileno()).columns or 80  # some pseudo-terminals say 0
    return shutil.get_terminal_size().columns


def _lines(part: Part, width: int | None, harmless: bool) -> Iterator[Line]:
    if isinstance(part, Table):
        yield from part.lines(width)
    elif isinstance(part, Line):
        yield from (Line(text, part.style) for text in _wrapped(escape(part.text) if harmless else part.text, width))
    else:
        yield from map(Line, part.split("\n"))


def _wrapped(text: str, width: int | None) -> list[str]:
    if width is None or columns_of(text) <= width:
        return [text]
    return folded(text, width, " " * (len(text) - len(text.lstrip()) + 2), any_length=False)


def _painted(line: Line) -> str:
    first, space, rest = line.text.partition(" ")
    if not line.style and first in FIRST_WORDS:
        return click.style(first, **LOOKS[FIRST_WORDS[first]]) + space + rest
    return click.style(line.text, **LOOKS[line.style]) if line.style and line.text else line.text
