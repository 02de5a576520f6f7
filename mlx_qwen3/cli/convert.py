"""`mlx-qwen3 convert`"""

from typing import Any

import click

from .options import adapter_option
from .progress import Bar
from .terminal import show, show_json


@click.command("convert", short_help="Write a checkpoint in another form.")
@click.argument("source")
@click.argument("out", type=click.Path())
@click.option("--dtype", type=click.Choice(["bf16", "fp16", "fp32"]), help="Default: every tensor keeps its own.")
@click.option("--layout", type=click.Choice(["native", "hf"]), help="Default: native; hf with --quantize.")
@click.option(
    "--quantize",
    metavar="MODE",
    help="affine{2,3,4,5,6,8} such as affine4, or with g{32,64,128} such as affine4g32; mxfp4, mxfp8, nvfp4; mixed; "
    "none unpacks.",
)
@adapter_option("Merge this adapter of PEFT or mlx-lm into the weights first, in float32. May be repeated.")
@click.option("--bits", type=float, metavar="X", help="The budget of mixed, in bits per weight.  [default: 5]")
@click.option(
    "--text",
    type=click.Path(),
    metavar="FILE",
    help="Compare SOURCE and OUT on the first 4,096 tokens of this text. Default: a short built-in text.",
)
@click.option(
    "--max-kl",
    type=float,
    metavar="X",
    help="Fail, and do not write OUT, if the mean KL divergence from SOURCE is above X.",
)
@click.option("--no-divergence", is_flag=True, help="Do not compare the outputs of SOURCE and OUT.")
@click.option("--shard-size", default="5GB", show_default=True, metavar="SIZE", help="The largest size of a file.")
@click.option("--overwrite", is_flag=True, help="Replace OUT once the new one is complete.")
@click.option("--dry-run", is_flag=True, help="Show what would be done, and the sizes before and after; write nothing.")
@click.option("--full", is_flag=True, help="Show every kind of tensor with its error, the checksums and all figures.")
@click.option("--progress/--no-progress", default=None, help="Default: a bar on a terminal.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def command(
    source: str,
    out: str,
    text: str | None,
    max_kl: float | None,
    no_divergence: bool,
    overwrite: bool,
    dry_run: bool,
    full: bool,
    progress: bool | None,
    as_json: bool,
    shard_size: str,
    **choices: Any,
) -> None:
    """Write the checkpoint SOURCE to the folder OUT, with a certificate of what was done.

    The layout native has fused projections and loads fastest here; only this package reads it. The layout hf has
    Hugging Face's names, for transformers and mlx-lm. Converting native to hf restores the source's tensors exactly.

    If it fails or is stopped, rerun the command to resume.
    """
    from ..conversion import summary
    from ..conversion.convert import convert, dry_plan
    from ..files.sizes import parse_size

    choices["shard_bytes"] = parse_size(shard_size, "--shard-size")
    with Bar(progress) as bar:
        if dry_run:
            planned = dry_plan(source, out, overwrite=overwrite, progress=bar, **choices)
        else:
            made = convert(
                source,
                out,
                divergence=not no_divergence,
                text=text,
                max_kl=max_kl,
                overwrite=overwrite,
                progress=bar,
                **choices,
            )
    if as_json:
        show_json(planned.summary() if dry_run else made.summary())
    else:
        plan_parts, parts = (
            (summary.planned_in_full, summary.certified_in_full) if full else (summary.planned, summary.certified)
        )
        show(*(plan_parts(planned) if dry_run else parts(made)))
