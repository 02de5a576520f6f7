"""Lines and tables of text, with the names of their styles: for a terminal of any width, for a pipe, for Markdown."""

import math
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from textwrap import TextWrapper
from typing import NamedTuple

EMPHASIS, DIM, GOOD, WARNING, BAD = STYLES = ("emphasis", "dim", "good", "warning", "bad")
UNLIMITED = 1 << 30
WIDTH = 118  # columns that notes fill where no terminal sets a limit
NARROWEST = 12  # columns to which a cell of text is folded
GAP = "  "  # between columns
MOST_DECIMALS = 6
MOST = 1e7  # larger numbers are faults, and need an exponent
# Control characters change a terminal: colours, cursor, title, clipboard. Text from a checkpoint or a model must not do
# this. Allowed are line feed, tab and a carriage return before a line feed.
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]|\r(?!\n)")
HALF = "\x00"  # stands for the second column of a wide character while text is folded
WORDS = re.compile(rf"([ ]+|(?<={HALF}))")  # where a line may end: at spaces, and after a wide character
NAMES = re.compile(rf"([ ]+|(?<={HALF})|(?<=[./])(?=[A-Za-z]))")  # and inside names, after a point or a slash
Cells = Sequence[str]


class Line(NamedTuple):
    """A line of output; `style` is one of STYLES, or empty."""

    text: str
    style: str = ""


def escape(text: str) -> str:
    """Text for a terminal: ESC becomes the four characters \\x1b, and so on."""
    return CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def columns_of(text: str) -> int:
    """How many columns of a terminal text fills: Chinese characters and most emoji fill two, accents none."""
    return len(text) if text.isascii() else sum(map(_columns, text))


def _columns(character: str) -> int:
    if unicodedata.category(character) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def padded(text: str, width: int, right: bool = False) -> str:
    """Text with spaces behind it, or with `right` before it, up to so many columns."""
    spaces = " " * (width - columns_of(text))
    return spaces + text if right else text + spaces


def folded(
    text: str, width: int, indent: str = "", first: str = "", ends: re.Pattern[str] = WORDS, any_length: bool = True
) -> list[str]:
    """Lines of at most `width` columns: `first` before the first, `indent` before the others.

    `any_length`: words that are longer than a line are cut; else they stay whole.
    """
    folder = TextWrapper(
        width, initial_indent=first, subsequent_indent=indent, break_long_words=any_length, break_on_hyphens=False
    )
    folder.wordsep_simple_re = ends
    held = "".join(c + HALF * (_columns(c) == 2) for c in text) if not text.isascii() else text
    return [line.replace(HALF, "") for line in folder.wrap(held)]


def in_one_notation(values: Sequence[float | None], digits: int = 3) -> list[str]:
    """The numbers of a column, all with the same number of decimals: their median has `digits` significant digits."""
    sizes = [abs(value) for value in values if value and math.isfinite(value)]
    power = math.floor(math.log10(median(sizes))) if sizes else digits - 1
    decimals = min(max(digits - 1 - power, 0), MOST_DECIMALS)
    return [_number(value, decimals) for value in values]


