"""The checkpoint's own chat template: Jinja in a sandbox, as transformers runs it."""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from ..errors import CheckpointError, PromptError

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class ChatTemplate:
    """The templates of a folder: chat_template.jinja (transformers 5), else in tokenizer_config.json (4)."""

    def __init__(self, folder: Path, tokenizer_config: Mapping[str, Any]):
        self._sources = _sources(folder, tokenizer_config)
        self._special_tokens = {
            name: text for name in SPECIAL_TOKENS if (text := token_text(tokenizer_config.get(name)))
        }

    @property
    def exists(self) -> bool:
        return bool(self._sources)

    @property
    def can_switch_thinking(self) -> bool:
        return any("enable_thinking" in source for source in self._sources.values())

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None,
        add_generation_prompt: bool,
        **switches: Any,
    ) -> str:
        """The conversation as prompt text, byte for byte what transformers renders.

        Raises PromptError where there is no template or it refuses, CheckpointError where it is not Jinja.
        """
        template = self._template("tool_use" if tools is not None and "tool_use" in self._sources else "default")
        try:
            # transformers drops fields that are null, too.
            plain = [{key: value for key, value in message.items() if value is not None} for message in messages]
            # Through JSON, so that an untrusted template meets plain types only, with no methods to misuse.
            messages, tools = json.loads(json.dumps([plain, list(tools) if tools is not None else None]))
            return template.render(
                messages=[_with_reasoning(message) for message in messages],
                tools=tools,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._special_tokens,
                **switches,
            )
        except Exception as error:  # a template can raise anything
            reason = " ".join(str(error).split())
            raise PromptError(f"the chat template cannot render this conversation: {reason}") from None

    def _template(self, name: str) -> jinja2.Template:
        if name not in self._sources:
            raise PromptError("this checkpoint has no chat template; give the prompt as raw text (--raw)")
        try:
            return _compiled(self._sources[name])
        except jinja2.TemplateError as error:
            raise CheckpointError(f"the chat template is not valid Jinja: {error}") from None


def token_text(token: Any) -> str | None:
    """A special token of tokenizer_config.json, which is a text or an object around it."""
    text = token.get("content") if isinstance(token, dict) else token
    if text is not None and not isinstance(text, str):
        raise CheckpointError(f"tokenizer_config.json names {token!r} as a special token; expected text")
    return text


def _sources(folder: Path, tokenizer_config: Mapping[str, Any]) -> dict[str, str]:
    """Template texts by name."""
    if (path := folder / "chat_template.jinja").exists():
        try:
            return {"default": path.read_text(encoding="utf-8")}
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{path} is not UTF-8 text ({error.reason}); download it again") from None
    templates = tokenizer_config.get("chat_template") or {}
    try:
        if isinstance(templates, list):
            return {entry["name"]: entry["template"] for entry in templates}
        return {"default": templates} if isinstance(templates, str) else dict(templates)
    except (KeyError, TypeError):
        raise CheckpointError(f"chat_template is {templates!r}; expected a template or a list of named ones") from None


class _Generation(Extension):
    """`{% generation %}` marks what a model is trained on; a prompt only passes it through."""

    tags = {"generation"}  # noqa: RUF012 - declared so in jinja2

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_pass"), [], [], body).set_lineno(line)

    def _pass(self, caller: Callable[[], str]) -> str:
        return caller()


@cache
def _compiled(source: str) -> jinja2.Template:
    return _environment().from_string(source)


def _environment() -> ImmutableSandboxedEnvironment:
    """Jinja with the options, filter and functions that transformers gives a chat template."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, _Generation]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["strftime_now"] = lambda pattern: datetime.now().strftime(pattern)
    return environment


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    # Jinja's own filter escapes HTML characters, which changes the prompt.
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _with_reasoning(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """A message's thinking under the names by which templates ask for it."""
    names = ("reasoning_content", "thinking", "reasoning")
    reasoning = next((message[name] for name in names if message.get(name) is not None), None)
    return message if reasoning is None else {"thinking": reasoning, **message, "reasoning_content": reasoning}
