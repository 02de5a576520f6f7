"""From a prompt and options to a checked request; needs no weights, so that a bad one fails before they are read."""

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from ..errors import PromptError, UsageError
from ..files.checkpoint import Checkpoint
from ..files.config import Qwen3Config
from ..files.reading import short
from ..files.settings import is_int
from ..model.qwen3 import Qwen3
from ..text.chat_template import Tool
from ..text.tokenizer import Tokenizer
from .bound import check_thinking
from .decode import check_ids, check_limit, check_prompt
from .generation_config import token_limit
from .grammar import Grammar, compiled
from .logprobs import check_count
from .sampling import SamplingParams
from .specs import SPECS, Spec
from .speculative import check_vocabulary
from .thinking import check_budget

# A user's message | a conversation | token ids: a list, or an array of NumPy or MLX
Prompt = Any
KINDS = "a prompt is a string, a list of messages, each with a role and a content, or a list of token ids"

# The types of options that are not checked by their values.
OPTION_TYPES: dict[str, tuple[Any, str]] = {
    "thinking": (bool | None, "True, False or None"),
    "chat_template": (str | Path | None, "a name, a file or the text of a template"),
    "continue_final_message": (bool | str, "True, False or the name of a field"),
    "literal_content": (bool, "True or False"),
}


@dataclass(frozen=True)
class ReplyOptions:
    """The options of a reply, as in the signature of `generate`.

    Raises UsageError for values that are wrong for every prompt and model.
    """

    sampling: SamplingParams | None = None
    max_tokens: int | None = None
    thinking: bool | None = None
    stop: str | Sequence[str] | None = None
    tools: Sequence[Tool] | None = None
    chat_template: str | Path | None = None
    template_args: Mapping[str, Any] | None = None
    continue_final_message: bool | str = False
    literal_content: bool = False
    thinking_budget: int | None = None
    logprobs: int | None = None
    grammar: Grammar | Spec | None = None

    def __post_init__(self) -> None:
        for name, (kind, expected) in OPTION_TYPES.items():
            if not isinstance(value := getattr(self, name), kind):
                raise UsageError(f"{name} is {short(repr(value))}; expected {expected}")
        if self.max_tokens is not None:
            check_limit(self.max_tokens)
            object.__setattr__(self, "max_tokens", int(self.max_tokens))  # of NumPy, say
        if self.sampling is not None and not isinstance(self.sampling, SamplingParams):
            raise UsageError(f"sampling is {short(repr(self.sampling))}; expected SamplingParams")
        check_count(self.logprobs)
        self._check_budget()
        self._check_stop()
        self._check_grammar()
        if self.tools is not None and (isinstance(self.tools, str | Mapping) or not isinstance(self.tools, Iterable)):
            raise UsageError("tools is not a list; give a list of JSON schemas or Python functions")
        if self.template_args is not None and not isinstance(self.template_args, Mapping):
            raise UsageError("template_args is not an object; give the template's variables by name")

    def _check_stop(self) -> None:
        if self.stop is None:
            return
        several = isinstance(self.stop, Collection) and not isinstance(self.stop, bytes | bytearray | Mapping)
        if not several or not all(isinstance(text, str) for text in self.stops):
            raise UsageError(f"stop is {short(repr(self.stop))}; expected one string or several")
        if "" in self.stops:
            raise UsageError("a stop string is empty; it would stop every reply before it begins")

    def _check_grammar(self) -> None:
        if self.grammar is None:
            return
        if not isinstance(self.grammar, Grammar | Spec):
            raise UsageError(
                f"grammar is {short(repr(self.grammar))}; expected a Grammar, or one of {', '.join(SPECS)}"
            )
        if self.stops:
            raise UsageError("a stop string would end the reply before its grammar is complete; drop one of them")
        if self.continue_final_message:
            raise UsageError("a grammar binds a whole answer, and continue_final_message begins one; drop one of them")

    def _check_budget(self) -> None:
        if (budget := self.thinking_budget) is None:
            return
        if not is_int(budget) or budget < 0:
            raise UsageError(f"thinking_budget is {budget!r}; expected a number of tokens, 0 or more")
        if self.thinks is False:
            raise UsageError("thinking_budget limits the thinking, which is switched off; drop one of them")

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def thinks(self) -> bool | None:
        """Whether the reply should think, by `thinking` or by a template variable; None leaves it to the template."""
        variable = (self.template_args or {}).get("enable_thinking")
        return self.thinking if self.thinking is not None else variable if isinstance(variable, bool) else None

    def of_template(self) -> list[str]:
        """The names of the options that are given and belong to the chat template."""
        names = ("tools", "thinking", "chat_template", "template_args", "continue_final_message", "literal_content")
        defaults = {field.name: field.default for field in fields(self)}
        return [name for name in names if getattr(self, name) != defaults[name]]


