"""What commands produce besides text: strict JSON, and files that appear whole or not at all."""

import io
import math
import os
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from . import interrupt
from .errors import OutputError

Buffer = bytes | bytearray | memoryview
PARTIAL = ".partial"  # the end of the name of a file that is being written


def finite(value: Any) -> Any:
    """Numbers as strict JSON has them: null for NaN and infinity."""
    if isinstance(value, dict):
        return {key: finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def check_place(path: Path) -> None:
    """Raises OutputError if `write_file` could not write there. Call it before the work starts."""
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise OutputError(f"{path} is a folder; give a file name")
    if not target.parent.is_dir():
        raise OutputError(f"{path.parent} is not a folder; make it first, or give another place")
    place = path if _written_directly(path) else target.parent
    if not os.access(place, os.W_OK):
        raise OutputError(f"{place} cannot be written to; give another place")


def write_file(path: Path, content: bytes | Iterable[Buffer]) -> None:
    """Write a file for a user, with `replace_file`. Raises OutputError."""
    try:
        replace_file(path, content)
    except OSError as error:
        raise OutputError(f"{path} cannot be written ({error.strerror}); give another place") from None


def replace_file(path: Path, content: bytes | Iterable[Buffer], durable: bool = False) -> None:
    """Write a file that appears whole or not at all: it is written under another name, then renamed.

    `content` may come in pieces, each of which is made when the one before it is written.

    A link stays a link: what it leads to is replaced. An existing file keeps its mode. What is not a plain file, such
    as /dev/stdout or a named pipe, is written to directly. `durable` also waits until file and name are on the disk.
    Raises OSError.
    """
    pieces = [content] if isinstance(content, bytes) else content
    if _written_directly(path):
        _write_directly(path, pieces)
        return
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{os.urandom(6).hex()}{PARTIAL}")
    undo = partial(temporary.unlink, missing_ok=True)
    with interrupt.cleaning(undo):
        try:
            with _created(temporary) as file:
                file.writelines(pieces)
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            with suppress(FileNotFoundError):
                temporary.chmod(stat.S_IMODE(target.stat().st_mode))
            os.replace(temporary, target)
        except BaseException:
            undo()
            raise
    if durable:
        sync(target.parent)


def sync(path: Path) -> None:
    """Wait until a file or a folder is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _created(path: Path) -> io.BufferedWriter:
    """A new file with the mode that the umask gives."""
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb")


def _written_directly(path: Path) -> bool:
    """Whether a rename would be wrong: for a device, a pipe, and the file that our own output goes to."""
    try:
        state = path.stat()
    except OSError:
        return False
    return not stat.S_ISREG(state.st_mode) or any(_own_streams(state))


def _own_streams(state: os.stat_result) -> Iterator[int]:
    """Standard output or standard error, if it is this very file."""
    for descriptor in (1, 2):
        with suppress(OSError):  # closed
            if os.path.samestat(os.fstat(descriptor), state):
                yield descriptor


def _write_directly(path: Path, pieces: Iterable[Buffer]) -> None:
    own = next(_own_streams(path.stat()), None)
    if own is None:
        with path.open("wb") as file:
            file.writelines(pieces)
        return
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()  # what was printed before comes first
    with open(own, "wb", closefd=False) as file:  # opening it by name would truncate it
        file.writelines(pieces)
