"""The files that `inspect` writes: a picture, a page."""

from pathlib import Path

from ..report import check_picture, check_place, figure_class, png, write_file
from .page import page
from .pictures import draw
from .report import Report


def check_files(plot: Path | None, html: Path | None) -> None:
    """Raises UsageError or OutputError if a file could not be written. Call it before the work starts."""
    if plot:
        check_picture(plot)
    if html:
        figure_class()  # the page has a picture
    for path in (plot, html):
        if path:
            check_place(path)


def write_files(report: Report, plot: Path | None, html: Path | None, full: bool = False) -> None:
    """Write what is asked for. Raises OutputError."""
    picture = png(draw(report)) if plot or html else b""
    if plot:
        write_file(plot, picture)
    if html:
        write_file(html, page(report, full, picture).encode())
