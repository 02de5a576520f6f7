"""Options that several commands have, and what they ask for."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import UsageError

if TYPE_CHECKING:
    from ..engine.request import ReplyOptions
    from ..engine.specs import Spec

Decorator = Callable[[Any], Any]


def filled(_context: click.Context, option: click.Parameter, value: str | None) -> str | None:
    """A callback: refuses an empty text. As a path it would be the current folder, and as a prompt it is a slip."""
    if value is not None and not value.strip():
        raise UsageError(f"{option.opts[0]} is empty; give {option.metavar}, or leave it out")
    return value


DTYPE = click.option(
    "--dtype", type=click.Choice(["bf16", "fp16", "fp32"]), help="Default: the checkpoint's; fp32 on a CPU."
)


def adapter_option(help: str) -> Decorator:
    """--adapter, which may be given several times; `help` says what it is for."""

    def all_filled(context: click.Context, option: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
        for value in values:
            filled(context, option, value)
        return values

    options: dict[str, Any] = {"multiple": True, "callback": all_filled, "metavar": "FOLDER[=SCALE]", "help": help}
    return click.option("--adapter", "adapters", **options)


ADAPTER = adapter_option(
    "A LoRA or DoRA adapter of PEFT or mlx-lm, a folder or a Hub id. SCALE multiplies what it changes. May be repeated."
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
REPLY = (
    click.option("--max-tokens", type=int, metavar="N", help="Of a reply. Default: to the end of the context."),
    click.option("--stop", multiple=True, metavar="S", help="End before this text. May be repeated."),
)
GRAMMAR = (
    click.option(
        "--json-schema",
        callback=filled,
        metavar="FILE",
        help="Answer by JSON that is valid for this schema; needs llguidance, in the extra [server].",
    ),
    click.option("--regex", callback=filled, metavar="TEXT", help="Answer by a text that this pattern matches."),
)
CHAT_TEMPLATE = click.option(
    "--chat-template", callback=filled, metavar="NAME|FILE", help="One of the checkpoint's templates, or a Jinja file."
)
TEMPLATE = (
    CHAT_TEMPLATE,
    click.option(
        "--template-arg",
        "template_args",
        multiple=True,
        metavar="KEY=JSON",
        help="Set a variable of the chat template. May be repeated.",
    ),
    click.option(
        "--literal", "literal_content", is_flag=True, help="Control tokens in messages, such as <|im_end|>, stay text."
    ),
)
DRAFTS = (
    click.option(
        "--draft",
        callback=filled,
        metavar="SOURCE",
        help="A smaller model with the same tokenizer. It guesses tokens, which are then checked.",
    ),
    click.option(
        "--lookup/--no-lookup",
        default=None,
        help="Guess tokens from the text so far. Default: while that is faster. It changes no token.",
    ),
)
WEIGHTS = click.option(
    "--weights",
    type=click.Choice(["packed", "unpacked"]),
    metavar="packed|unpacked",
    help="Of a quantized model, in memory. Default: packed; on a CPU with a fast BLAS unpacked, if they fit.",
)
MEMORY = (
    WEIGHTS,
    click.option(
        "--memory",
        callback=filled,
        metavar="SIZE",
        help="Take at most so much, such as 12GB. Default: what the machine allows.",
    ),
    click.option(
        "--cache-dir",
        callback=filled,
        metavar="DIR",
        help="Keep keys and values here, for later prompts that begin alike.",
    ),
    click.option(
        "--kv-bits", type=int, metavar="8|4", help="Store keys and values in so many bits. Default: as computed."
    ),
)


@dataclass(frozen=True)
class ModelOptions:
    """Which model a command runs, and how. `memory` is in bytes."""

    source: str | None
    dtype: str | None
    weights: str | None
    memory: int | None
    cache_dir: str | None
    kv_bits: int | None
    draft: str | None
    lookup: bool | None
    adapters: tuple[str, ...] = ()


def model_options(options: dict[str, Any]) -> ModelOptions:
    """Take the options of DTYPE, ADAPTER, MEMORY, DRAFTS and `source` out of a command's. Raises UsageError."""
    from ..files.sizes import parse_size

    chosen = _taken(options, ModelOptions)
    if chosen["memory"] is not None:
        chosen["memory"] = parse_size(chosen["memory"], "--memory")
    return ModelOptions(**chosen)


