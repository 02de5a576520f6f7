"""The group of commands: every failure is one line on stderr, never a traceback."""

import atexit
import os
import re
import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from typing import Any, NoReturn

import click

from .. import interrupt
from ..errors import Qwen3Error, Qwen3Warning, UsageError
from .options import with_option_names
from .terminal import one_line, open_standard_streams, say, show

# Each is a module of this folder -> an example
COMMANDS = {
    "generate": 'mlx-qwen3 generate --prompt "What is 17 + 25?"',
    "chat": "mlx-qwen3 chat",
    "serve": "mlx-qwen3 serve --port 8080",
    "convert": "mlx-qwen3 convert Qwen/Qwen3-0.6B qwen3-4bit --quantize affine4",
    "verify": "mlx-qwen3 verify qwen3-4bit --source Qwen/Qwen3-0.6B",
    "inspect": "mlx-qwen3 inspect demo --html demo.html",
    "bench": "mlx-qwen3 bench demo",
}
# What click says -> how it is said here
OUR_WORDS = {
    r"^Missing argument '(\w+)'\.$": r"\1 is missing; --help shows where to write it",
    r"^Got unexpected extra arguments? \((.*)\)$": r"'\1' belongs to no option; --help lists them",
}
PYTHONS_OWN = warnings.showwarning


def run(arguments: Sequence[str] | None = None) -> NoReturn:
    """Run a command and end the process. By default `arguments` are those of the process."""
    interrupt.install()
    interrupt.watch()
    code: Any = None
    try:
        cli(arguments, prog_name="mlx-qwen3")
    except SystemExit as error:
        code = error.code
    atexit._run_exitfuncs()
    _let_go_of_stdout()  # an exit function may have written to it
    os._exit(code)  # without Python's shutdown, in which MLX's threads can abort the process


def _look_for_compiler() -> None:
    """Let MLX look for g++ now, which it does once in a process.

    It runs a shell with `system`, which ignores Ctrl-C until it returns. At this moment the main thread holds the
    signal back, and the threads that would receive the signal and lose it do not run yet.
    """
    import mlx.core as mx

    with interrupt.held():
        mx.compile(mx.negative)(mx.zeros(1))  # not evaluated, so nothing is compiled


class Commands(click.Group):
    """Imports a command when it is asked for. Exit codes: 2 for usage, 1 for other errors, 130 for Ctrl-C."""

    def list_commands(self, context: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        command: click.Command | None = None
        if name in COMMANDS:
            command = import_module(f".{name}", __package__).command
            command.epilog = f"Example: {COMMANDS[name]}"
        return command

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Raises UsageError for an unknown command; click would not say which there are."""
        if args[0] in COMMANDS or args[0].startswith("-"):
            return super().resolve_command(context, args)
        from difflib import get_close_matches

        close = get_close_matches(args[0], COMMANDS, 1)
        meant = f"did you mean {close[0]}?" if close else f"expected one of {', '.join(COMMANDS)}"
        raise UsageError(f"there is no command {args[0][:60]!r}; {meant}")

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Two lines for each command: what it does, and an example."""
        found = {name: self.get_command(context, name) for name in COMMANDS}
        with formatter.section("Commands"):
            formatter.write_dl(
                [(name, f"\b\n{command.short_help}\n{COMMANDS[name]}") for name, command in found.items() if command]
            )

    def invoke(self, context: click.Context) -> Any:
        """Errors name the options of the command, where Python's arguments have other names."""
        try:
            return super().invoke(context)
        except Qwen3Error as error:
            if error.names_keys:
                raise
            command = self.get_command(context, context.invoked_subcommand or "")
            raise type(error)(with_option_names(str(error), command)) from error

    def main(self, *args: Any, **kwargs: Any) -> Any:
        open_standard_streams()
        warnings.showwarning = _warn
        try:
            code = super().main(*args, **{**kwargs, "standalone_mode": False})
            sys.stdout.flush()
        except click.ClickException as error:
            code = _fail(in_our_words(error.format_message()), error.exit_code)
        except Qwen3Error as error:
            code = _fail(str(error), error.exit_code)
        except (KeyboardInterrupt, click.Abort):
            code = interrupt.INTERRUPTED
        except BrokenPipeError:  # the reader, such as `head`, has closed the pipe
            code = 1
        except OSError as error:  # for example, stdout is a file and the disk is full
            code = _fail(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", 1)
        except Exception as error:
            if os.environ.get("MLX_QWEN3_TRACEBACK"):
                raise
            where = "set MLX_QWEN3_TRACEBACK=1 to see where, and please report it"
            code = _fail(f"unexpected {type(error).__name__}: {error}; {where}", 1)
        sys.exit(code or 0)


@click.group(
    cls=Commands,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.option(
    "--version",
    is_flag=True,
    callback=lambda *args: _show_version(*args),
    expose_value=False,
    is_eager=True,
    help="Show the versions.",
)
@click.pass_context
def cli(context: click.Context) -> None:
    """Qwen3 on MLX.

    SOURCE is a checkpoint folder, a Hub id such as Qwen/Qwen3-0.6B, or a model of the package: `demo`, or `demo-moe`
    with a mixture of experts.
    """
    from .. import blas

    if context.invoked_subcommand is None:
        show(context.get_help())
    else:
        blas.check()
        if sys.platform == "linux":  # elsewhere MLX computes on a GPU
            _look_for_compiler()


def _show_version(context: click.Context, _option: click.Parameter, wanted: bool) -> None:
    if not wanted:
        return
    from importlib.metadata import version

    import mlx.core as mx

    from .. import __version__, blas

    device = str(mx.default_device()).removeprefix("Device(").split(",")[0]
    show(f"mlx-qwen3 {__version__}, MLX {version('mlx')} on {device}, BLAS {blas.in_use or 'of MLX'}")
    context.exit()


def in_our_words(message: str) -> str:
    """A message of click about a value, in the form that our own messages have."""
    match = re.fullmatch(r"Invalid value for '(.*?)': (.*) is not (a valid|in the range|one of) (.*?)\.?", message)
    if not match:
        for pattern, ours in OUR_WORDS.items():
            message = re.sub(pattern, ours, message)
        return message
    name, value, kind, allowed = match.groups()
    if kind == "a valid":
        allowed = {"integer": "a whole number", "float": "a number"}.get(allowed.split()[0], allowed)
    elif kind == "in the range":
        low, _, high = allowed.partition("<=x<=")
        allowed = f"{low} to {high}" if high else f"{allowed.removeprefix('x>=')} or more"
    else:
        allowed = f"one of {allowed.replace(chr(39), '')}"
    return f"{name} is {value}; expected {allowed}"


def _fail(message: str, code: int) -> int:
    say(f"error: {one_line(message)}")
    return code


def _let_go_of_stdout() -> None:
    """Drop output that cannot be written: at its end the interpreter would try again and print an error."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _warn(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
    """Show a warning of ours as one line, and those of libraries as Python does."""
    if issubclass(category, Qwen3Warning):
        context = click.get_current_context(silent=True)
        text = with_option_names(str(message), context.command if context else None)
        say(f"warning: {one_line(text)}")
    else:
        PYTHONS_OWN(message, category, *place, **more)
