"""`mlx-qwen3 verify`"""

import click

from .options import adapter_option
from .progress import Bar
from .terminal import show, show_json


@click.command("verify", short_help="Check a converted folder.")
@click.argument("folder", metavar="DIR")
@click.option("--source", metavar="SOURCE", help="The source of the conversion, to compare with again.")
@adapter_option(
    "Check this adapter on the model DIR, or with --source that `convert --adapter` merged it into the source. May be "
    "repeated."
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
    """Check the converted folder DIR against its certificate: every byte, then the logits.

    With --adapter and without --source, check adapters on DIR, which may then be any SOURCE.
    """
    from ..conversion.verify import report, verify
    from ..conversion.verify_adapters import verify_adapters

    if adapters and source is None:
        with Bar(progress) as bar:
            found = verify_adapters(folder, adapters, transformers=transformers, progress=bar)
        show_json(found.summary()) if as_json else show(*found.report())
        return
    with Bar(progress) as bar:
        verification = verify(folder, source, adapters=adapters, transformers=transformers, progress=bar)
    if as_json:
        show_json(verification.summary())
    else:
        show(*report(verification))
