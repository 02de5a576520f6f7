"""`mlx-qwen3 chat`: a conversation at a terminal, or from a pipe."""

import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from .. import interrupt
from ..errors import Qwen3Error
from ..table import DIM, Line
from .chat_commands import COMMANDS, SETTING_NAMES, Quit, obey
from .models import Opened
from .options import (
    ADAPTER,
    DRAFTS,
    DTYPE,
    MEMORY,
    REPLY,
    SAMPLING,
    TEMPLATE,
    THINKING,
    model_options,
    reply_options,
    sampling_options,
    with_names,
    with_options,
)
from .reader import Editor, PlainReader, make_reader
from .terminal import Printer, one_line, say, warnings_afterwards

if TYPE_CHECKING:
    from ..engine.engine import Engine, Reply
    from ..engine.reply import Result
    from ..engine.session import Session


@click.command("chat", short_help="Talk with a model.")
@click.argument("source", required=False, metavar="[SOURCE]")
@ADAPTER
@DTYPE
@click.option("--system", metavar="TEXT", help="System message.")
@with_options(*REPLY, *SAMPLING, *THINKING, *TEMPLATE, *DRAFTS, *MEMORY)
def command(system: str | None, **options: Any) -> int:
    """Talk with a model. SOURCE is by default Qwen/Qwen3-0.6B if it is downloaded, else demo.

    /help lists the commands. Ctrl-C ends a reply and keeps the conversation; at the prompt, twice, it ends the chat.
    Lines may also come from a pipe.
    """
    from ..engine.session import Session, Settings

    of_model, of_reply, sampling = model_options(options), reply_options(options), sampling_options(options)
    settings = Settings.of(of_reply, system, sampling)
    opened = Opened(of_model)
    session = Session(opened.config, opened.tokenizer, settings)
    engine = opened.engine(max_rows=1)
    reader = make_reader([f"/{name}" for name in COMMANDS])
    with engine:
        return Chat(session, engine, opened.source, reader).run()


class Chat:
    """The loop: a line is read, and it is a command or the user's message."""

    def __init__(self, session: "Session", engine: "Engine", source: str, reader: PlainReader | Editor) -> None:
        self.session, self.source = session, source
        self.shows_thinking = True
        self.last: Result | None = None  # the last reply, with its measurements
        self._engine, self._reader = engine, reader
        self._reading = self._stopped = False
        self._reply: Reply | None = None

    def run(self) -> int:
        """Returns the exit code."""
        asked = False
        if sys.stdin.isatty():
            say(f"{self.source}, a context of {self.session.context:,} tokens; /help lists the commands")
        with interrupt.answered(self._stop):
            while True:
                try:
                    line = self._read()
                except EOFError:
                    return 0
                except KeyboardInterrupt:
                    if asked:
                        return interrupt.INTERRUPTED
                    asked = True
                    say("Ctrl-C again, or /quit, ends the chat")
                    continue
                asked = False
                try:
                    self._take(line)
                except Quit:
                    return 0
                except Qwen3Error as error:
                    names = {} if error.names_keys else SETTING_NAMES
                    say(f"error: {one_line(with_names(str(error), names))}")
                except BrokenPipeError:
                    raise
                except Exception as error:  # no error ends the conversation
                    say(f"error: unexpected {type(error).__name__}: {one_line(str(error))}")

    def turn(self, text: str) -> None:
        """Ask for a reply, show it as it is made, and keep both."""
        request = self.session.request(text)
        if warning := self.session.warning(request):
            say(f"warning: {warning}")
        self._stopped = False
        result = self._show(request)
        if result.tokens:
            self.session.keep(text, result)
            self.last = result
            self._tell_end(result)

    def _show(self, request: Any) -> "Result":
        from ..engine.reply import Collector

        collector = Collector(self._engine.model, request)
        reply = self._reply = self._engine.submit(request)
        try:
            if self._stopped:  # Ctrl-C came before there was anything to cancel
                reply.cancel()
            with warnings_afterwards(), Printer() as printer, Folded(self.shows_thinking) as folded:
                for chunk in reply:
                    collector.add(chunk)
                    printer.step(chunk.text, folded.step(chunk.thinking, chunk.text))
                    printer.end(chunk.finish_reason)
        finally:
            self._reply = None
        result = collector.result()
        if self._stopped and not result.finish_reason:
            collector.interrupt()
            result = collector.result()
        return result

    def _tell_end(self, result: "Result") -> None:
        """How the reply ended, if it was cut, and on a terminal how full the context is."""
        used, context = self.session.used, self.session.context
        if result.finish_reason == "length":
            full = used >= context
            say("the reply was cut at the end of the context" if full else "the reply was cut at its token limit")
        if result.finish_reason == "interrupted":
            say("the reply was interrupted; /undo drops it, /retry asks again")
        if sys.stdin.isatty() and sys.stderr.isatty():
            line = f"[{used:,} of {context:,} tokens, {used / context:.0%} | {result.decode_tps:.1f} tok/s]"
            say(Line(line, DIM))

    def _read(self) -> str:
        self._reading = True
        try:
            return self._reader.read()
        finally:
            self._reading = False

    def _take(self, line: str) -> None:
        if line.startswith("/"):
            obey(self, line)
        elif line.strip():
            self.turn(line.strip())

    def _stop(self) -> None:
        """Ctrl-C."""
        if self._reading:
            raise KeyboardInterrupt
        self._stopped = True
        if self._reply is not None:
            self._reply.cancel()


class Folded:
    """The place of thinking that is not shown: one line that counts its tokens."""

    def __init__(self, shows: bool) -> None:
        self._shows, self._count = shows, 0

    def __enter__(self) -> "Folded":
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def step(self, thinking: str, text: str) -> str:
        """The thinking to show."""
        if self._shows:
            return thinking
        if thinking:
            self._count += 1
            if self._count == 1:
                self._write("(thinking ...")
        if text:
            self._close()
        return ""

    def _close(self) -> None:
        if self._count:
            self._write(f" {self._count} tokens; /thinking shows them)\n")
            self._count = 0

    def _write(self, text: str) -> None:
        with suppress(OSError):
            sys.stderr.write(text)
            sys.stderr.flush()