def reply_options(options: dict[str, Any]) -> "ReplyOptions":
    """Take the options of REPLY, GRAMMAR, THINKING and TEMPLATE out of a command's. Raises UsageError."""
    from ..engine.request import ReplyOptions

    grammar = _grammar(options.pop("json_schema", None), options.pop("regex", None))
    chosen = {**_taken(options, ReplyOptions), "grammar": grammar}
    return ReplyOptions(**{**chosen, "template_args": _variables(chosen["template_args"]) or None})


def sampling_options(options: dict[str, Any]) -> dict[str, Any]:
    """Take the options of SAMPLING that are given out of a command's. Raises UsageError."""
    from ..engine.sampling import SamplingParams

    given = {name: value for name, value in _taken(options, SamplingParams).items() if value is not None}
    SamplingParams(**given)
    return given


def _taken(options: dict[str, Any], kind: Any) -> dict[str, Any]:
    """The options that are fields of a dataclass, which are removed."""
    return {field.name: options.pop(field.name) for field in fields(kind) if field.name in options}


def _grammar(schema: str | None, regex: str | None) -> "Spec | None":
    """What --json-schema or --regex bind the answer to."""
    from ..engine.specs import JsonSchema, Regex

    if schema is not None and regex is not None:
        raise UsageError("--json-schema and --regex both bind the answer; drop one of them")
    if schema is None:
        return None if regex is None else Regex(regex)
    try:
        return JsonSchema(json.loads(Path(schema).read_text(encoding="utf-8-sig")))
    except OSError as error:
        raise UsageError(f"--json-schema {schema} cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--json-schema {schema} is not JSON ({error})") from None


def _variables(arguments: tuple[str, ...]) -> dict[str, Any]:
    """The variables of the chat template by name, from KEY=JSON each."""
    found: dict[str, Any] = {}
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if not name or not equals:
            raise UsageError(f"--template-arg is {argument[:60]!r}; expected KEY=JSON, such as style='\"brief\"'")
        if name in found:
            raise UsageError(f"--template-arg gives {name[:60]!r} twice; drop one of them")
        try:
            found[name] = json.loads(value)
        except (ValueError, RecursionError):
            raise UsageError(
                f"--template-arg {name[:60]}: {value[:60]!r} is not JSON; text needs quotes, as in style='\"brief\"'"
            ) from None
    return found


def with_options(*options: Decorator) -> Decorator:
    """Give a command these options, in this order."""

    def decorate(command: Any) -> Any:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


# Arguments of Python that have another name in the commands, besides those that click names itself
ARGUMENTS = {"continue_final_message": "--prefill", "max_rows": "--rows", "shard_bytes": "--shard-size"}


def with_option_names(message: str, command: click.Command | None) -> str:
    """A message in which arguments of Python, such as max_tokens, are options of the command, such as --max-tokens."""
    if command is None:
        return message
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    return with_names(message, ARGUMENTS | {option.name: option.opts[0] for option in options if option.name})


def with_names(message: str, names: Mapping[str, str]) -> str:
    """A message with other names for arguments. A name that is also an ordinary word counts only where a value is told,
    as in `seed is -1`.
    """
    for name, shown in names.items():
        pattern = rf"(?<![\w'\"./-]){name}(?![\w'\"])" if "_" in name else rf"(?:^|(?<=but )){name}(?= is )"
        message = re.sub(pattern, shown.replace("\\", r"\\"), message)
        message = message.replace(f"{shown} is None", f"{shown} is not given")
    return message
