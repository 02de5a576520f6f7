"""What the commands that write pictures, pages and JSON have in common."""

import math
from pathlib import Path
from typing import Any

from .errors import OutputError, UsageError


def check_picture(path: Path) -> None:
    """Raises UsageError where the name is not that of a picture."""
    if path.suffix.lower() != ".png":
        raise UsageError(f"--plot is {path}; expected a name that ends in .png")


def check_place(path: Path) -> None:
    """Raises OutputError, before the work, where a file could not be made."""
    if not path.absolute().parent.is_dir():
        raise OutputError(f"{path.parent} is no folder; make it first, or give another place")
    if path.is_dir():
        raise OutputError(f"{path} is a folder; give a file name")


def finite(value: Any) -> Any:
    """Numbers as strict JSON has them: null for NaN and infinity."""
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
