"""The processes of contestants and servers: starts them, sends them commands, ends them."""

import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from .. import blas, interrupt
from ..errors import BenchError
from .options import Contestant

PACKAGE = Path(__file__).parent.parent
WORKERS = Path(__file__).parent / "workers"
PATIENCE = 10  # seconds that a child has to end
LAST_WORDS = 600  # characters of standard error that an error message quotes
# Loads workers/ as a package of its own. As a part of mlx_qwen3 it would also run that package's start-up code in the
# processes of the others, which loads a BLAS.
BOOT = """
import importlib, importlib.util, sys
folder = sys.argv[1]
spec = importlib.util.spec_from_file_location(
    "bench_workers", folder + "/__init__.py", submodule_search_locations=[folder])
package = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(package)
module = importlib.import_module("bench_workers." + sys.argv[2])
module.main(*sys.argv[3:])
"""


def environment() -> dict[str, str]:
    """The environment of the user, in which children import this same package, even if it is not installed."""
    root, users = str(PACKAGE.parent), {name: value for name, value in os.environ.items() if name not in blas.added}
    if "site-packages" in root:
        return users
    return {**users, "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))}


class Child:
    """The process of a module of workers/. It is ended when the `with` block ends, even if it is still working."""

    def __init__(self, name: str, *arguments: str, answers: bool):
        """Start it, and wait until it is `ready`. `answers`: its stdout is for `ready`, and not for its last words."""
        self.name = name
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - a pipe that nobody reads would fill up
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", BOOT, str(WORKERS), *arguments],
            stdin=subprocess.PIPE,  # which ends with this process, and then so does the child
            stdout=subprocess.PIPE if answers else self._errors,
            stderr=self._errors,
            env=environment(),
            text=True,
        )
        interrupt.register(self._process.kill)
        try:
            self.ready()
        except BaseException:
            self.close()
            raise

    def ready(self) -> None:
        """Wait until it has started. Raises BenchError if it ends instead."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._process.terminate()  # not a kill, which would lose the measurement of coverage
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        interrupt.unregister(self._process.kill)
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream:
                with suppress(BrokenPipeError):
                    stream.close()

    def last_words(self) -> str:
        self._errors.seek(0)
        text = self._errors.read().decode(errors="replace").strip()
        return "..." + text[-LAST_WORDS:] if len(text) > LAST_WORDS else text or "none"


class Worker(Child):
    """One contestant, which answers commands."""

    def __init__(self, contestant: Contestant):
        began = time.perf_counter()
        super().__init__(contestant.name, "serve", contestant.kind.module, contestant.blas, answers=True)
        self.startup_s = time.perf_counter() - began

    def ready(self) -> None:
        self.greeting = self._reply("starting")

    def ask(self, command: str, **arguments: Any) -> dict[str, Any]:
        """The answer to one command. Raises BenchError if the worker reports an error or is gone."""
        assert self._process.stdin
        with suppress(BrokenPipeError):  # `_reply` reports that the process is gone
            self._process.stdin.write(json.dumps([command, arguments]) + "\n")
            self._process.stdin.flush()
        return self._reply(command)

    def _reply(self, doing: str) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            raise BenchError(f"{self.name} ended with code {code} ({doing}); its last words: {self.last_words()}")
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise BenchError(f"{self.name} failed ({doing}): {reply['error']}")
        return reply
