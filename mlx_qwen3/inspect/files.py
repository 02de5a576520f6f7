"""The files that `inspect` writes: a picture, a page."""

from pathlib import Path

from ..drawing import check_picture, figure_class, png
from ..report import check_place, write_file
from .page import page
from .pictures import draw
from .report import Report


def check_files(plot: Path | None, html: Path | None) -> None:
    """Raises UsageError or OutputError if a file could not be written. Call it before the work starts."""
    if plot:
        check_picture(plot)
    if html:
        figure_class()  # the page has pictures
    for path in (plot, html):
        if path:
            check_place(path)


def write_files(report: Report, plot: Path | None, html: Path | None, full: bool = False) -> None:
    """Write what is asked for. Raises OutputError."""
    if plot:
        write_file(plot, png(draw(report)))
    if html:
        write_file(html, page(report, full).encode())
