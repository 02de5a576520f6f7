"""The command line: parse, call, turn errors into one line."""

import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from .errors import Qwen3Error, UsageError
from .terminal import Printer, open_standard_streams, read_stdin, statistics

INTERRUPTED = 130  # 128 + SIGINT, as shells count


class Commands(click.Group):
    """A group whose every failure is one line on stderr: exit code 2 for usage, 1 for the rest, never a traceback."""

    def main(self, *args: Any, **kwargs: Any) -> Any:
        open_standard_streams()
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
            code = 1
        except OSError as error:  # a full disk behind stdout, say
            code = _fail(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}", 1)
        except Exception as error:
            if os.environ.get("MLX_QWEN3_TRACEBACK"):
                raise
            where = "set MLX_QWEN3_TRACEBACK=1 to see where, and please report it"
            code = _fail(f"unexpected {type(error).__name__}: {error}; {where}", 1)
        _let_go_of_stdout()
        sys.exit(code or 0)


def _let_go_of_stdout() -> None:
    """What cannot be written is dropped here: the interpreter would try again at its end, and complain."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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
@click.option("--draft", metavar="SOURCE", help="A smaller model of the same vocabulary whose guesses are checked.")
@click.option(
    "--lookup/--no-lookup",
    default=None,
    help="Check guesses from what was said before. Default: while it pays. Neither changes a token.",
)
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
    draft: str | None,
    lookup: bool | None,
    as_json: bool,
    **sampling: Any,
) -> None:
    """Reply to a prompt; the text streams to stdout."""
    from . import blas, generation, hub, loading
    from .config import Qwen3Config
    from .sampling import SamplingParams
    from .tokenizer import Tokenizer

    # What no model could honour is told before one is downloaded.
    _check_raw(raw, system, thinking)
    generation.check_options(max_tokens, stop)
    SamplingParams(**{name: value for name, value in sampling.items() if value is not None})
    text = read_stdin() if prompt == "-" else prompt
    source = source or _default_source(hub)
    folder, draft_folder = hub.resolve(source), hub.resolve(draft) if draft is not None else None
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
    if draft_folder:
        generation.check_draft(draft_folder, config, tokenizer)
    if advice := blas.advice():
        click.echo(f"note: {advice}", err=True)
    model = loading.load_model(folder, dtype)
    drafts = (loading.load_model(draft_folder, dtype) if draft_folder else None, lookup)
    result = _reply(model, tokenizer, request, drafts, None if as_json else Printer())
    if as_json:
        click.echo(json.dumps({**asdict(result), "model": source}, ensure_ascii=False))
    else:
        click.echo(statistics(result), err=True)
    if result.finish_reason == "interrupted":
        raise KeyboardInterrupt


@cli.command("convert")
@click.argument("source")
@click.argument("out", type=click.Path())
@click.option("--dtype", type=click.Choice(["bf16", "fp16", "fp32"]), help="Default: every tensor keeps its own.")
@click.option("--layout", type=click.Choice(["native", "hf"]), default="native", show_default=True)
@click.option(
    "--quantize",
    metavar="MODE",
    help="affine{2,3,4,5,6,8}, with g32, g64 or g128 behind it; mxfp4, mxfp8, nvfp4; mixed; none unpacks.",
)
@click.option("--bits", type=float, metavar="X", help="Budget of mixed in bits per weight.  [default: 5]")
@click.option("--text", type=click.Path(), metavar="FILE", help="Measure the perplexity on it; default: built in.")
@click.option("--max-kl", type=float, metavar="X", help="Publish nothing, and exit 1, past this mean KL divergence.")
@click.option("--no-behaviour", is_flag=True, help="Do not compare what source and result compute.")
@click.option("--shard-size", default="5GB", show_default=True, metavar="SIZE", help="Largest file.")
@click.option("--overwrite", is_flag=True, help="Replace OUT, when the new one is complete.")
@click.option("--dry-run", is_flag=True, help="Print what would be done, and the sizes before and after.")
@click.option("--progress/--no-progress", default=None, help="Default: a bar on a terminal.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def convert_command(
    source: str,
    out: str,
    text: str | None,
    max_kl: float | None,
    no_behaviour: bool,
    overwrite: bool,
    dry_run: bool,
    progress: bool | None,
    as_json: bool,
    shard_size: str,
    **choices: Any,
) -> None:
    """Write the checkpoint SOURCE to the folder OUT, with a certificate of what was done.

    native has fused projections and is what this package loads fastest; hf has Hugging Face's names, for transformers
    and mlx-lm. Native to hf gives back the source's tensors bit for bit. Killed, the same command goes on where it was.
    """
    from . import certificate, plan
    from .convert import convert, dry_plan

    choices["shard_bytes"] = plan.parse_size(shard_size)
    with _Bar(progress) as bar:
        if dry_run:
            planned = dry_plan(source, out, overwrite=overwrite, progress=bar, **choices)
        else:
            made = convert(
                source,
                out,
                behaviour=not no_behaviour,
                text=text,
                max_kl=max_kl,
                overwrite=overwrite,
                progress=bar,
                **choices,
            )
    if as_json:
        click.echo(json.dumps(planned.summary() if dry_run else made.summary(), ensure_ascii=False))
    else:
        click.echo(planned.table() if dry_run else certificate.table(made), err=True)


@cli.command("verify")
@click.argument("folder", metavar="DIR")
@click.option("--source", metavar="SOURCE", help="What it was converted from: compare with it again.")
@click.option("--torch", is_flag=True, help="Compare with transformers, layer by layer.")
@click.option("--progress/--no-progress", default=None, help="Default: a bar on a terminal.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def verify_command(folder: str, source: str | None, torch: bool, progress: bool | None, as_json: bool) -> None:
    """Check the converted folder DIR against its certificate: every byte, then what it computes."""
    from .verify import report, verify

    with _Bar(progress) as bar:
        verification = verify(folder, source, torch=torch, progress=bar)
    if as_json:
        click.echo(json.dumps(verification.summary(), ensure_ascii=False))
    else:
        click.echo(report(verification), err=True)


class _Bar:
    """Progress on stderr, one bar for each stage: bytes and rate, or steps. Lines where it is no terminal."""

    def __init__(self, wanted: bool | None) -> None:
        self._terminal = sys.stderr.isatty()
        self._on = self._terminal if wanted is None else wanted
        self._stage = ""
        self._bar: Any = None
        self._done = self._total = self._tenths = 0
        self._began = 0.0

    def __enter__(self) -> "_Bar":
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def __call__(self, stage: str, done: int, total: int) -> None:
        if not self._on:
            return
        if stage != self._stage:
            self._close()
            self._stage, self._done, self._total, self._tenths = stage, 0, total, 0
            self._began = time.monotonic()
            if self._terminal:
                self._bar = click.progressbar(
                    length=total, label=stage, item_show_func=lambda _: self._rate(), file=sys.stderr
                )
        self._done = min(self._done + done, total)  # mixed measures some parts again
        if self._bar is not None:
            self._bar.update(done, self._done)
        elif self._done * 10 // total > self._tenths:
            self._tenths = self._done * 10 // total
            click.echo(f"{stage} {10 * self._tenths}%  {self._rate()}", err=True)

    def _rate(self) -> str:
        seconds = max(time.monotonic() - self._began, 1e-6)
        if self._total < 10**4:  # steps
            return f"{self._done} of {self._total}"
        return f"{self._done / 1e9:.3f} of {self._total / 1e9:.3f} GB, {self._done / seconds / 1e6:,.0f} MB/s"

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.render_finish()
            self._bar = None


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
    text = read_stdin() if prompt == "-" else prompt
    report = inspect.inspect(source, inspect.Options(prompt=text, **options))
    inspect.write_files(report, plot, html, full)
    click.echo(json.dumps(inspect.as_json(report), allow_nan=False) if as_json else inspect.render(report, full))
    if strict:
        report.raise_for_fault()


@cli.command("bench")
@click.argument("source")
@click.option(
    "--against",
    metavar="NAMES",
    help="Some of torch, reference, mlx-lm, with commas; name:fp32 asks for a dtype. Default: torch,mlx-lm, those that "
    "are installed and can read it.",
)
@click.option(
    "--prompt-tokens", default="16,512,2048", show_default=True, metavar="L,L", help="Lengths of the prompts."
)
@click.option("--generate", type=int, default=128, show_default=True, metavar="N", help="Tokens behind each prompt.")
@click.option("--repeat", type=int, default=5, show_default=True, metavar="N", help="Timed runs of everything.")
@click.option(
    "--dtype", default="default", show_default=True, help="default, each as its users get it; bf16, fp16, fp32."
)
@click.option("--same-blas", is_flag=True, help="Give the others the BLAS that this package loaded.")
@click.option("--no-reference", is_flag=True, help="Leave out reference.py, which runs beside torch.")
@click.option("--roofline", is_flag=True, help="Print the limits of this machine before the numbers.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), metavar="FILE", help="Everything, every repeat.")
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE", help="Bars with spread as PNG.")
@click.option(
    "--check",
    "baseline_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="What --json wrote before: exit code 1 where a ratio is worse.",
)
@click.option("--margin", type=float, default=0.15, show_default=True, metavar="X", help="By how much it may be.")
@click.option("--progress/--no-progress", default=None, help="Default: a bar on a terminal.")
def bench_command(
    against: str | None,
    prompt_tokens: str,
    no_reference: bool,
    roofline: bool,
    json_file: Path | None,
    plot: Path | None,
    baseline_file: Path | None,
    margin: float,
    progress: bool | None,
    **choices: Any,
) -> None:
    """Measure SOURCE beside torch and mlx-lm: same tokens, in turns, outputs compared first; Markdown on stdout."""
    from . import bench

    options = bench.parse(against, prompt_tokens, reference=not no_reference, **choices)
    bench.check_files(json_file, plot)
    baseline = bench.read_baseline(baseline_file, margin) if baseline_file else None

    def ready(report: bench.Report) -> None:
        if baseline:
            bench.check_settings(report, baseline)
        if roofline:
            click.echo(bench.limits_table(report) + "\n")

    with _Bar(progress) as bar:
        report = bench.bench(options, bar, ready)
    click.echo(bench.render(report))
    bench.write_files(report, json_file, plot)
    if baseline:
        bench.check(report, baseline, margin)


def _check_raw(raw: bool, system: str | None, thinking: bool | None) -> None:
    if raw and (system is not None or thinking is not None):
        option = "--system" if system is not None else "--think" if thinking else "--no-think"
        raise UsageError(f"{option} belongs to the chat template, which --raw leaves out; drop one of them")


def _reply(model: Any, tokenizer: Any, request: Any, drafts: tuple[Any, Any], show: Printer | None) -> Any:
    """Run a request to its end or to Ctrl-C, shown as it is made."""
    from . import generation

    collector = generation.Collector(model, request)
    try:
        for step in generation.run(model, tokenizer, request, *drafts):
            collector.add(step)
            if show:
                show.step(step.text, step.thinking)
    except KeyboardInterrupt:
        collector.interrupt()
    finally:
        if show:
            show.end()
    return collector.result()


def _default_source(hub: Any) -> str:
    source: str = hub.default_source()
    if source == "demo":
        click.echo(f"using the demo model in the package; --model {hub.DEFAULT} downloads the real one", err=True)
    return source


def _fail(message: str, code: int) -> int:
    click.echo(f"error: {' '.join(message.split())}", err=True)
    return code
