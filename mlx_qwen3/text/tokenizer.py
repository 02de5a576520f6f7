"""Text to token ids and back: the `tokenizers` library, and streaming."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import tokenizers

from ..errors import CheckpointError, PromptError, UsageError
from ..files.config import read_json, token_ids
from .chat_template import ChatTemplate, Tool
from .template_files import ChatTemplates

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
THINK, END_THINK = "<think>", "</think>"
REPLACEMENT = "\ufffd"  # what a decoder writes for bytes that are no character, or not yet one


class Tokenizer:
    """The tokenizer of a checkpoint folder with what belongs to it: chat template, end tokens, sampling defaults."""

    def __init__(self, folder: str | Path):
        folder = Path(folder)
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
        tokens = {name: text for name in SPECIAL_TOKENS if (text := token_text(self.config.get(name)))}
        self._templates = ChatTemplates(folder, self.config, tokens)
        self.stop_ids = self._stop_ids(_optional_json(folder / "config.json"))

    @cached_property
    def size(self) -> int:
        """One past the last id that stands for text; ids from here on are padding rows of the embedding."""
        added = self._backend.get_added_tokens_decoder()
        return max([self._backend.get_vocab_size(with_added_tokens=False), *(i + 1 for i in added)])

    def speaks_like(self, other: "Tokenizer") -> bool:
        """Whether ids have the same meaning, apart from added tokens."""
        ours, theirs = (x._backend.get_vocab(with_added_tokens=False) for x in (self, other))
        return ours == theirs

    def encode(self, text: str) -> list[int]:
        """Token ids; special tokens written in the text count as such, nothing is added at the ends."""
        try:
            return self._backend.encode(text, add_special_tokens=False).ids
        except (TypeError, UnicodeEncodeError):
            raise PromptError("the text holds a lone surrogate, which is no character; remove it") from None

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        return self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Tool] | None = None,
        add_generation_prompt: bool | None = None,
        enable_thinking: bool | None = None,
        *,
        chat_template: str | Path | None = None,
        continue_final_message: bool | str = False,
        template_args: Mapping[str, Any] | None = None,
    ) -> str:
        """The conversation as prompt text, byte for byte what transformers renders.

        tools: JSON schemas, or Python functions with type hints and a docstring.
        add_generation_prompt: begin the reply; by default, unless the final message is continued.
        enable_thinking: None leaves the switch to the template.
        chat_template: the name of one of the checkpoint's templates, a file, or the text of a template.
        continue_final_message: leave the last message open, for the model to continue; text names another field of it
        than `content`.
        template_args: further variables of the template.
        Raises PromptError that names the message, and UsageError for options that contradict each other.
        """
        template, variables = self.chat_template(chat_template, tools), dict(template_args or {})
        if enable_thinking is not None and variables.get("enable_thinking", enable_thinking) is not enable_thinking:
            raise UsageError("template_args and the option set enable_thinking to different values; drop one of them")
        if enable_thinking is not None and template.can_switch_thinking:
            variables["enable_thinking"] = enable_thinking
        if add_generation_prompt is None:
            add_generation_prompt = not continue_final_message
        return template.render(
            messages,
            tools,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            template_args=variables,
        )

    def chat_template(self, chosen: str | Path | None = None, tools: Sequence[Tool] | None = None) -> ChatTemplate:
        """The template that `apply_chat_template` uses with these options."""
        return self._templates.choose(chosen, tools is not None)

    @property
    def has_chat_template(self) -> bool:
        return self._templates.exist

    @property
    def can_switch_thinking(self) -> bool:
        return self._templates.exist and self.chat_template().can_switch_thinking

    def opens_thinking(self, prompt: Sequence[int]) -> bool:
        """True where a prompt's last turn is inside a think block, as Qwen3-Thinking-2507's template leaves it."""
        opening, closing = map(self._backend.token_to_id, (THINK, END_THINK))
        last = next((i for i in reversed(prompt) if i in (opening, closing) or i in self.stop_ids), None)
        return last is not None and last == opening

    def _stop_ids(self, config: Mapping[str, Any]) -> frozenset[int]:
        """The union of what generation_config, config and the tokenizer call the end."""
        own = self._backend.token_to_id(token_text(self.config.get("eos_token")) or "")
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


def token_text(token: Any) -> str | None:
    """A special token of tokenizer_config.json, which is a text or an object around it."""
    text = token.get("content") if isinstance(token, dict) else token
    if text is not None and not isinstance(text, str):
        raise CheckpointError(f"tokenizer_config.json names {token!r} as a special token; expected text")
    return text


def _optional_json(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}
