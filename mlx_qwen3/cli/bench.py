"""`mlx-qwen3 bench`"""

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from ..errors import UsageError
from .options import WEIGHTS, adapter_option
from .progress import Bar
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
    "--prompt-tokens", default="16,512,2048", show_default=True, metavar="L,L", help="Lengths of the prompts."
)
@click.option(
    "--generate", type=int, default=128, show_default=True, metavar="N", help="Tokens to generate after each prompt."
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
@click.option("--clients", metavar="N,N", help="With --serve: how many clients ask at once. Default: 1,4,8,16.")
@click.option("--repeat", type=int, default=5, show_default=True, metavar="N", help="Timed runs of everything.")
@click.option(
    "--dtype", default="default", show_default=True, help="bf16, fp16, fp32, or default: each program's own default."
)
@WEIGHTS
@click.option("--same-blas", is_flag=True, help="Give the others the BLAS that this package loaded.")
@click.option(
    "--no-reference", is_flag=True, help="Leave out reference.py, which by default runs if transformers does."
)
@click.option("--roofline", is_flag=True, help="Print the limits of this machine before the results.")
@click.option(
    "--json", "json_file", type=click.Path(path_type=Path), metavar="FILE", help="Write everything, with every repeat."
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

    All get the same tokens and run in turns. Outputs are compared first. The result is a table on stdout."""
    from .. import bench

    if serve:
        _check_serve(context)
        _serve(against, clients, json_file, progress, choices)
        return
    if clients is not None:
        raise UsageError("--clients needs --serve, whose clients it counts")
    options = bench.parse(against, prompt_tokens, rows, reference=not no_reference, **choices)
    bench.check_files(json_file, plot)
    baseline = bench.read_baseline(baseline_file, margin) if baseline_file else None

    def ready(report: bench.Report) -> None:
        if roofline:
            limits = bench.limits_table(report)
            show(limits.markdown() if markdown else limits, "")

    with Bar(progress is not False) as bar:
        report = bench.bench(options, bar, ready, baseline)
    show(*([bench.render(report)] if markdown else bench.shown(report)))
    bench.write_files(report, json_file, plot)
    if baseline:
        bench.check(report, baseline, margin)


def _check_serve(context: click.Context) -> None:
    """Raises UsageError for an option that has no meaning with --serve."""
    for parameter in context.command.params:
        given = context.get_parameter_source(parameter.name or "") is ParameterSource.COMMANDLINE
        if given and parameter.name in NOT_WITH_SERVE:
            raise UsageError(f"{parameter.opts[0]} has no meaning with --serve; leave one of them out")


def _serve(
    against: str | None, clients: str | None, json_file: Path | None, progress: bool | None, choices: dict[str, Any]
) -> None:
    from .. import bench

    del choices["adapters"]
    serving = bench.parse_serving(against, clients, **choices)
    bench.check_files(json_file, None)
    with Bar(progress is not False) as bar:
        report = bench.bench_serving(serving, bar)
    show(bench.render_serving(report))
    if json_file:
        bench.write_serving(report, json_file)
