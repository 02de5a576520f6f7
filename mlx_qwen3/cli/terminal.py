"""Standard input, output and error: what is read from them, and how a reply looks there."""

import io
import os
import sys
from typing import Any

from ..errors import UsageError


def open_standard_streams() -> None:
    """A closed stdout takes nothing but is no error; a character that its encoding lacks becomes a question mark."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - stays open as long as the process
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def read_stdin() -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"standard input is not UTF-8 text ({error.reason} at byte {error.start})") from None


class Printer:
    """Streams a reply to stdout; on a terminal thinking is dimmed, elsewhere it stands in its tags."""

    def __init__(self) -> None:
        self._dim, self._plain = ("\x1b[2m", "\x1b[0m\n") if sys.stdout.isatty() else ("<think>\n", "</think>\n\n")
        self._thinking = False
        self._last = "\n"

    def step(self, text: str, thinking: str) -> None:
        if thinking:
            self._write(thinking if self._thinking else self._dim + thinking)
            self._thinking = True
        if text:
            self._close_thinking()
            self._write(text)

    def end(self) -> None:
        self._close_thinking()
        if not self._last.endswith("\n"):
            self._write("\n")

    def _close_thinking(self) -> None:
        if self._thinking:
            self._write(self._plain if self._last.endswith("\n") else "\n" + self._plain)
            self._thinking = False

    def _write(self, text: str) -> None:
        self._last = ""  # where Ctrl-C falls in between, the line counts as open
        sys.stdout.write(text)
        sys.stdout.flush()
        self._last = text


def statistics(result: Any) -> str:
    drafts = f" | drafts {result.accepted_tokens} of {result.drafted_tokens} right" if result.drafted_tokens else ""
    return (
        f"{result.prompt_tokens} prompt tokens, {result.prefill_tps:.1f} tok/s | "
        f"{result.generation_tokens} generated, {result.decode_tps:.1f} tok/s{drafts} | "
        f"first after {result.ttft_s:.2f} s | peak {result.peak_memory_gb:.2f} GB | "
        f"{result.dtype} | {result.finish_reason}"
    )
