"""Run by test_staging.py: convert once for every point, and send a signal there.

python crashing.py SOURCE FOLDER OPTIONS SIGNAL POINT...: FOLDER/POINT/out is converted to, until the POINT-th event; a
point of -1 runs to the end and prints the number of events. An event is an operation on a file, which Python announces
to audit hooks before it is done, or a block of bytes that was handed to the file. Each conversion runs in a fork of
this process, which has imported the package but computed nothing yet: that takes milliseconds, and a new process takes
a second.
"""

import json
import os
import signal
import sys
from pathlib import Path

from mlx_qwen3 import interrupt
from mlx_qwen3.conversion.convert import convert

WATCHED = {"open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.listdir", "shutil.rmtree", "shutil.copyfile"}


class Fuse:
    """Sends a signal to the process at an event. SIGKILL is like a power cut: nothing is flushed, no handler runs."""

    def __init__(self, folder: Path, point: int, number: int):
        self.count = 0
        self._folder, self._point, self._signal = str(folder), point, number
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple) -> None:
        if event in WATCHED and arguments and str(arguments[0]).startswith(self._folder):
            self.burn()

    def burn(self) -> None:
        self.count += 1
        if self.count == self._point + 1:  # the clean-up after Ctrl-C comes here too
            os.kill(os.getpid(), self._signal)


def run(source: str, folder: Path, options: dict, point: int, number: int) -> None:
    interrupt.install()
    fuse = Fuse(folder, point, number)
    convert(source, folder / "out", progress=lambda stage, done: fuse.burn(), **options)
    print(fuse.count, flush=True)
    os._exit(0)


if __name__ == "__main__":
    source, folder, options, name, *points = sys.argv[1:]
    number = signal.Signals[name]
    ended = interrupt.INTERRUPTED if number == signal.SIGINT else -number
    for point in map(int, points):
        place = Path(folder) / str(point)
        place.mkdir(exist_ok=True)
        if (child := os.fork()) == 0:
            run(source, place, json.loads(options), point, number)
        status = os.waitpid(child, 0)[1]
        expected = 0 if point < 0 else ended
        if os.waitstatus_to_exitcode(status) != expected:
            sys.exit(f"the run to point {point} ended with {os.waitstatus_to_exitcode(status)}")
