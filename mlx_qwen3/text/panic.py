"""Panics of the `tokenizers` library, which is written in Rust: raised as errors, without Rust's own report."""

import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

STDERR = 2
_LOCK = threading.Lock()  # two threads must not swap the file descriptor at once


class PanicError(Exception):
    """The library gave up on an input; the message is the panic's."""


@contextmanager
def panics_as_errors(report: bool = True) -> Iterator[None]:
    """Raise PanicError for a panic, which reaches Python as a BaseException of its own class.

    Rust prints a report of several lines before it raises. `report=False` drops that report. For this, the standard
    error of the whole process is held back until the end of the block, and shown then if there was no panic. So do not
    use it for every text.
    """
    with nullcontext() if report else _held_stderr():
        try:
            yield
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # the class cannot be imported
                raise
            raise PanicError(str(error)) from None


@contextmanager
def _held_stderr() -> Iterator[None]:
    with _LOCK, tempfile.TemporaryFile() as held:
        try:
            saved = os.dup(STDERR)
        except OSError:  # this process has no standard error
            yield
            return
        os.dup2(held.fileno(), STDERR)
        show = True
        try:
            yield
        except PanicError:
            show = False
            raise
        finally:
            os.dup2(saved, STDERR)
            os.close(saved)
            held.seek(0)
            if show and (text := held.read()):
                os.write(STDERR, text)
