"""The files that `inspect` writes: a picture, a page."""

from pathlib import Path

from ..errors import OutputError, UsageError
from .page import page
from .pictures import figure_class, png
from .report import Report


def check_files(plot: Path | None, html: Path | None) -> None:
    """Raises UsageError or OutputError, before the work, where a file could not be made."""
    if plot and plot.suffix.lower() != ".png":
        raise UsageError(f"--plot is {plot}; expected a name that ends in .png")
    for path in (plot, html):
        if path is None:
            continue
        if not path.absolute().parent.is_dir():
            raise OutputError(f"{path.parent} is no folder; make it first, or give another place")
        if path.is_dir():
            raise OutputError(f"{path} is a folder; give a file name")
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
