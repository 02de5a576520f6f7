"""The command line: parse, call, turn errors into one line."""

import io
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from .errors import Qwen3Error, UsageError

INTERRUPTED = 130  # 128 + SIGINT, as shells count


class Commands(click.Group):
    """A group whose every failure is one line on stderr: exit code 2 for usage, 1 for the rest, never a traceback."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        _open_standard_streams()
        try:
            code = super().main(*args, **{**kwargs, "standalone_mode": False})
            sys.stdout.flush()
        except click.ClickException as error:
            code = _fail(error.format_message(), error.exit_code)
        except Qwen3Error as error:
            code = _fail(str(error), error.exit_code)
        except (KeyboardInterrupt, click.Abort):
            code = INTERRUPTED
        except BrokenPipeError:  # the reader, `head` say, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            code = 1
        except OSError as error:  # a full disk behind stdout, say
            code = _fail(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", 1)
        except Exception as error:
            if os.environ.get("MLX_QWEN3_TRACEBACK"):
                raise
            where = "set MLX_QWEN3_TRACEBACK=1 to see where, and please report it"
            code = _fail(f"unexpected {type(error).__name__}: {error}; {where}", 1)
        sys.exit(code or 0)


def _show_version(context: click.Context, _option: click.Parameter, wanted: bool) -> None:
    if not wanted:
        return
    from importlib.metadata import version

    import mlx.core as mx

    from . import __version__, blas

    device = str(mx.default_device()).removeprefix("Device(").split(",")[0]
    click.echo(f"mlx-qwen3 {__version__}, MLX {version('mlx')} on {device}, BLAS {blas.in_use or 'of MLX'}")
    context.exit()


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.option("--version", is_flag=True, callback=_show_version, expose_value=False, is_eager=True, help="Versions.")
def cli() -> None:
    """Qwen3 on MLX. SOURCE is a checkpoint folder, a Hub id such as Qwen/Qwen3-0.6B, or `demo`."""
    from . import blas

    blas.check()


@cli.command("generate")
@click.option("--prompt", required=True, metavar="TEXT", help="The user's message; - reads standard input.")
@click.option("--model", "source", metavar="SOURCE", help="Default: Qwen/Qwen3-0.6B if it is downloaded, else demo.")
@click.option("--dtype", type=click.Choice(["bf16", "fp16", "fp32"]), help="Default: the checkpoint's; fp32 on a CPU.")
@click.option("--system", metavar="TEXT", help="System message.")
@click.option("--max-tokens", type=int, metavar="N", help="Default: to the end of the context.")
@click.option("--temp", "temperature", type=float, metavar="T", help="0 is greedy. Default: the checkpoint's.")
@click.option("--top-k", type=int, metavar="K", help="0 is off. Default: the checkpoint's.")
@click.option("--top-p", type=float, metavar="P", help="1 is off. Default: the checkpoint's.")
@click.option("--min-p", type=float, metavar="M", help="0 is off. Default: the checkpoint's.")
@click.option("--seed", type=int, metavar="S", help="Repeat a reply. Default: a new one each time.")
@click.option("--think/--no-think", "thinking", default=None, help="Default: as the template has it, on for Qwen3.")
@click.option("--raw", is_flag=True, help="Continue the prompt as it is, without the chat template.")
@click.option("--stop", multiple=True, metavar="S", help="End before this text; may be given several times.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout instead of streamed text.")
def generate_command(
    prompt: str,
    source: str | None,
    dtype: str | None,
    system: str | None,
    max_tokens: int | None,
    thinking: bool | None,
    raw: bool,
    stop: tuple[str, ...],
    as_json: bool,
    **sampling: Any,
) -> None:
    """Reply to a prompt; the text streams to stdout."""
    from . import blas, generation, hub, weights
    from .config import Qwen3Config
    from .sampling import SamplingParams
    from .tokenizer import Tokenizer

    # What no model could honour is told before one is downloaded.
    _check_raw(raw, system, thinking)
    generation.check_options(max_tokens, stop)
    SamplingParams(**{name: value for name, value in sampling.items() if value is not None})
    text = _read_stdin() if prompt == "-" else prompt
    source = source or _default_source(hub)
    folder = hub.resolve(source)
    config, tokenizer = Qwen3Config.from_folder(folder), Tokenizer(folder)
    messages = [{"role": "system", "content": system}] if system is not None else []
    request = generation.prepare(
        config,
        tokenizer,
        tokenizer.encode(text) if raw else [*messages, {"role": "user", "content": text}],
        sampling=generation.default_sampling(tokenizer, thinking, **sampling),
        max_tokens=max_tokens,
        thinking=thinking,
        stop=stop,
    )
    if advice := blas.advice():
        click.echo(f"note: {advice}", err=True)
    result = _reply(weights.load_model(folder, dtype), tokenizer, request, None if as_json else _Printer())
    if as_json:
        click.echo(json.dumps({**asdict(result), "model": source}, ensure_ascii=False))
    else:
        click.echo(_statistics(result), err=True)
    if result.finish_reason == "interrupted":
        raise KeyboardInterrupt


@cli.command("convert")
@click.argument("source")
@click.argument("out", type=click.Path())
@click.option("--dtype", type=click.Choice(["bf16", "fp16", "fp32"]), help="Default: every tensor keeps its own.")
@click.option("--layout", type=click.Choice(["native", "hf"]), default="native", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def convert_command(source: str, out: str, dtype: str | None, layout: str, as_json: bool) -> None:
    """Write the checkpoint SOURCE to the new folder OUT.

    native has fused projections and is what this package loads fastest; hf has Hugging Face's names, for transformers
    and mlx-lm. Native to hf gives back the source's tensors bit for bit.
    """
    from .convert import convert

    certificate = convert(source, out, dtype=dtype, layout=layout)
    if as_json:
        click.echo(json.dumps(asdict(certificate), ensure_ascii=False))
    else:
        size = f"{certificate.bytes / 1e9:.3f} GB in {certificate.tensors} tensors"
        click.echo(f"{source} -> {out}: {certificate.layout}, {certificate.dtype}, {size}", err=True)


@cli.command("inspect")
@click.argument("source")
@click.option("--prompt", metavar="TEXT", help="The user's message; - reads standard input. Default: random tokens.")
@click.option("--batch", type=int, metavar="B", help="Rows of random tokens. Default: 1.")
@click.option("--length", type=int, metavar="L", help="Random tokens in a row. Default: 16.")
@click.option("--layer", type=int, default=0, metavar="I", help="The layer shown step by step. Default: 0.")
@click.option("--head", type=int, default=0, metavar="H", help="The head of the attention map. Default: 0.")
@click.option("--heads", is_flag=True, help="Numbers and verdicts of every head.")
@click.option("--full", is_flag=True, help="Every tensor by itself, and the numbers of every layer.")
@click.option("--dtype", type=click.Choice(["bf16", "fp16", "fp32"]), help="Default: the checkpoint's; fp32 on a CPU.")
@click.option("--rules", type=click.Path(path_type=Path), metavar="FILE", help="JSON that replaces the limits.")
@click.option("--against", metavar="SOURCE", help="Compare step by step with another checkpoint, or with `torch`.")
@click.option("--strict", is_flag=True, help="Exit code 1 where there is a fault or a difference.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE", help="Heat maps and an attention map as PNG.")
@click.option("--html", type=click.Path(path_type=Path), metavar="FILE", help="Tables and pictures on one page.")
def inspect_command(
    source: str,
    prompt: str | None,
    full: bool,
    strict: bool,
    as_json: bool,
    plot: Path | None,
    html: Path | None,
    **options: Any,
) -> None:
    """Show what flows through the model SOURCE: weights, shapes, numbers, and whether they are healthy."""
    from . import inspect

    inspect.check_files(plot, html)
    text = _read_stdin() if prompt == "-" else prompt
    report = inspect.inspect(source, inspect.Options(prompt=text, **options))
    inspect.write_files(report, plot, html, full)
    click.echo(json.dumps(inspect.as_json(report), allow_nan=False) if as_json else inspect.render(report, full))
    if strict:
        report.raise_for_fault()


def _check_raw(raw: bool, system: str | None, thinking: bool | None) -> None:
    if raw and (system is not None or thinking is not None):
        option = "--system" if system is not None else "--think" if thinking else "--no-think"
        raise UsageError(f"{option} belongs to the chat template, which --raw leaves out; drop one of them")


def _reply(model: Any, tokenizer: Any, request: Any, show: "_Printer | None") -> Any:
    """Run a request to its end or to Ctrl-C, shown as it is made."""
    from . import generation

    collector = generation.Collector(model, request)
    try:
        for step in generation.run(model, tokenizer, request):
            collector.add(step)
            if show:
                show.step(step.text, step.thinking)
    except KeyboardInterrupt:
        collector.interrupt()
    finally:
        if show:
            show.end()
    return collector.result()


class _Printer:
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


def _statistics(result: Any) -> str:
    return (
        f"{result.prompt_tokens} prompt tokens, {result.prefill_tps:.1f} tok/s | "
        f"{result.generation_tokens} generated, {result.decode_tps:.1f} tok/s | first after {result.ttft_s:.2f} s | "
        f"peak {result.peak_memory_gb:.2f} GB | {result.dtype} | {result.finish_reason}"
    )


def _default_source(hub: Any) -> str:
    source: str = hub.default_source()
    if source == "demo":
        click.echo(f"using the demo model in the package; --model {hub.DEFAULT} downloads the real one", err=True)
    return source


def _open_standard_streams() -> None:
    """A closed stdout takes nothing but is no error; a character that its encoding lacks becomes a question mark."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - stays open as long as the process
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _read_stdin() -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"standard input is not UTF-8 text ({error.reason} at byte {error.start})") from None


def _fail(message: str, code: int) -> int:
    click.echo(f"error: {' '.join(message.split())}", err=True)
    return code
