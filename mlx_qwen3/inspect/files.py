"""The files that `inspect` writes: a picture, a page."""

from pathlib import Path

from ..errors import OutputError
from ..report import check_picture, check_place
from .page import page
from .pictures import figure_class, png
from .report import Report


def check_files(plot: Path | None, html: Path | None) -> None:
    """Raises UsageError or OutputError, before the work, where a file could not be made."""
    if plot:
        check_picture(plot)
    for path in (plot, html):
        if path is None:
            continue
        check_place(path)
        figure_class()


def write_files(report: Report, plot: Path | None, html: Path | None, full: bool = False) -> None:
    """Write what is asked for. Raises OutputError where that fails."""
    picture = png(report) if plot or html else b""
    if plot:
        _write(plot, picture)
    if html:
        _write(html, page(report, full, picture).encode())


def _write(path: Path, content: bytes) -> None:
    try:
        path.write_bytes(content)
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror}); give another place") from None
