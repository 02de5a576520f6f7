"""`mlx-qwen3 bench`"""

import os
import shlex
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from .. import interrupt
from ..errors import UsageError
from .options import WEIGHTS, adapter_option
from .progress import Bar
from .styles import rendered
from .terminal import show

NOT_WITH_SERVE = ("adapters", "prompt_tokens", "rows", "no_reference", "roofline", "plot", "baseline_file", "margin")


@click.command("bench", short_help="Measure speed and memory beside other libraries.")
@click.argument("source")
@adapter_option(
    "Measure all with this adapter of PEFT or mlx-lm. transformers applies one of PEFT, mlx-lm one of its own. May be "
    "repeated."
)
@click.option(
    "--against",
    metavar="NAMES",
    help="Some of transformers, reference, mlx-lm, separated by commas; name:fp32 sets a dtype. mlx-qwen3:packed and "
    "mlx-qwen3:unpacked measure this package once more. Default: transformers,mlx-lm, if they are installed and can "
    "read SOURCE.",
)
@click.option(
    "--prompt-tokens",
    default="16,512",
    metavar="L,L",
    help="Lengths of the prompts. Default: 16,512, or less if that takes much longer than a minute.",
)
@click.option(
    "--generate",
    type=int,
    default=64,
    metavar="N",
    help="Tokens to generate after each prompt. Default: 64, or fewer if that takes much longer than a minute.",
)
@click.option(
    "--rows",
    metavar="N,N",
    help="Requests at once, such as 1,2,4,8,16: also measure the tokens per second of all rows, with prompts of the "
    "shortest length.",
)
@click.option(
    "--serve",
    is_flag=True,
    help="Measure the server instead, beside mlx_lm.server: tokens per second, first tokens, and gaps in a reply.",
)
@click.option("--clients", metavar="N,N", help="With --serve: how many clients ask at once. Default: 1,8.")
@click.option(
    "--repeat",
    type=int,
    metavar="N",
    help="Rounds in which everything is timed once. Default: as many as end in about a minute, at most 5.",
)
@click.option(
    "--dtype",
    default="default",
    metavar="NAME",
    show_default=True,
    help="bf16, fp16, fp32, or default: each program's own default.",
)
@WEIGHTS
@click.option("--same-blas", is_flag=True, help="Give the others the BLAS that this package loaded.")
@click.option(
    "--no-reference", is_flag=True, help="Leave out reference.py, which by default runs if transformers does."
)
@click.option("--roofline", is_flag=True, help="Print the limits of this machine before the results.")
@click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write everything, with every repeat; after each round, what is complete.",
)
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE", help="Draw speed and memory as PNG.")
@click.option(
    "--check",
    "baseline_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Compare with a file that --json wrote: exit code 1 if a ratio got worse.",
)
@click.option(
    "--margin",
    type=float,
    default=0.15,
    show_default=True,
    metavar="X",
    help="How much worse a ratio may be, as a share.",
)
@click.option("--markdown", is_flag=True, help="Print Markdown, with the spread of the repeats.")
@click.option("--progress/--no-progress", default=None, help="Default: a bar on a terminal, lines elsewhere.")
@click.pass_context
def command(
    context: click.Context,
    /,
    against: str | None,
    prompt_tokens: str,
    rows: str | None,
    serve: bool,
    clients: str | None,
    no_reference: bool,
    roofline: bool,
    json_file: Path | None,
    plot: Path | None,
    baseline_file: Path | None,
    margin: float,
    markdown: bool,
    progress: bool | None,
    **choices: Any,
) -> None:
    """Measure SOURCE beside transformers and mlx-lm.

    All get the same tokens and run in turns. Outputs are compared first. The result is a table on stdout.

    If it is stopped, by Ctrl-C too, the rounds that are complete are kept."""
    from .. import bench

    if serve:
        _check_serve(context)
        _serve(command_line(context), against, clients, json_file, markdown, progress, choices)
        return
    if clients is not None:
        raise UsageError("--clients needs --serve, whose clients it counts")
    fit = not any(_given(context, name) for name in ("prompt_tokens", "generate"))
    options = bench.parse(against, prompt_tokens, rows, reference=not no_reference, fit=fit, **choices)
    bench.check_files(json_file, plot)
    baseline = bench.read_baseline(baseline_file, margin) if baseline_file else None

    def ready(report: bench.Report) -> None:
        if roofline:
            limits = bench.limits_table(report)
            show(limits.markdown() if markdown else limits, "")

    def page(report: bench.Report) -> bench.Page:
        return bench.page(report, brief=not markdown)

    with Kept(page, bench.write_json, markdown, json_file, command_line(context)) as kept:
        with Bar(progress is not False) as bar:
            report = bench.bench(options, bar, ready, baseline, kept.keep, bar.note)
        kept.finish(report)
    if plot:
        bench.write_picture(report, plot)
    if baseline:
        bench.check(report, baseline, margin)