@dataclass(frozen=True)
class Request:
    """A checked prompt with everything that decides the reply."""

    ids: list[int]
    sampling: SamplingParams
    max_tokens: int
    stop: tuple[str, ...]
    opens_thinking: bool  # the reply begins inside a think block
    begun: bool = False  # the reply continues a text that the prompt began
    thinking_budget: int | None = None  # tokens of thinking after which the engine closes the block
    open_ended: bool = False  # max_tokens is a default, which may be cut to what fits the memory
    logprobs: int | None = None  # number of alternatives for each token; None: no log-probabilities
    number: int = 0  # tells replies of one prompt and seed apart
    grammar: Grammar | None = None  # binds the answer
    may_think: bool = True  # the reply may begin with a think block before the bound answer
    adapter: str | None = None  # the name of one of the engine's adapters; None is the base


def prepare(config: Qwen3Config, tokenizer: Tokenizer, prompt: Prompt, options: ReplyOptions | None = None) -> Request:
    """Render, encode and check a prompt.

    A string is one user message, a list of messages is a conversation, and a list or array of ids is used as it is. The
    defaults: the checkpoint's sampling, `max_tokens` from generation_config or up to the end of the context, thinking
    as the template decides.
    Raises PromptError, or UsageError for a setting that this checkpoint cannot honour.
    """
    options = ReplyOptions() if options is None else options
    if not isinstance(options, ReplyOptions):
        raise UsageError(f"options is of type {type(options).__name__}; expected ReplyOptions")
    if tokenizer.size > config.vocab_size:
        raise PromptError(
            f"the tokenizer has {tokenizer.size} ids, but the embedding {config.vocab_size} rows; one is of another "
            "model, or tokens were added without resize_token_embeddings"
        )
    ids, opens, begun = _encode(config, tokenizer, prompt, options)
    if (thinks := options.thinks) is not None and thinks != opens:
        template = tokenizer.chat_template(options.chat_template, options.tools)
        if not template.can_switch_thinking:
            raise UsageError(f"this checkpoint's chat template cannot switch thinking {'on' if thinks else 'off'}")
    if options.thinking_budget is not None:
        check_budget(tokenizer)
    if options.grammar is not None and opens:
        check_thinking(tokenizer)
    max_tokens = options.max_tokens
    if max_tokens is None:
        max_tokens = token_limit(tokenizer.generation_config, len(ids), config.context_length)
    check_prompt(ids, max_tokens, config)
    sampling = options.sampling or default_sampling(tokenizer, thinks)
    if sampling.logit_bias and (last := sampling.logit_bias[-1][0]) >= tokenizer.size:
        raise UsageError(f"logit_bias has the id {last}; the tokenizer has {tokenizer.size} ids")
    return Request(
        ids,
        sampling,
        max_tokens,
        options.stops,
        opens,
        begun,
        options.thinking_budget,
        options.max_tokens is None,
        options.logprobs,
        grammar=None if options.grammar is None else compiled(tokenizer, options.grammar),
        may_think=thinks is not False,
    )


