"""What a command shows on a terminal: its lines, with the names of their styles in front."""

import io
import re
from collections.abc import Callable
from itertools import groupby

from mlx_qwen3.cli.styles import LOOKS, Part, rendered
from mlx_qwen3.table import columns_of

CODES = {
    f"\x1b[{code}m": name for name, code in {"emphasis": 1, "dim": 2, "good": 32, "warning": 33, "bad": 31}.items()
}
assert set(CODES.values()) == set(LOOKS)


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def on_screen(parts: list[Part], monkeypatch: object, columns: int = 80, mask: Callable[[str], str] = str) -> list[str]:
    """The lines as a terminal of `columns` shows them, such as `dim: 13 tokens`; `mask` hides what differs by machine.

    Fails if a line is wider than the terminal.
    """
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    shown = []
    for line in rendered(parts, Screen(), harmless=True).split("\n"):
        code = next((code for code in CODES if line.startswith(code)), "")
        text = line.removeprefix(code).replace("\x1b[0m", "")
        assert len(text) <= columns, text
        shown.append(mask(f"{CODES[code]}: {text}" if code else text))
    return shown


class Grid:
    """What a terminal of some columns shows of text with control sequences: those that the commands and the line
    editor of `chat` use. Another one is a ValueError.
    """

    def __init__(self, columns: int = 80):
        self._columns = columns
        self._rows: list[list[tuple[str, str]]] = [[]]  # a cell: style, character; "" behind a wide one
        self._row = self._column = 0
        self._style = ""

    def feed(self, text: str) -> "Grid":
        for number, letter, character in re.findall(r"\x1b\[([0-9;?]*)([A-Za-z])|([^\x1b]|\x1b)", text):
            self._obey(number, letter) if letter else self._take(character)
        return self

    def lines(self) -> list[str]:
        """Such as `<dim>13 tokens<>`."""
        return [
            "".join(
                f"<{style}>{text}<>" if style else text
                for style, cells in groupby(row, key=lambda cell: cell[0])
                for text in ["".join(character for _, character in cells)]
            ).rstrip()
            for row in self._rows
        ]

    def _take(self, character: str) -> None:
        if character == "\r":
            self._column = 0
        elif character == "\b":
            self._column -= 1
        elif character == "\n":
            self._move(1)
        elif character < " ":
            raise ValueError(f"the control character {character!r}")
        else:
            self._write(character)

    def _write(self, character: str) -> None:
        width = columns_of(character)
        if self._column + width > self._columns:
            self._column = 0
            self._move(1)
        row, end = self._rows[self._row], self._column + width
        row += [("", " ")] * (end - len(row))
        row[self._column : end] = [(self._style, character), (self._style, "")][:width]
        self._column = end

    def _move(self, lines: int) -> None:
        self._row += lines
        self._rows += [[] for _ in range(self._row + 1 - len(self._rows))]

    def _obey(self, number: str, letter: str) -> None:
        if letter == "m":
            plain = number in ("", "0")
            self._style = "" if plain else CODES.get(f"\x1b[{number}m", "editor")  # which has styles of its own
        elif letter in "AB":
            self._move(int(number or 1) * (-1 if letter == "A" else 1))
        elif letter in "CD":
            self._column += int(number or 1) * (-1 if letter == "D" else 1)
        elif letter in "JK":  # erase what is behind the cursor, and with J what is below
            del self._rows[self._row][self._column :]
            del self._rows[self._row + 1 if letter == "J" else len(self._rows) :]
        elif not (letter in "hl" and number.startswith("?")):
            raise ValueError(f"the control sequence {number + letter!r}")
