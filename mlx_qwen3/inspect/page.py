"""A report as one self-contained HTML page: it has no script and no link, and contains the picture as data."""

from base64 import b64encode
from collections.abc import Sequence
from html import escape

from ..table import Table
from .output import headline
from .report import Report
from .tables import tables, verdict_lines

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 110rem; padding: 0 1rem; color: #1c1c1c }
h1 { font-size: 1.5rem } h2 { font-size: 1.15rem; margin-top: 2.2rem }
table { border-collapse: collapse; font: 13px/1.4 ui-monospace, monospace }
th, td { padding: .15rem .7rem; text-align: right; white-space: nowrap } th { border-bottom: 2px solid #888 }
th.text, td.text { text-align: left } tr:nth-child(even) { background: #f5f5f5 } tr.marked { background: #ffd9d9 }
div { overflow-x: auto } img { max-width: 100% } p.note { margin: .3rem 0; max-width: 75rem }
p.verdict { font-weight: 600; margin: .2rem 0 } p.fault { color: #c00000 }
"""


def page(report: Report, full: bool = False, picture: bytes | None = None) -> str:
    """The tables of the report, and its picture if there is one."""
    title = f"inspect {report.source}"
    parts = [f"<h1>{escape(title)}</h1>"]
    parts += [f"<p>{escape(line)}</p>" for line in headline(report).splitlines()]
    kind = "verdict fault" if report.complaint else "verdict"
    parts += [f'<p class="{kind}">{escape(line.text)}</p>' for line in verdict_lines(report)]
    if picture is not None:
        data = b64encode(picture).decode()
        parts.append(f'<img alt="heat maps, attention map and residual stream" src="data:image/png;base64,{data}">')
    parts += [_table(table) for table in tables(report, full)]
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n' + "\n".join(parts) + "\n</body></html>\n"


def _table(table: Table) -> str:
    header = f"<thead>{_row('th', table.columns, table)}</thead>"
    rows = [_row("td", row, table, index in table.marked) for index, row in enumerate(table.rows)]
    notes = "".join(f'<p class="note">{escape(note)}</p>' for note in table.notes)
    body = "\n".join(rows)
    return f"<h2>{escape(table.title)}</h2>\n<div><table>{header}<tbody>\n{body}\n</tbody></table></div>{notes}"


def _row(tag: str, cells: Sequence[str], table: Table, marked: bool = False) -> str:
    opening = [f'<{tag} class="text">' if side == "l" else f"<{tag}>" for side in table.align]
    content = "".join(f"{start}{escape(cell)}</{tag}>" for start, cell in zip(opening, cells, strict=True))
    return f'<tr class="marked">{content}</tr>' if marked else f"<tr>{content}</tr>"
