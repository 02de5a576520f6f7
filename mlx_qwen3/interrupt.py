"""Ctrl-C for the commands: exit code 130 within a second, whatever is running, and nothing half-written.

Python answers Ctrl-C with a KeyboardInterrupt at an arbitrary point. That has two disadvantages here. C++ extensions
can lose the exception: it vanishes inside `mx.array(ndarray)`. And Python raises it only after the call into MLX or
NumPy that is running. So the commands install a handler that runs the registered clean-ups and then ends the process.
If the main thread is inside a long call, a second thread does the same after a grace period.

The Python API does not install the handler: a program that imports this package keeps its own answer to Ctrl-C.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

INTERRUPTED = 130  # 128 + SIGINT, as shells count
GRACE = 0.6  # seconds that the main thread has to answer; most calls into MLX are shorter

_cleanups: list[Callable[[], None]] = []
_postponed = 0  # how many `postponed` blocks are open; they nest
_asked = False  # Ctrl-C was pressed inside one
_last_words: list[str] = []  # what is said on stderr when Ctrl-C ends the process
_ender: dict[str, int] = {}  # the thread that ends the process; a dict, since `setdefault` is atomic


def is_command() -> bool:
    """Whether this process is a command of ours, and not a program that imports the package."""
    name, given = sys.argv[0], sys.orig_argv
    if name == "-m":  # what Python calls a module until it has found it
        return "-m" in given[:-1] and given[given.index("-m") + 1] == "mlx_qwen3"
    folder, file = os.path.split(os.path.abspath(name))
    beside = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    return file == "mlx-qwen3" or (file in ("generate.py", "convert.py") and folder == beside)


def install() -> None:
    """Answer Ctrl-C from here on. Changes nothing if SIGINT is ignored, as in a job that `nohup` started."""
    if threading.current_thread() is not threading.main_thread():
        return  # Python delivers signals to the main thread only
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _handle)


def watch() -> None:
    """Start the thread that ends the process if the main thread cannot."""
    if signal.getsignal(signal.SIGINT) is _handle:
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)  # written to by the signal itself, not by Python code
        with held():
            threading.Thread(target=_watch, args=(reader,), daemon=True).start()


def register(cleanup: Callable[[], None]) -> None:
    """Call `cleanup` if Ctrl-C ends the process, the last one registered first.

    It can run at any point of the main thread, and twice. So it must not take locks or write to `sys.stdout`.
    """
    _cleanups.append(cleanup)


def unregister(cleanup: Callable[[], None]) -> None:
    """Forget a clean-up."""
    _cleanups.remove(cleanup)


def last_words(text: str) -> None:
    """Say this on stderr if Ctrl-C ends the process, after all clean-ups. An empty text is not said."""
    _last_words[:] = [text] if text else []


@contextmanager
def cleaning(cleanup: Callable[[], None]) -> Iterator[None]:
    """Call `cleanup` if Ctrl-C ends the process inside the block."""
    register(cleanup)
    try:
        yield
    finally:
        unregister(cleanup)


@contextmanager
def held() -> Iterator[None]:
    """Ctrl-C inside the block takes effect after it. Threads that start inside never get the signal.

    For short calls that ignore the signal: Ctrl-C would be lost.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def postponed() -> Iterator[Callable[[], bool]]:
    """Ctrl-C inside the block ends the process when the block ends, so that what was begun can be finished.

    Yields a function that says whether Ctrl-C was pressed: a long block must call it and finish early. GRACE seconds
    after Ctrl-C, or at the second Ctrl-C, the process ends at once.
    """
    global _postponed
    _postponed += 1
    try:
        yield lambda: _asked
    finally:
        _postponed -= 1
        if _asked and not _postponed:
            _end()


@contextmanager
def answered(answer: Callable[[], None]) -> Iterator[None]:
    """Ctrl-C inside the block calls `answer`, in the main thread, and does not end the process.

    For a command that continues after Ctrl-C. Changes nothing if SIGINT is ignored, or in another thread.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        yield
        return
    watched = signal.set_wakeup_fd(-1)  # or the second thread would end the process
    before = signal.signal(signal.SIGINT, lambda *_: answer())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        signal.set_wakeup_fd(watched, warn_on_full_buffer=False)


def _handle(*_: object) -> None:
    global _asked
    if _postponed and not _asked:
        _asked = True
    else:
        _end()


def _watch(reader: int) -> None:
    while signal.SIGINT not in os.read(reader, 64):  # the number of every signal that has a handler
        pass
    time.sleep(GRACE)
    _end()


def _end() -> NoReturn:
    if _ender.setdefault("thread", threading.get_ident()) == threading.get_ident():
        # A further Ctrl-C starts this again in the same thread, so a clean-up must work when it is called twice.
        for cleanup in reversed(_cleanups):
            with suppress(BaseException):  # the others have to run
                cleanup()
        with suppress(OSError):
            os.write(2, "".join(f"{text}\n" for text in _last_words).encode(errors="replace"))
        os._exit(INTERRUPTED)
    while True:  # the other thread ends the process, and this one must not go on
        time.sleep(1)
