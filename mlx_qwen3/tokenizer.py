"""Text to token ids and back: the `tokenizers` library, the checkpoint's own chat template, streaming."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import tokenizers
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from .config import read_json, token_ids
from .errors import CheckpointError, PromptError

THINK, END_THINK = "<think>", "</think>"
REPLACEMENT = "\ufffd"  # what a decoder writes for bytes that are no character, or not yet one


class Tokenizer:
    """The tokenizer of a checkpoint folder with what belongs to it: chat template, end tokens, sampling defaults."""

    def __init__(self, folder: Path):
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise CheckpointError(f"{path} does not exist; save the tokenizer with transformers to get one")
        try:
            self._backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises Exception itself
            raise CheckpointError(f"{path} is not a tokenizer ({error}); download it again") from None
        self._backend.no_truncation()
        self._backend.no_padding()
        self.config = _optional_json(folder / "tokenizer_config.json")
        self.generation_config = _optional_json(folder / "generation_config.json")
        self._templates = _chat_templates(folder, self.config)
        self.stop_ids = self._stop_ids(_optional_json(folder / "config.json"))

    @cached_property
    def size(self) -> int:
        """One past the last id that stands for text; ids from here on are padding rows of the embedding."""
        added = self._backend.get_added_tokens_decoder()
        return max([self._backend.get_vocab_size(with_added_tokens=False), *(i + 1 for i in added)])

    def encode(self, text: str) -> list[int]:
        """Token ids; special tokens written in the text count as such, nothing is added at the ends."""
        try:
            return self._backend.encode(text, add_special_tokens=False).ids
        except UnicodeEncodeError:
            raise PromptError("the text holds a lone surrogate, which is no character; remove it") from None

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        return self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        enable_thinking: bool | None = None,
    ) -> str:
        """The conversation as prompt text, byte for byte what transformers renders.

        `enable_thinking=None` leaves the switch to the template. Raises PromptError where the template refuses.
        """
        template = self._template("tool_use" if tools and "tool_use" in self._templates else "default")
        switch = {} if enable_thinking is None else {"enable_thinking": enable_thinking}
        try:
            # Through JSON, so that an untrusted template meets plain types only, with no methods to misuse.
            messages, tools = json.loads(json.dumps([list(messages), list(tools) if tools is not None else None]))
            return template.render(
                messages=[_with_reasoning(message) for message in messages],
                tools=tools,
                documents=None,
                add_generation_prompt=add_generation_prompt,
                **self._special_tokens(),
                **switch,
            )
        except Exception as error:  # a template can raise anything
            raise PromptError(f"the chat template cannot render this conversation: {error}") from None

    @property
    def has_chat_template(self) -> bool:
        return bool(self._templates)

    @property
    def can_switch_thinking(self) -> bool:
        return any("enable_thinking" in source for source in self._templates.values())

    def opens_thinking(self, prompt: Sequence[int]) -> bool:
        """True where a prompt's last turn is inside a think block, as Qwen3-Thinking-2507's template leaves it."""
        opening, closing = map(self._backend.token_to_id, (THINK, END_THINK))
        last = next((i for i in reversed(prompt) if i in (opening, closing) or i in self.stop_ids), None)
        return last is not None and last == opening

    def _template(self, name: str) -> jinja2.Template:
        if name not in self._templates:
            raise PromptError("this checkpoint has no chat template; give the prompt as raw text (--raw)")
        try:
            return _environment().from_string(self._templates[name])
        except jinja2.TemplateError as error:
            raise CheckpointError(f"the chat template is not valid Jinja: {error}") from None

    def _special_tokens(self) -> dict[str, str]:
        names = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
        return {name: token for name in names if (token := _token_text(self.config.get(name)))}

    def _stop_ids(self, config: Mapping[str, Any]) -> frozenset[int]:
        """The union of what generation_config, config and the tokenizer call the end."""
        own = self._backend.token_to_id(_token_text(self.config.get("eos_token")) or "")
        ids = token_ids(self.generation_config, "eos_token_id") | token_ids(config, "eos_token_id")
        return ids if own is None else ids | {own}


class StreamDecoder:
    """Turns tokens into text one by one; the pieces joined are the decoded whole.

    Byte-level tokens split characters, so text waits while it ends in an incomplete one.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self._held: list[int] = []

    def add(self, token: int) -> str:
        self._held.append(token)
        text = self._tokenizer.decode(self._held, skip_special_tokens=True)
        if text.endswith(REPLACEMENT):
            return ""
        self._held.clear()
        return text

    def flush(self) -> str:
        """What is left at the end: an incomplete character shows as U+FFFD."""
        text = self._tokenizer.decode(self._held, skip_special_tokens=True)
        self._held.clear()
        return text


def _optional_json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _token_text(token: Any) -> str | None:
    return token.get("content") if isinstance(token, dict) else token


def _chat_templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """Named templates: from chat_template.jinja (transformers 5), else from tokenizer_config.json (4)."""
    if (path := folder / "chat_template.jinja").exists():
        return {"default": path.read_text(encoding="utf-8")}
    templates = config.get("chat_template") or {}
    if isinstance(templates, list):
        return {entry["name"]: entry["template"] for entry in templates}
    return {"default": templates} if isinstance(templates, str) else dict(templates)


def _environment() -> ImmutableSandboxedEnvironment:
    """Jinja with the options, filter and functions that transformers gives a chat template."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
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