def spans(numbers: Sequence[int]) -> str:
    """Sorted numbers as ranges: 0-6,8-27."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def _number(value: float | None, decimals: int) -> str:
    if value is None:
        return "-"
    if value == 0 or not math.isfinite(value):
        return f"{value + 0.0:g}"  # never -0, which looks like a mistake
    return f"{value:.{decimals}f}" if abs(value) < MOST else f"{value:.1e}"


@dataclass(frozen=True)
class Table:
    """Rows under columns. `align` has a letter for each column: l for text, r for numbers, . to align their points.

    `marked` holds the indices of rows that need a look, `unusual` of rows that are worth one. The notes are printed
    below the rows. `drop` names the columns that a narrow terminal does without, the first to go first. Raises
    ValueError if a row or `align` does not have as many cells as there are columns.
    """

    title: str
    columns: Cells
    rows: Sequence[Cells]
    align: str
    marked: frozenset[int] = frozenset()
    notes: Cells = ()
    drop: Cells = ()
    unusual: frozenset[int] = frozenset()

    def __post_init__(self) -> None:
        for cells in (self.align, *self.rows):
            if len(cells) != len(self.columns):
                raise ValueError(f"{cells!r} has {len(cells)} cells for {len(self.columns)} columns of {self.title!r}")

    def text(self, width: int | None = None) -> str:
        return "\n".join(line.text for line in self.lines(width))

    def lines(self, width: int | None = None) -> list[Line]:
        """For a terminal of `width` columns: cells below one another, a ! before marked rows, long notes wrapped.

        If the table is wider, it loses columns; then the cells of text are folded. None: as wide as it is.
        """
        margin, mark = ("  ", "! ") if self.title or self.marked else ("", "")
        cells_of = [self._column(index) for index in range(len(self.columns))]
        shown, widths = self._fit(cells_of, (UNLIMITED if width is None else width) - len(margin))
        lines = [Line(text, EMPHASIS) for text in folded(escape(self.title), width or UNLIMITED, margin)]
        for row in range(len(self.rows) + 1):
            cells = [cells_of[index][row] for index in shown]
            before, style = (mark, BAD) if row - 1 in self.marked else (margin, self._style(row - 1))
            sides = [self.align[index] for index in shown]
            lines += [Line((before + text).rstrip(), style) for text in _row(cells, widths, sides)]
        hidden = [name for index, name in enumerate(self.columns) if index not in shown]
        notes = [*self.notes, *([f"not shown at this width: {'; '.join(hidden)}"] if hidden else [])]
        room = min(width or WIDTH, WIDTH)
        for note in map(escape, notes):
            lines += [Line(text, DIM) for text in folded(note, room, margin + "  ", margin)]
        return lines

    def markdown(self) -> str:
        rule = ["---" if side == "l" else "---:" for side in self.align]
        table = "\n".join("| " + " | ".join(cells) + " |" for cells in (self.columns, rule, *self.rows))
        return "\n\n".join([*([f"### {self.title}"] if self.title else []), table, *self.notes])

    def _style(self, row: int) -> str:
        """The heading is row -1."""
        return DIM if row < 0 else WARNING if row in self.unusual else ""

    def _column(self, index: int) -> list[str]:
        return [escape(self.columns[index]), *self.cells(index)]

    def cells(self, index: int) -> list[str]:
        """The cells of a column. Aligned numbers get spaces behind, so that their points agree."""
        cells = [escape(row[index]) for row in self.rows]
        if self.align[index] == ".":
            behind = [len(cell) - len(cell.partition(".")[0]) for cell in cells]
            cells = [cell + " " * (max(behind) - own) for cell, own in zip(cells, behind, strict=True)]
        return cells

    def _fit(self, cells_of: Sequence[Cells], room: int) -> tuple[list[int], list[int]]:
        """(the columns to show, their widths)."""
        shown = list(range(len(cells_of)))
        widths = [max(map(columns_of, cells)) for cells in cells_of]
        least = [
            min(width, NARROWEST) if side == "l" else width for width, side in zip(widths, self.align, strict=True)
        ]

        def excess(widths: Sequence[int]) -> int:
            return sum(widths[index] for index in shown) + len(GAP) * (len(shown) - 1) - room

        for name in self.drop:
            if excess(widths) > 0:
                shown.remove(self.columns.index(name))
        while excess(least) > 0 and len(shown) > 1:
            shown.pop()
        while excess(widths) > 0 and (foldable := [index for index in shown if widths[index] > least[index]]):
            widths[max(foldable, key=widths.__getitem__)] -= 1
        return shown, [min(widths[index], max(room, 1)) for index in shown]


Part = str | Line | Table  # of an output; each begins a line of its own


def _row(cells: Cells, widths: Sequence[int], sides: Sequence[str]) -> Iterator[str]:
    """The lines of one row: a cell of text that is wider than its column goes on below."""
    parts = [
        (folded(cell, width, ends=NAMES) or [""]) if columns_of(cell) > width else [cell]
        for cell, width in zip(cells, widths, strict=True)
    ]
    for number in range(max(map(len, parts))):
        line = [part[number] if number < len(part) else "" for part in parts]
        yield GAP.join(padded(cell, width, side != "l") for cell, width, side in zip(line, widths, sides, strict=True))
