"""Options that several commands have."""

from collections.abc import Callable
from typing import Any

import click

Decorator = Callable[[Any], Any]

DTYPE = click.option(
    "--dtype", type=click.Choice(["bf16", "fp16", "fp32"]), help="Default: the checkpoint's; fp32 on a CPU."
)
# The settings of SamplingParams, by their names there.
SAMPLING = (
    click.option("--temp", "temperature", type=float, metavar="T", help="0 is greedy. Default: the checkpoint's."),
    click.option("--top-k", type=int, metavar="K", help="0 is off. Default: the checkpoint's."),
    click.option("--top-p", type=float, metavar="P", help="1 is off. Default: the checkpoint's."),
    click.option("--min-p", type=float, metavar="M", help="0 is off. Default: the checkpoint's."),
    click.option(
        "--repetition-penalty", type=float, metavar="R", help="Make tokens of prompt and reply less likely; 1 is off."
    ),
    click.option(
        "--presence-penalty", type=float, metavar="P", help="Make tokens of the reply less likely, -2 to 2; 0 is off."
    ),
    click.option(
        "--frequency-penalty", type=float, metavar="F", help="The same, once for each time a token was said; 0 is off."
    ),
    click.option(
        "--seed", type=int, metavar="S", help="The same seed gives the same reply. Default: a new seed each time."
    ),
)
THINKING = (
    click.option(
        "--think/--no-think", "thinking", default=None, help="Default: as the chat template has it, on for Qwen3."
    ),
    click.option(
        "--think-budget",
        "thinking_budget",
        type=int,
        metavar="N",
        help="Close the think block after N tokens; the answer follows. Default: no limit.",
    ),
)


def with_options(*options: Decorator) -> Decorator:
    """Give a command these options, in this order."""

    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate
