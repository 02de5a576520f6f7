"""A process on a pseudo-terminal. Waiting for its output has a time limit."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).parent.parent
LIMIT = 60.0  # seconds for one answer; a busy machine takes long to load Python's modules
STYLE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """Use it in a `with` block: the end of the block kills a process that still runs."""

    def __init__(self, *words: str, **environment: str):
        ours, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))  # rows, columns
        # Lines are wide, so that what a test expects is not folded.
        known = {"MLX_QWEN3_BLAS": "none", "PROMPT_TOOLKIT_NO_CPR": "1", "TERM": "xterm", "COLUMNS": "200"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mlx_qwen3", *words],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env={**os.environ, **known, **environment},
            cwd=ROOT,
            start_new_session=True,
            preexec_fn=lambda: _take(theirs),
        )
        os.close(theirs)
        self._file, self._seen = ours, ""
        self.shown = ""  # all of it, as it came

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._file)

    def type(self, text: str) -> None:
        os.write(self._file, text.encode())

    def expect(self, text: str) -> str:
        """Wait until `text` is shown, styles aside. Returns what was shown before it since the last time."""
        deadline = time.monotonic() + LIMIT
        while text not in self._seen:
            if not self._read(deadline):
                raise AssertionError(f"{text!r} was not shown, but {self._seen!r}")
        before, _, self._seen = self._seen.partition(text)
        return before

    def end(self) -> int:
        """The exit code."""
        deadline = time.monotonic() + LIMIT
        while self._read(deadline):
            pass
        return self.process.wait(LIMIT)

    def _read(self, deadline: float) -> bool:
        ready, _, _ = select.select([self._file], [], [], max(0, deadline - time.monotonic()))
        try:
            data = os.read(self._file, 4096) if ready else b""
        except OSError:  # the other side is closed
            data = b""
        text = data.decode("utf-8", "replace")
        self.shown += text
        self._seen = STYLE.sub("", self._seen + text)
        return bool(data)


def _take(terminal: int) -> None:
    """Make the terminal the one whose Ctrl-C reaches the process."""
    import signal

    fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
