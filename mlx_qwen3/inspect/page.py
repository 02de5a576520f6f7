"""A report as one HTML page for screens of any width, light or dark. It has no script and needs no other file."""

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path

from ..drawing import svg
from ..table import Table
from .output import headline
from .pictures import MARKS, alone, panels
from .report import Report
from .summary import verdict_lines
from .tables import tables

STYLE = Path(__file__).with_name("page.css")


def page(report: Report, full: bool = False) -> str:
    """The verdict, the pictures and the tables of the report."""
    title = f"inspect {report.source}"
    head = (
        f'<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta name="color-scheme" content="light dark"><title>{escape(title)}</title>'
        f"<style>\n{STYLE.read_text(encoding='utf-8')}</style>"
    )
    body = "\n".join(_body(report, full, title))
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


def _body(report: Report, full: bool, title: str) -> Iterator[str]:
    yield f"<header><h1>{escape(title)}</h1>"
    yield from (f"<p>{escape(line)}</p>" for line in headline(report).splitlines())
    yield "</header>\n<main>\n<section><h2>Verdict</h2>"
    yield from (f'<p class="{line.style or "plain"}">{escape(line.text)}</p>' for line in verdict_lines(report))
    yield "</section>\n<section><h2>Pictures</h2>"
    yield f'<p class="note">{_legend()}</p>\n<div class="pictures">'
    for panel in panels(report):
        yield f"<figure><figcaption>{escape(panel.title)}</figcaption>\n{svg(alone(panel), panel.title)}</figure>"
    yield "</div></section>"
    yield from map(_table, tables(report, full))
    yield "</main>"


def _legend() -> str:
    """What the marks in the heat maps mean."""
    return " ".join(f'<span><i class="mark {name}"></i>{escape(words)}</span>' for name, words in MARKS.items())


def _table(table: Table) -> str:
    title = escape(table.title)
    header = f"<thead>{_row('th', table.columns, table)}</thead>"
    columns = [table.cells(index) for index in range(len(table.columns))]
    rows = [_row("td", cells, table, index) for index, cells in enumerate(zip(*columns, strict=True))]
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in table.notes)
    body = "\n".join(rows)
    # With the keyboard, a box that scrolls needs the focus.
    box = f'<div class="table" tabindex="0" role="region" aria-label="{title}">'
    return f"<section><h2>{title}</h2>\n{box}<table>{header}<tbody>\n{body}\n</tbody></table></div>{notes}</section>"


def _row(tag: str, cells: Sequence[str], table: Table, index: int | None = None) -> str:
    opening = [f'<{tag} class="text">' if side == "l" else f"<{tag}>" for side in table.align]
    content = "".join(f"{start}{escape(cell)}</{tag}>" for start, cell in zip(opening, cells, strict=True))
    kind = ' class="marked"' if index in table.marked else ' class="unusual"' if index in table.unusual else ""
    return f"<tr{kind}>{content}</tr>"
