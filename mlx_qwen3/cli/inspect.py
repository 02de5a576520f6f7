"""`mlx-qwen3 inspect`"""

from pathlib import Path
from typing import Any

import click

from .options import ADAPTER, CHAT_TEMPLATE, DTYPE, filled, with_options
from .terminal import read_stdin, show, show_json


@click.command("inspect", short_help="Show what flows through a model, and its health.")
@click.argument("source")
@click.option(
    "--prompt",
    callback=filled,
    metavar="TEXT",
    help="The user's message; - reads standard input. Default: random tokens.",
)
@with_options(CHAT_TEMPLATE, ADAPTER)
@click.option("--batch", type=int, metavar="B", help="Rows of random tokens. Default: 1.")
@click.option("--length", type=int, metavar="L", help="Random tokens in a row. Default: 16.")
@click.option("--decode", type=int, metavar="N", help="Show the decode step after N tokens of the reply instead.")
@click.option(
    "--temp", "temperature", type=float, metavar="T", help="Temperature of that reply. Default: the checkpoint's."
)
@click.option("--seed", type=int, metavar="S", help="Seed of that reply, as in generate. Default: 0.")
@click.option("--layer", type=int, default=0, metavar="I", help="The layer shown step by step. Default: 0.")
@click.option("--head", type=int, default=0, metavar="H", help="The head of the attention map. Default: 0.")
@click.option("--heads", is_flag=True, help="Show numbers and verdicts of every head.")
@click.option("--full", is_flag=True, help="Show every tensor by itself, and the numbers of every layer.")
@with_options(DTYPE)
@click.option("--rules", type=click.Path(path_type=Path), metavar="FILE", help="A JSON file with other limits.")
@click.option(
    "--against",
    metavar="SOURCE|reference|transformers",
    help="Compare step by step with another checkpoint, with reference.py or with transformers.",
)
@click.option("--kv-bits", type=int, metavar="8|4", help="Show the error of a cache with 8 or 4 bits, layer by layer.")
@click.option("--strict", is_flag=True, help="Exit with code 1 if there is a fault or a difference past its bound.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE", help="Draw the pictures as PNG.")
@click.option(
    "--html", type=click.Path(path_type=Path), metavar="FILE", help="Write tables and pictures to one HTML page."
)
def command(
    source: str,
    prompt: str | None,
    full: bool,
    strict: bool,
    as_json: bool,
    plot: Path | None,
    html: Path | None,
    **options: Any,
) -> None:
    """Show what flows through the model SOURCE: weights, shapes, numbers, and whether they are healthy.

    Packed weights stay packed, as with `generate --weights packed`.
    """
    from .. import inspect

    inspect.check_files(plot, html)
    text = read_stdin() if prompt == "-" else prompt
    report = inspect.inspect(source, inspect.Options(prompt=text, **options))
    inspect.write_files(report, plot, html, full)
    if as_json:
        show_json(inspect.as_json(report))
    else:
        show(*inspect.shown(report, full))
    if strict:
        report.raise_for_fault()