def command_line(context: click.Context) -> str:
    """The command as it was given, with the options in the order of the help page."""
    words = ["mlx-qwen3", str(context.info_name), str(context.params["source"])]
    for parameter in context.command.params:
        name = parameter.name or ""
        if name == "source" or not _given(context, name):
            continue
        value = context.params[name]
        if isinstance(value, bool):
            words.append((parameter.opts if value else parameter.secondary_opts)[0])
        else:
            for one in value if parameter.multiple else [value]:
                words += [parameter.opts[0], str(one)]
    return shlex.join(words)


def _given(context: click.Context, name: str) -> bool:
    return context.get_parameter_source(name) is ParameterSource.COMMANDLINE


def _check_serve(context: click.Context) -> None:
    """Raises UsageError for an option that has no meaning with --serve."""
    for parameter in context.command.params:
        if _given(context, parameter.name or "") and parameter.name in NOT_WITH_SERVE:
            raise UsageError(f"{parameter.opts[0]} has no meaning with --serve; leave one of them out")


def _serve(
    line: str,
    against: str | None,
    clients: str | None,
    json_file: Path | None,
    markdown: bool,
    progress: bool | None,
    choices: dict[str, Any],
) -> None:
    from .. import bench

    del choices["adapters"]
    serving = bench.parse_serving(against, clients, **choices)
    bench.check_files(json_file, None)
    with Kept(bench.serving_page, bench.write_serving, markdown, json_file, line) as kept:
        with Bar(progress is not False) as bar:
            report = bench.bench_serving(serving, bar, kept.keep, bar.note)
        kept.finish(report)


class Kept:
    """The results of a run. If it is stopped, or fails, the rounds that are complete are shown and written.

    Use it in a `with` block around that of the bar, whose line ends before the results are shown.
    """

    def __init__(
        self,
        page: Callable[[Any], Any],
        save: Callable[[Any, Path], None],
        markdown: bool,
        file: Path | None,
        line: str = "",
    ):
        """`page` makes the page of a report, `save` writes the report. `line` is the command line."""
        self._page, self._save, self._markdown, self._file, self._line = page, save, markdown, file, line
        self._text = ""  # what to show if it is stopped now

    def __enter__(self) -> "Kept":
        interrupt.register(self._show)
        interrupt.last_words("stopped before the first round was complete, so there is no result")
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        interrupt.unregister(self._show)
        interrupt.last_words("")
        if kind and self._text:
            click.echo(self._text, nl=False)

    def keep(self, report: Any) -> None:
        """A round is complete."""
        self._write(report)
        with interrupt.postponed():
            self._text = rendered(self._parts(report), sys.stdout, harmless=sys.stdout.isatty()) + "\n"
            place = f"; {self._file} has them too" if self._file else ""
            interrupt.last_words(f"stopped: {report.rounds} of {report.repeat} rounds are complete{place}")

    def finish(self, report: Any) -> None:
        """All is complete."""
        self._write(report)
        with interrupt.postponed():
            self._text = ""
            show(*self._parts(report))

    def _parts(self, report: Any) -> list[Any]:
        page = replace(self._page(report), command=self._line)
        return [page.markdown()] if self._markdown else page.shown()

    def _write(self, report: Any) -> None:
        if self._file:
            self._save(report, self._file)

    def _show(self) -> None:
        text, self._text = self._text, ""
        os.write(1, text.encode(errors="replace"))