def check_loaded(model: Any, tokenizer: Any, draft: Any = None) -> None:
    """Raises UsageError for a model or a tokenizer that is something else, such as the name of one."""
    kinds = {"model": (model, Qwen3), "tokenizer": (tokenizer, Tokenizer), "draft": (draft, Qwen3 | None)}
    for name, (value, kind) in kinds.items():
        if not isinstance(value, kind):
            raise UsageError(f"{name} is of type {type(value).__name__}; `load` returns a model and a tokenizer")


def check_draft(draft: Checkpoint, tokenizer: Tokenizer) -> None:
    """Raises UsageError if a model cannot draft for this tokenizer; needs no weights."""
    if not tokenizer.speaks_like(Tokenizer(draft)):
        raise UsageError("the draft model's tokenizer has other tokens; give a smaller model of the same family")
    check_vocabulary(draft.config, tokenizer.size)


def default_sampling(tokenizer: Tokenizer, thinking: bool | None = None, **changes: Any) -> SamplingParams:
    """The checkpoint's sampling settings with a fresh seed; `changes` replace single ones, None changes nothing."""
    chosen = {"seed": int.from_bytes(os.urandom(4))} | {
        name: value for name, value in changes.items() if value is not None
    }
    return replace(SamplingParams.from_generation_config(tokenizer.generation_config, thinking is not False), **chosen)


def _encode(
    config: Qwen3Config, tokenizer: Tokenizer, prompt: Prompt, options: ReplyOptions
) -> tuple[list[int], bool, bool]:
    """(token ids, whether the reply begins inside a think block, whether it continues a text)"""
    if isinstance(prompt, str):
        if options.continue_final_message:
            raise UsageError("continue_final_message needs a list of messages; text is one user message, not a reply")
        return _render(tokenizer, [{"role": "user", "content": prompt}], options)
    items = _items(prompt)
    if all(is_int(item) for item in items):  # also an empty prompt
        if names := options.of_template():
            raise UsageError(f"{names[0]} is a setting of the chat template, which a raw prompt does not pass")
        ids = [int(item) for item in items]
        check_ids(ids, config)
        return ids, tokenizer.opens_thinking(ids), False
    if wrong := [item for item in items if item is None or isinstance(item, str | int | float | list)]:
        raise PromptError(f"the prompt holds a value of type {type(wrong[0]).__name__}; {KINDS}")
    return _render(tokenizer, items, options)


def _items(prompt: Any) -> list[Any]:
    """The messages or the ids of a prompt. An array with one row, as tokenizers return it, counts as that row."""
    if isinstance(prompt, bytes | bytearray | Mapping) or not isinstance(prompt, Iterable):
        raise PromptError(f"the prompt is of type {type(prompt).__name__}; {KINDS}")
    if not callable(convert := getattr(prompt, "tolist", None)):
        return list(prompt)
    items: list[Any] = convert()
    shape = tuple(getattr(prompt, "shape", ()))
    items = items[0] if len(shape) == 2 and shape[0] == 1 else items
    if not all(is_int(item) for item in items):
        shown = f"shape {shape} and dtype {getattr(prompt, 'dtype', 'unknown')}"
        raise PromptError(f"the prompt is an array of {shown}; expected the token ids of one prompt, (L,) integers")
    return items


def _render(tokenizer: Tokenizer, messages: list[Any], options: ReplyOptions) -> tuple[list[int], bool, bool]:
    template = tokenizer.chat_template(options.chat_template, options.tools)
    rendered = template.render(
        messages,
        options.tools,
        enable_thinking=options.thinking,
        continue_final_message=options.continue_final_message,
        template_args=options.template_args,
        control_tokens=tokenizer.control_tokens(template) if options.literal_content else None,
    )
    return tokenizer.encode(rendered.text), rendered.opens_thinking, rendered.begun
