"""Where a conversion may write: a free place, or a checkpoint that --overwrite replaces."""

from pathlib import Path

from ..errors import OutputError, UsageError
from ..files.hub import PACKAGED

CHECKPOINT = ("config.json", "certificate.json")  # --overwrite replaces only a folder that has one of these


def check_free(out: Path, overwrite: bool) -> None:
    """Raises OutputError unless `out` is free, or a checkpoint folder that may be overwritten."""
    if out.name in ("", ".."):
        raise OutputError(f"OUT {str(out)!r} has no name of its own; give the name of the new folder")
    if str(out) in PACKAGED:
        raise OutputError(
            f"OUT {out} is the name of a model of the package, which SOURCE would mean; give another name"
        )
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise OutputError(f"{out} exists and is not a folder; remove it or give another place")
    if not out.exists():
        return
    if not overwrite:
        raise OutputError(f"{out} exists already; give another place, remove it, or use --overwrite")
    content = {path.name for path in out.iterdir()}
    if content and not content.intersection(CHECKPOINT):
        raise OutputError(
            f"{out} has no config.json, so it is not a checkpoint that may be overwritten; give another place"
        )


def check_apart(source: Path, out: Path) -> None:
    """Raises UsageError if replacing `out` would remove the source."""
    source, out = source.resolve(), out.resolve()
    if source == out or out in source.parents:
        raise UsageError(f"OUT {out} holds SOURCE {source}, which would be replaced; give another place")
