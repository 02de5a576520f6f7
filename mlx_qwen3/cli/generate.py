"""`mlx-qwen3 generate`"""

import json
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, replace
from typing import Any

import click

from .. import interrupt
from ..errors import UsageError
from .options import DTYPE, SAMPLING, THINKING, with_options
from .prompts import DEFAULT_ROWS, check_choice, run_prompts
from .source import default_source
from .terminal import Printer, read_stdin, say, show_json, statistics, warnings_afterwards


@click.command("generate", short_help="Reply to a prompt.")
@click.option("--prompt", metavar="TEXT", help="The user's message; - reads standard input.")
@click.option(
    "--prompts",
    metavar="FILE",
    help="Reply to every line of a file, a text or a JSON object, with one JSON line each; - reads standard input.",
)
@click.option("--rows", type=click.IntRange(1), metavar="N", help="Prompts of --prompts that run together. Default: 8.")
@click.option("--model", "source", metavar="SOURCE", help="Default: Qwen/Qwen3-0.6B if it is downloaded, else demo.")
@DTYPE
@click.option("--system", metavar="TEXT", help="System message.")
@click.option("--max-tokens", type=int, metavar="N", help="Default: to the end of the context.")
@with_options(*SAMPLING, *THINKING)
@click.option("--prefill", metavar="TEXT", help="Begin the reply with this text; the model continues it.")
@click.option("--chat-template", metavar="NAME|FILE", help="One of the checkpoint's templates, or a Jinja file.")
@click.option(
    "--template-arg",
    "template_args",
    multiple=True,
    metavar="KEY=JSON",
    help="Set a variable of the chat template; may be given several times.",
)
@click.option("--literal", is_flag=True, help="Control tokens in messages, such as <|im_end|>, stay text.")
@click.option("--raw", is_flag=True, help="Continue the prompt as it is, without the chat template.")
@click.option("--stop", multiple=True, metavar="S", help="End before this text; may be given several times.")
@click.option(
    "--draft",
    metavar="SOURCE",
    help="A smaller model with the same tokenizer. It guesses tokens, which are then checked.",
)
@click.option(
    "--lookup/--no-lookup",
    default=None,
    help="Guess tokens from the text so far. Default: while that is faster. It changes no token.",
)
@click.option("--memory", metavar="SIZE", help="Take at most so much, such as 12GB. Default: what the machine allows.")
@click.option("--cache-dir", metavar="DIR", help="Keep keys and values here, for later prompts that begin alike.")
@click.option("--prompt-cache", metavar="FILE", help="The same in one file: of this prompt and its reply alone.")
@click.option("--kv-bits", type=int, metavar="8|4", help="Store keys and values in so many bits. Default: as computed.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout instead of streamed text.")
def command(
    prompt: str | None,
    prompts: str | None,
    rows: int | None,
    source: str | None,
    dtype: str | None,
    system: str | None,
    max_tokens: int | None,
    thinking: bool | None,
    thinking_budget: int | None,
    prefill: str | None,
    chat_template: str | None,
    template_args: tuple[str, ...],
    literal: bool,
    raw: bool,
    stop: tuple[str, ...],
    draft: str | None,
    lookup: bool | None,
    memory: str | None,
    cache_dir: str | None,
    prompt_cache: str | None,
    kv_bits: int | None,
    as_json: bool,
    **sampling: Any,
) -> int | None:
    """Reply to a prompt; the text streams to stdout."""
    from .. import blas
    from ..engine import memory as budgets
    from ..engine import prefix
    from ..engine import request as requests
    from ..engine.many import Defaults
    from ..engine.sampling import SamplingParams
    from ..files import hub
    from ..files.checkpoint import Checkpoint
    from ..files.sizes import parse_size
    from ..model import load as loading
    from ..model.kv_format import kv_format
    from ..text.tokenizer import Tokenizer

    budget = None if memory is None else parse_size(memory, "--memory")
    # What no model could honour is told before one is downloaded.
    of_template = {"system": system, "thinking": thinking, "prefill": prefill, "chat_template": chat_template}
    _check_raw(raw, {**of_template, "template_args": template_args, "literal": literal or None})
    options = requests.ReplyOptions(
        max_tokens=max_tokens,
        thinking=thinking,
        stop=stop,
        chat_template=chat_template,
        template_args=_variables(template_args) or None,
        continue_final_message=prefill is not None,
        literal_content=literal,
        thinking_budget=thinking_budget,
    )
    given = {name: value for name, value in sampling.items() if value is not None}
    SamplingParams(**given)
    flags = {"--raw": raw or None, "--json": as_json or None, "--prompt-cache": prompt_cache}
    check_choice(prompt, prompts, rows, {"--prefill": prefill, "--draft": draft, "--lookup": lookup, **flags})
    if prompts is not None:
        engine = {"max_rows": rows or DEFAULT_ROWS, "cache_dir": cache_dir, "kv_bits": kv_bits, "memory": budget}
        return run_prompts(prompts, source, dtype, Defaults(options, given, system), engine)
    text = read_stdin() if prompt == "-" else prompt or ""
    source = default_source("--model ") if source is None else source
    checkpoint = Checkpoint(hub.resolve(source))
    draft_checkpoint = Checkpoint(hub.resolve(draft)) if draft is not None else None
    config, tokenizer = checkpoint.config, Tokenizer(checkpoint)
    kv_format(kv_bits, config.head_dim)
    contents = {"system": system, "user": text, "assistant": prefill}
    messages = [{"role": role, "content": content} for role, content in contents.items() if content is not None]
    options = replace(options, sampling=requests.default_sampling(tokenizer, options.thinks, **sampling))
    request = requests.prepare(config, tokenizer, tokenizer.encode(text) if raw else messages, options)
    if draft_checkpoint:
        requests.check_draft(draft_checkpoint, tokenizer)
    if advice := blas.advice():
        say(f"note: {advice}")
    if prompt_cache is not None:
        prefix.check_file(prompt_cache)
    budget = budgets.default_budget() if budget is None else budget
    budgets.check_checkpoint(checkpoint, dtype, budget)
    budgets.set_limits(budget)
    model = loading.load_model(checkpoint, dtype)
    limits = budgets.Memory(model, budget, kv_bits=kv_bits)
    limit = limits.limit(len(request.ids), request.max_tokens, request.open_ended)
    request = replace(request, max_tokens=limit)
    draft_model = loading.load_model(draft_checkpoint, dtype) if draft_checkpoint else None
    with interrupt.postponed() as interrupted:  # Ctrl-C ends the reply, and what there is of it is complete
        with warnings_afterwards(), prefix.kept(model, cache_dir, prompt_cache, kv_bits=kv_bits) as prefixes:
            helpers = draft_model, lookup, prefixes, kv_bits
            result = _reply(model, tokenizer, request, helpers, None if as_json else Printer(), interrupted)
        if as_json:
            content = {name: value for name, value in asdict(result).items() if name != "logprobs"}
            show_json({**content, "model": source})
        else:
            say(statistics(result))
    return None


def _check_raw(raw: bool, options: Mapping[str, Any]) -> None:
    """Refuse the options of the chat template beside --raw."""
    names = {"thinking": "--think" if options["thinking"] else "--no-think", "template_args": "--template-arg"}
    for name, value in options.items():
        if raw and value not in (None, ()):
            option = names.get(name, f"--{name.replace('_', '-')}")
            raise UsageError(f"{option} belongs to the chat template, which --raw leaves out; drop one of them")


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


def _reply(
    model: Any,
    tokenizer: Any,
    request: Any,
    helpers: tuple[Any, ...],
    printer: Printer | None,
    interrupted: Callable[[], bool],
) -> Any:
    """Run a request to its end or to Ctrl-C, shown as it is made. `helpers` are what `run` takes after the request."""
    from ..engine import reply as generation

    collector = generation.Collector(model, request)
    with printer or nullcontext():
        for step in generation.run(model, tokenizer, request, *helpers):
            collector.add(step)
            if printer:
                printer.step(step.text, step.thinking)
            if interrupted() and not step.finish_reason:
                collector.interrupt()
                break
    return collector.result()
