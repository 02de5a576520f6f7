"""Opening the files of a checkpoint, which may come from anywhere: only regular files, and every failure is named."""

import json
import os
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..errors import CheckpointError

NAME_LENGTH = 120  # characters of a name from a file that a message repeats


def short(name: object) -> str:
    """A name from an untrusted file for a message: its beginning and end if it is long."""
    text = str(name)
    half = NAME_LENGTH // 2
    return text if len(text) <= NAME_LENGTH else f"{text[:half]}...{text[-half:]} ({len(text)} characters)"


def some(names: Iterable[object]) -> str:
    """Several names from an untrusted file for a message: the first, and how many others there are."""
    first, *others = names
    return f"{short(first)} and {len(others)} more" if others else short(first)


def exists(path: Path) -> bool:
    """Whether a folder has this entry; a link that leads nowhere counts. False for a name that no file can have."""
    try:
        path.lstat()
    except (OSError, ValueError):
        return False
    return True


def open_file(path: Path) -> int:
    """A descriptor of a regular file, to read from. Raises CheckpointError.

    Opening a named pipe would wait for a writer, and a device may never end.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise CheckpointError(f"{short(path)} is {_kind(path)}, not a file; put the checkpoint's own file there")
        return os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        link = path.is_symlink()
        what = "is a link to a file that does not exist" if link else "does not exist"
        raise CheckpointError(f"{short(path)} {what}; download the checkpoint again") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{short(path)} cannot be read ({reason}); download it again") from None


def read_file(path: Path) -> tuple[bytes, os.stat_result]:
    """All of a file, and its status at that time. Raises CheckpointError."""
    with open(open_file(path), "rb", buffering=0) as file:
        try:
            return file.readall(), os.fstat(file.fileno())
        except OSError as error:
            raise CheckpointError(f"{short(path)} cannot be read ({error.strerror}); download it again") from None


def read_text(path: Path) -> str:
    """All of a UTF-8 text file. Raises CheckpointError."""
    try:
        return read_file(path)[0].decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{short(path)} is not UTF-8 text ({error.reason}); download it again") from None


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises CheckpointError if the file is missing, broken or not an object."""
    return parse_json(path, read_file(path)[0])


def parse_json(path: Path, content: bytes) -> dict[str, Any]:
    """The object that `content`, read from `path`, holds. Raises CheckpointError."""
    try:
        parsed = json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{short(path)} is not valid JSON ({error}); download it again") from None
    if not isinstance(parsed, dict):
        raise CheckpointError(f"{short(path)} holds a {type(parsed).__name__}, not a JSON object; download it again")
    return parsed


def _kind(path: Path) -> str:
    kinds = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket"}
    return kinds.get(stat.S_IFMT(path.stat().st_mode), "a device")
