"""A file of prompts: a text or a JSON object on each line, all checked before the first of them runs."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..errors import PromptError, Qwen3Error, UsageError, found_in
from ..files.config import Qwen3Config
from ..files.reading import short
from ..text.tokenizer import Tokenizer
from .engine import Engine, Reply
from .request import ReplyOptions, Request, default_sampling, prepare
from .sampling import SETTINGS, SamplingParams
from .specs import JsonSchema, Regex

TEXTS = ("prompt", "messages", "system")
OPTIONS = ("max_tokens", "thinking", "thinking_budget", "stop", "tools", "template_args", "literal_content")
GRAMMARS = {"json_schema": JsonSchema, "regex": Regex}  # key -> what binds the answer to its value
KEYS = ("id", *TEXTS, *OPTIONS, *GRAMMARS, *SETTINGS)
# The types of the values of a line, for keys that are not checked later.
KINDS = {
    "prompt": (str, "a text"),
    "system": (str, "a text"),
    "messages": (list, "a list of messages"),
    "thinking": (bool, "true or false"),
    "literal_content": (bool, "true or false"),
    "stop": (str | list, "a text or a list of texts"),
    "tools": (list, "a list of JSON schemas"),
    "json_schema": (dict, "a JSON schema"),
    "regex": (str, "a text"),
    "id": (str | int | float, "a text or a number"),
}


@dataclass(frozen=True)
class Defaults:
    """The options of every line that does not set its own."""

    options: ReplyOptions = field(default_factory=ReplyOptions)
    sampling: Mapping[str, Any] = field(default_factory=dict)
    system: str | None = None


@dataclass(frozen=True)
class PromptLine:
    """One prompt of a file, at line `number` (from 1)."""

    number: int
    messages: list[Any]
    options: ReplyOptions
    sampling: Mapping[str, Any]
    id: Any = None


@dataclass
class Outcome:
    """The result of one prompt: a reply, or the error that ended it."""

    text: str = ""
    thinking: str = ""
    finish_reason: str | None = None
    prompt_tokens: int = 0
    generation_tokens: int = 0
    error: Exception | None = None


def read_lines(content: str, name: str, defaults: Defaults) -> list[PromptLine]:
    """The prompts of a file called `name`; empty lines are left out.

    A line that begins with `{` is a JSON object with the keys of KEYS; another one is the user's message itself.
    Raises UsageError or PromptError that names the line.
    """
    found = []
    for number, line in enumerate(content.split("\n"), 1):
        if line.strip():
            with found_in(f"{name}, line {number}"):
                found.append(_read(number, line.strip(), defaults))
    if not found:
        raise UsageError(f"{name} holds no prompt; write one on each line")
    return found


def prepare_lines(lines: Sequence[PromptLine], name: str, config: Qwen3Config, tokenizer: Tokenizer) -> list[Request]:
    """The checked request of every line. Raises a subclass of Qwen3Error that names the line."""
    requests = []
    for line in lines:
        with found_in(f"{name}, line {line.number}"):
            sampling = default_sampling(tokenizer, line.options.thinks, **line.sampling)
            requests.append(prepare(config, tokenizer, line.messages, replace(line.options, sampling=sampling)))
    return requests


def run_all(engine: Engine, requests: Sequence[Request]) -> Iterator[Outcome]:
    """The outcome of each request in their order, each as soon as it and those before it are complete."""
    replies = [_submit(engine, request) for request in requests]
    for request, reply in zip(requests, replies, strict=True):
        outcome = Outcome(prompt_tokens=len(request.ids))
        try:
            if isinstance(reply, Exception):
                raise reply
            for chunk in reply:
                outcome.text += chunk.text
                outcome.thinking += chunk.thinking
                outcome.finish_reason = chunk.finish_reason
                outcome.generation_tokens += 1
        except Exception as error:  # of this prompt alone: the others go on
            outcome.error = error
        outcome.thinking = outcome.thinking.strip("\n")
        yield outcome


def _submit(engine: Engine, request: Request) -> Reply | Exception:
    try:
        return engine.submit(request)
    except Qwen3Error as error:
        return error


def _read(number: int, line: str, defaults: Defaults) -> PromptLine:
    values = _parsed(line) if line.startswith("{") else {"prompt": line}
    for key, value in values.items():
        kind, expected = KINDS.get(key, (object, ""))
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool and key in KINDS):
            raise PromptError(f"{key} is {short(repr(value))}; expected {expected}")
    sampling = {**defaults.sampling, **{name: values[name] for name in SETTINGS if name in values}}
    SamplingParams(**sampling)
    given: dict[str, Any] = {name: values[name] for name in OPTIONS if name in values}
    grammars = [kind(values[name]) for name, kind in GRAMMARS.items() if name in values]
    if len(grammars) > 1:
        raise PromptError("json_schema and regex both bind the answer; drop one of them")
    if grammars:
        given["grammar"] = grammars[0]
    options = replace(defaults.options, **given)
    return PromptLine(number, _messages(values, defaults.system), options, sampling, values.get("id"))


def _parsed(line: str) -> dict[str, Any]:
    """The object of a line, without keys that are null."""
    try:
        values: dict[str, Any] = json.loads(line)
    except (ValueError, RecursionError) as error:
        remedy = 'correct it, or write a text that begins with { as {"prompt": ...}'
        raise PromptError(f"not a JSON object ({error}); {remedy}") from None
    if unknown := [key for key in values if key not in KEYS]:
        raise PromptError(f"unknown key {short(unknown[0])!r}; known are {', '.join(KEYS)}")
    return {key: value for key, value in values.items() if value is not None}


def _messages(values: Mapping[str, Any], system: str | None) -> list[Any]:
    if ("prompt" in values) == ("messages" in values):
        raise PromptError("give either a prompt or messages")
    messages = values.get("messages", [{"role": "user", "content": values.get("prompt")}])
    if messages and isinstance(messages[0], dict) and messages[0].get("role") == "system":
        if "system" in values:
            raise PromptError("system is given beside messages that begin with a system message; drop one of them")
        return list(messages)
    system = values.get("system", system)
    if not messages:
        return []  # `prepare` refuses it
    return [*([] if system is None else [{"role": "system", "content": system}]), *messages]
