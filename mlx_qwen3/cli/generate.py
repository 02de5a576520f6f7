"""`mlx-qwen3 generate`"""

import sys
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import click

from .. import interrupt
from ..errors import UsageError
from ..table import DIM, Line
from .models import Opened
from .options import (
    ADAPTER,
    DRAFTS,
    DTYPE,
    GRAMMAR,
    MEMORY,
    REPLY,
    SAMPLING,
    TEMPLATE,
    THINKING,
    filled,
    model_options,
    reply_options,
    sampling_options,
    with_options,
)
from .prompts import check_choice, run_prompts
from .terminal import Printer, all_statistics, read_stdin, say, show_json, statistics, warnings_afterwards

if TYPE_CHECKING:
    from ..engine.reply import Result
    from ..engine.request import ReplyOptions, Request
    from ..model.qwen3 import Qwen3


@click.command("generate", short_help="Reply to a prompt.")
@click.option("--prompt", callback=filled, metavar="TEXT", help="The user's message; - reads standard input.")
@click.option(
    "--prompts",
    callback=filled,
    metavar="FILE",
    help="Reply to every line of a file, a text or a JSON object, with one JSON line each; - reads standard input.",
)
@click.option("--rows", type=click.IntRange(1), metavar="N", help="Prompts of --prompts that run together. Default: 8.")
@click.option("--model", "source", metavar="SOURCE", help="Default: Qwen/Qwen3-0.6B if it is downloaded, else demo.")
@ADAPTER
@DTYPE
@click.option("--system", metavar="TEXT", help="System message.")
@with_options(*REPLY, *GRAMMAR, *SAMPLING, *THINKING)
@click.option("--prefill", callback=filled, metavar="TEXT", help="Begin the reply with this; the model continues it.")
@with_options(*TEMPLATE)
@click.option("--raw", is_flag=True, help="Continue the prompt as it is, without the chat template.")
@with_options(*DRAFTS, *MEMORY)
@click.option(
    "--prompt-cache",
    callback=filled,
    metavar="FILE",
    help="Keep keys and values of this prompt and its reply in one file, for the next prompt.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout instead of streamed text.")
@click.option("--verbose", is_flag=True, help="More statistics: prefill, cache, drafts, memory, dtype.")
def command(
    prompt: str | None,
    prompts: str | None,
    rows: int | None,
    system: str | None,
    prefill: str | None,
    raw: bool,
    prompt_cache: str | None,
    as_json: bool,
    verbose: bool,
    **options: Any,
) -> int | None:
    """Reply to a prompt; the text streams to stdout."""
    from ..engine.prefix import check_file

    # What no model could honour is told before one is downloaded.
    of_model, of_reply, sampling = model_options(options), reply_options(options), sampling_options(options)
    of_reply = replace(of_reply, continue_final_message=prefill is not None)
    if raw:
        _check_raw(of_reply, system)
    flags = {"--raw": raw or None, "--json": as_json or None, "--verbose": verbose or None}
    check_choice(prompt, prompts, rows, {"--prefill": prefill, **flags, "--prompt-cache": prompt_cache})
    if as_json and verbose:
        raise UsageError("--json has all statistics already; drop --verbose")
    if prompts is not None:
        return run_prompts(prompts, rows, of_model, of_reply, sampling, system)
    text = read_stdin() if prompt == "-" else prompt
    opened = Opened(of_model, "--model ")
    request = _request(opened, {"system": system, "user": text, "assistant": prefill}, raw, of_reply, sampling)
    if prompt_cache is not None:
        check_file(prompt_cache)
    models, printer = opened.load([request]), None if as_json else Printer()
    with interrupt.postponed() as interrupted:  # Ctrl-C ends the reply, and what there is of it is complete
        result = _reply(opened, models, request, prompt_cache, printer, interrupted)
        if as_json:
            content = {name: value for name, value in asdict(result).items() if name != "logprobs"}
            adapters = {"adapters": list(of_model.adapters)} if of_model.adapters else {}
            show_json({**content, "model": opened.source, **adapters})
        else:
            _tell(result, opened, verbose)
    return None


def _tell(result: "Result", opened: Opened, verbose: bool) -> None:
    """How the reply ended if it was cut, and its statistics, below the reply and apart from it."""
    apart = [""] if sys.stdout.isatty() and sys.stderr.isatty() else []
    told = all_statistics(result) if verbose else statistics(result)
    say(*apart, *_cut(result, opened.config.context_length), Line(told, DIM))


def _cut(result: "Result", context: int) -> list[str]:
    """Why the reply is not complete."""
    if result.finish_reason == "interrupted":
        return ["note: the reply was interrupted"]
    if result.finish_reason != "length":
        return []
    full = result.prompt_tokens + result.generation_tokens >= context
    where = "at the end of the context" if full else f"at its limit of {result.generation_tokens} tokens"
    if result.thinking and not result.text:
        remedy = "" if full else "raise --max-tokens, or "
        return [f"note: the reply was cut {where}, inside its thinking; {remedy}give --think-budget or --no-think"]
    return [f"note: the reply was cut {where}{'' if full else '; raise --max-tokens'}"]


def _check_raw(options: "ReplyOptions", system: str | None) -> None:
    """Refuse the options of the chat template beside --raw."""
    names = {
        "thinking": "--think" if options.thinking else "--no-think",
        "continue_final_message": "--prefill",
        "template_args": "--template-arg",
        "literal_content": "--literal",
    }
    given = options.of_template() if system is None else ["system"]
    if given:
        option = names.get(given[0], f"--{given[0].replace('_', '-')}")
        raise UsageError(f"{option} belongs to the chat template, which --raw leaves out; drop one of them")


def _request(
    opened: Opened,
    contents: Mapping[str, str | None],
    raw: bool,
    options: "ReplyOptions",
    sampling: Mapping[str, Any],
) -> "Request":
    """The checked request. `contents` are the messages by their roles, None for those that are not given."""
    from ..engine.request import default_sampling, prepare

    tokenizer = opened.tokenizer
    options = replace(options, sampling=default_sampling(tokenizer, options.thinks, **sampling))
    messages = [{"role": role, "content": content} for role, content in contents.items() if content is not None]
    prompt = tokenizer.encode(str(contents["user"])) if raw else messages
    return prepare(opened.config, tokenizer, prompt, options)


def _reply(
    opened: Opened,
    models: "tuple[Qwen3, Qwen3 | None]",
    request: "Request",
    prompt_cache: str | None,
    printer: Printer | None,
    interrupted: Callable[[], bool],
) -> "Result":
    """Run a request to its end or to Ctrl-C, shown as it is made. `models` are the model and the draft model."""
    from ..engine import prefix
    from ..engine import reply as generation
    from ..engine.memory import Memory

    options, (model, draft) = opened.options, models
    limits = Memory(model, options.memory, kv_bits=options.kv_bits, draft=draft)
    request = replace(request, max_tokens=limits.limit(len(request.ids), request.max_tokens, request.open_ended))
    room = min(limits.beside(len(request.ids)), prefix.PREFIX_BYTES)
    kept = prefix.kept(model, options.cache_dir, prompt_cache, room, options.kv_bits)
    with warnings_afterwards(), kept as prefixes, printer or nullcontext():
        collector = generation.Collector(model, request)
        helpers = draft, options.lookup, prefixes, options.kv_bits, limits
        for step in generation.run(model, opened.tokenizer, request, *helpers):
            collector.add(step)
            if printer:
                printer.step(step.text, step.thinking)
                printer.end(step.finish_reason)
            if interrupted() and not step.finish_reason:
                collector.interrupt()
                break
    return collector.result()
