"""Standard input, output and error: what is read from them, and how text looks there."""

import io
import json
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import click

from .. import interrupt
from ..errors import UsageError
from ..report import finite
from ..table import Line, Part, escape
from .styles import rendered, styled

# Characters that json.dumps does not escape, but that mean the same when escaped: further control characters, and bytes
# of a file name that is not UTF-8.
NOT_IN_JSON = re.compile(r"[\x7f-\x9f\ud800-\udfff]")
# These change the direction of the text around them. A reply in Arabic may need them, but a one-line message does not.
DIRECTION = re.compile(r"[\u202a-\u202e\u2066-\u2069]")


def open_standard_streams() -> None:
    """Replace a closed stream by an empty one. A character that the encoding lacks becomes a question mark."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - stays open as long as the process
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def one_line(text: str) -> str:
    """Text for one line of a message."""
    return DIRECTION.sub(lambda match: f"\\u{ord(match[0]):04x}", escape(" ".join(text.split())))


def say(*parts: Part) -> None:
    """Lines on stderr. A terminal gets them folded between words."""
    foldable = [line for part in parts for line in (map(Line, part.split("\n")) if isinstance(part, str) else [part])]
    with interrupt.postponed():
        click.echo(rendered(foldable, sys.stderr, harmless=True), err=True)


def show(*parts: Part) -> None:
    """A result on stdout."""
    with interrupt.postponed():
        click.echo(rendered(parts, sys.stdout, harmless=sys.stdout.isatty()))


def show_json(content: Any) -> None:
    """One JSON object on stdout."""
    text = json.dumps(finite(content), ensure_ascii=False, allow_nan=False)
    text = NOT_IN_JSON.sub(lambda match: f"\\u{ord(match[0]):04x}", text)
    with interrupt.postponed():
        click.echo(text)


def read_stdin(instead: str = "--prompt TEXT") -> str:
    """Raises UsageError if standard input is empty or not UTF-8."""
    try:
        text = sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"standard input is not UTF-8 text ({error.reason} at byte {error.start})") from None
    if not text.strip():
        raise UsageError(f"standard input is empty; write the prompt to it, or give {instead}")
    return text


@contextmanager
def warnings_afterwards() -> Iterator[None]:
    """Hold warnings back until the end of the block, so that they do not interrupt a reply."""
    caught: list[warnings.WarningMessage] = []
    try:
        with warnings.catch_warnings(record=True) as caught:
            yield
    finally:
        for warning in caught:
            warnings.showwarning(warning.message, warning.category, warning.filename, warning.lineno)


class Printer:
    """Streams a reply to stdout. Thinking is dimmed on a terminal; elsewhere it is between its tags.

    Use it in a `with` block: the end of the block completes the line, also after an error.
    """

    def __init__(self) -> None:
        self._terminal = sys.stdout.isatty()
        self._styled = styled(sys.stdout)
        self._open, self._close = ("\x1b[2m", "\x1b[0m\n") if self._styled else ("<think>\n", "</think>\n\n")
        self._thinking = False
        self._last = "\n"
        self._suspended: Any = None  # what Ctrl-Z did before

    def __enter__(self) -> "Printer":
        interrupt.register(self._reset)
        return self

    def __exit__(self, *_: object) -> None:
        interrupt.unregister(self._reset)
        if self._styled:
            self._close_thinking()
        if not self._last.endswith("\n"):
            self._write("\n")

    def end(self, finish_reason: str | None) -> None:
        """The reply is over. Thinking that was cut has no closing tag in a pipe, since it is not complete."""
        if finish_reason == "stop":
            self._close_thinking()

    def step(self, text: str, thinking: str) -> None:
        write = partial(self._write, untrusted=True)
        if thinking:
            if not self._thinking:
                self._thinking = True
                self._watch_suspension()
                self._write(self._open)
            write(thinking)
        if text:
            self._close_thinking()
            write(text)

    def _close_thinking(self) -> None:
        if self._thinking:
            self._write(self._close if self._last.endswith("\n") else "\n" + self._close)
            self._thinking = False
            if self._suspended is not None:
                signal.signal(signal.SIGTSTP, self._suspended)

    def _write(self, text: str, untrusted: bool = False) -> None:
        sys.stdout.write(escape(text) if untrusted and self._terminal else text)
        sys.stdout.flush()
        self._last = text

    def _reset(self) -> None:
        if self._styled and self._thinking:
            os.write(sys.stdout.fileno(), b"\x1b[0m\n")

    def _watch_suspension(self) -> None:
        """Ctrl-Z in dimmed text must not leave the shell's prompt dimmed."""
        if self._styled and threading.current_thread() is threading.main_thread():
            self._suspended = signal.signal(signal.SIGTSTP, self._suspend)

    def _suspend(self, *_: object) -> None:
        self._reset()
        os.kill(os.getpid(), signal.SIGSTOP)  # not SIGTSTP, which a process without a shell ignores
        os.write(sys.stdout.fileno(), self._open.encode())  # `fg` goes on here


def statistics(result: Any) -> str:
    """What most people want to know, in a few words."""
    return f"{result.generation_tokens} tokens, {result.decode_tps:.1f} tok/s, first after {result.ttft_s:.2f} s"


def all_statistics(result: Any) -> str:
    drafts = f" | drafts {result.accepted_tokens} of {result.drafted_tokens} right" if result.drafted_tokens else ""
    cached = f", {result.cached_tokens} of them cached" if result.cached_tokens else ""
    return (
        f"{result.prompt_tokens} prompt tokens{cached}, {result.prefill_tps:.1f} tok/s | "
        f"{result.generation_tokens} generated, {result.decode_tps:.1f} tok/s{drafts} | "
        f"first after {result.ttft_s:.2f} s | peak {result.peak_memory_gb:.2f} GB | "
        f"{result.dtype} | {result.finish_reason}"
    )
