"""Where a chat gets its lines from: an editor on a terminal, a plain terminal, or a pipe."""

import sys
from collections.abc import Sequence
from typing import Any

from .styles import dumb
from .terminal import say

PROMPT = "> "
MORE = ". "  # the prompt of a line that continues the one before


class PlainReader:
    """Reads plain lines. A line that ends in a backslash continues on the next."""

    def __init__(self) -> None:
        self._shows = sys.stdin.isatty()

    def read(self) -> str:
        """What the user says next. Raises EOFError at the end, KeyboardInterrupt for Ctrl-C."""
        lines = [self._line(PROMPT)]
        while lines[-1].endswith("\\"):
            lines[-1] = lines[-1][:-1]
            try:
                lines.append(self._line(MORE))
            except EOFError:
                break
        return "\n".join(lines)

    def _line(self, prompt: str) -> str:
        if self._shows:
            sys.stderr.write(prompt)
            sys.stderr.flush()
        try:
            line = sys.stdin.buffer.readline()
        except KeyboardInterrupt:
            self._leave_line()
            raise
        if not line:
            self._leave_line()
            raise EOFError
        return line.decode("utf-8", "replace").rstrip("\r\n")

    def _leave_line(self) -> None:
        if self._shows:
            sys.stderr.write("\n")


class Editor:
    """A line editor with history and completion. Enter sends, Alt-Enter begins a new line."""

    def __init__(self, commands: Sequence[str]):
        from prompt_toolkit import PromptSession
        from prompt_toolkit.completion import WordCompleter
        from prompt_toolkit.history import InMemoryHistory
        from prompt_toolkit.key_binding import KeyBindings

        keys = KeyBindings()

        @keys.add("enter")
        def send(event: Any) -> None:
            event.current_buffer.validate_and_handle()

        @keys.add("escape", "enter")
        def new_line(event: Any) -> None:
            event.current_buffer.insert_text("\n")

        self._session: Any = PromptSession(
            PROMPT,
            history=InMemoryHistory(),
            completer=WordCompleter(list(commands), sentence=True),
            key_bindings=keys,
            multiline=True,
            prompt_continuation=MORE,
            enable_suspend=True,  # Ctrl-Z
        )

    def read(self) -> str:
        text: str = self._session.prompt()
        return text


def make_reader(commands: Sequence[str]) -> PlainReader | Editor:
    """The best reader that this terminal and installation allow."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()) or dumb():
        return PlainReader()
    try:
        return Editor(commands)
    except ImportError:
        say("note: pip install 'mlx-qwen3[chat]' gives this prompt a history, several lines and completion")
        return PlainReader()
