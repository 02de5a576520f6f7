"""`mlx-qwen3 verify`"""

import click

from .progress import Bar
from .terminal import show, show_json


@click.command("verify", short_help="Check a converted folder.")
@click.argument("folder", metavar="DIR")
@click.option("--source", metavar="SOURCE", help="The source of the conversion, to compare with again.")
@click.option(
    "--adapter",
    "adapters",
    multiple=True,
    metavar="FOLDER|HUBID[=SCALE]",
    help="With --source: an adapter that `convert --adapter` merged into it. May be repeated.",
)
@click.option("--transformers", is_flag=True, help="Compare with transformers, layer by layer.")
@click.option("--progress/--no-progress", default=None, help="Default: a bar on a terminal.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
def command(
    folder: str,
    source: str | None,
    adapters: tuple[str, ...],
    transformers: bool,
    progress: bool | None,
    as_json: bool,
) -> None:
    """Check the converted folder DIR against its certificate: every byte, then the logits."""
    from ..conversion.verify import report, verify

    with Bar(progress) as bar:
        verification = verify(folder, source, adapters=adapters, transformers=transformers, progress=bar)
    if as_json:
        show_json(verification.summary())
    else:
        show(*report(verification))
