"""Text to token ids and back: the `tokenizers` library, and streaming."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, PromptError
from ..files.checkpoint import Checkpoint
from ..files.settings import token_ids
from .chat_template import END_THINK as END_THINK
from .chat_template import THINK as THINK
from .chat_template import ChatTemplate, Tool
from .ignored import warn_of_ignored
from .literal import LiteralText, Piece
from .panic import PanicError, panics_as_errors
from .template_files import ChatTemplates
from .vocabulary import QWEN_PATTERN, read_vocabulary

SECOND_BYTES = {0xE0: (0xA0, 0xBF), 0xED: (0x80, 0x9F), 0xF0: (0x90, 0xBF), 0xF4: (0x80, 0x8F)}  # in UTF-8
LONG = 1_000_000  # characters; from here on even Qwen's pattern may reach the limit of its library


class Tokenizer:
    """The tokenizer of a checkpoint or folder, with its chat templates, end tokens and sampling defaults."""

    def __init__(self, checkpoint: Checkpoint | str | Path):
        checkpoint = Checkpoint.of(checkpoint)
        folder, model_config = checkpoint.folder, checkpoint.settings("config.json")
        self.config = checkpoint.settings("tokenizer_config.json")
        warn_of_ignored(self.config)
        self.generation_config = checkpoint.settings("generation_config.json")
        self._vocabulary = read_vocabulary(folder, self.config, model_config)
        self._backend = self._vocabulary.backend
        if self._backend.decoder is None or self._backend.decoder.decode(["Ã", "©", "Ġ"]) != "é ":
            raise CheckpointError(f"the tokenizer in {folder} is not byte-level, as those of Qwen3 are")
        self._templates = ChatTemplates(folder, self.config, self._vocabulary.special_tokens)
        self.stop_ids = self._stop_ids(model_config)
        self._bytes: dict[int, bytes] = {}

    @cached_property
    def size(self) -> int:
        """One past the last id that stands for text; ids from here on are padding rows of the embedding."""
        added = self._backend.get_added_tokens_decoder()
        ids = [index for index, token in added.items() if token.content not in self._vocabulary.invented]
        return max([self._backend.get_vocab_size(with_added_tokens=False), *(index + 1 for index in ids)])

    @property
    def special_tokens(self) -> dict[str, str]:
        """The named special tokens, such as eos_token, which a template may ask for."""
        return self._vocabulary.special_tokens

    @cached_property
    def special(self) -> dict[int, str]:
        """The tokens that stand for no text, by id: `decode` drops them with `skip_special_tokens`."""
        added = self._backend.get_added_tokens_decoder()
        return {index: token.content for index, token in added.items() if self.decode([index], True) == ""}

    def to_json(self) -> str:
        """The tokenizer as the text of a tokenizer.json, with the added tokens of tokenizer_config.json."""
        return self._backend.to_str()

    def speaks_like(self, other: "Tokenizer") -> bool:
        """Whether every id means the same token in both; added tokens are not compared."""
        ours, theirs = (x._backend.get_vocab(with_added_tokens=False) for x in (self, other))
        return ours == theirs

    def encode(self, text: str) -> list[int]:
        """Token ids. Special tokens written in the text become special tokens. Nothing is added at the ends.

        The typed control tokens of a LiteralText stay text. Raises PromptError for a text that cannot be encoded.
        """
        pieces = (isinstance(text, LiteralText) and text.pieces) or ((text, False),)
        try:
            with panics_as_errors(report=self._is_safe and len(text) < LONG):
                return self._encode_pieces(pieces)
        except (TypeError, UnicodeEncodeError):
            raise PromptError("the text holds a lone surrogate, which is not a character; remove it") from None
        except PanicError as error:
            reason = f"the tokenizer's pattern cannot cut a text of {len(text):,} characters into words ({error})"
            remedy = "shorten its runs of one character, or use the model's own tokenizer.json"
            raise PromptError(f"{reason}; {remedy}") from None

    def _encode_pieces(self, pieces: Sequence[Piece]) -> list[int]:
        (first, typed), *others = pieces
        ids = self._typed(first) if typed else self._with_tokens(first)
        for text, typed in others:
            ids += self._inside(text, self._typed if typed else self._with_tokens)
        return ids

    def _with_tokens(self, text: str) -> list[int]:
        return self._backend.encode(text, add_special_tokens=False).ids

    def _inside(self, text: str, encode: Callable[[str], list[int]]) -> list[int]:
        """Ids of a piece that is not the first. It is encoded after a line break, so that no space is put before it."""
        line_break, ids = self._with_tokens("\n"), encode(f"\n{text}")
        return ids[len(line_break) :] if ids[: len(line_break)] == line_break else encode(text)

    def _typed(self, text: str) -> list[int]:
        """Ids of a control token as plain text, if need be letter by letter. It may begin with a line break."""
        token = self._backend.token_to_id(text.removeprefix("\n"))
        for parts in (text,), text:
            if token not in (ids := [index for part in parts for index in self._without_tokens(part)]):
                return ids
        raise PromptError(f"{text.strip()!r} cannot be literal text; the tokenizer has no other way to write it")

    def _without_tokens(self, text: str) -> list[int]:
        """Ids without added tokens. The library has no call for this; these are the steps that transformers takes."""
        normalizer, cut = self._backend.normalizer, self._backend.pre_tokenizer
        text = normalizer.normalize_str(text) if normalizer is not None else text
        words = [word for word, _ in cut.pre_tokenize_str(text)] if cut is not None else [text]
        return [token.id for word in words for token in self._backend.model.tokenize(word)]

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """The text of token ids; `skip_special_tokens` drops the tokens of `special`."""
        return self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens)

    def token_bytes(self, token: int) -> bytes:
        """The bytes that a token stands for. They need not be whole characters; a padding row stands for none."""
        if token not in self._bytes:
            letters = self._backend.id_to_token(token) or ""
            values = [BYTES.get(letter) for letter in letters]
            self._bytes[token] = letters.encode() if None in values else bytes(v for v in values if v is not None)
        return self._bytes[token]

    @cached_property
    def _is_safe(self) -> bool:
        """Whether every pattern that cuts text is Qwen's, which does not backtrack far."""
        parts = (self._backend.normalizer, self._backend.pre_tokenizer)
        state = b"".join(part.__getstate__() for part in parts if part is not None)
        return state.count(b'"Regex"') == state.count(json.dumps(QWEN_PATTERN).encode())

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
        literal_content: bool = False,
    ) -> str:
        """The conversation as prompt text, byte for byte what transformers renders.

        tools: JSON schemas, or Python functions with type hints and a docstring.
        add_generation_prompt: begin the reply; by default, unless the final message is continued.
        enable_thinking: None leaves the switch to the template.
        chat_template: the name of one of the checkpoint's templates, a file, or the text of a template.
        continue_final_message: leave the last message open, for the model to continue; text names another field of it
        than `content`.
        template_args: further variables of the template.
        literal_content: control tokens in messages, tools and variables stay text when `encode` reads the prompt; only
        those of the template have their effect.
        Raises PromptError that names the message, and UsageError for options that contradict each other.
        """
        template = self.chat_template(chat_template, tools)
        rendered = template.render(
            messages,
            tools,
            add_generation_prompt=add_generation_prompt,
            enable_thinking=enable_thinking,
            continue_final_message=continue_final_message,
            template_args=template_args,
            control_tokens=self.control_tokens(template) if literal_content else None,
        )
        return rendered.text

    def control_tokens(self, template: ChatTemplate) -> frozenset[str]:
        """What `literal_content` keeps out of messages: tokens that are special, or that are more than a word.

        They are the special tokens, the added tokens that the template writes, and those that hold a sign, such as
        `<|fim_prefix|>`. `chat_control_tokens` in tokenizer_config.json names them instead of the last two.
        """
        added = {index: token.content for index, token in self._backend.get_added_tokens_decoder().items()}
        tokens = set(added.values())
        special = {token for index, token in added.items() if index in self.special or index in self.stop_ids}
        if isinstance(chosen := self.config.get("chat_control_tokens"), list):
            return frozenset(special | (tokens & {token for token in chosen if isinstance(token, str)}))
        from .sandbox import written_text

        written = written_text(template.source)
        words = {token for token in tokens if all(letter.isalnum() or letter.isspace() for letter in token)}
        return frozenset(special | (tokens - words) | {w for w in words if w in written and not w.isspace()})

    def chat_template(self, chosen: str | Path | None = None, tools: Sequence[Tool] | None = None) -> ChatTemplate:
        """The template that `apply_chat_template` uses with these options."""
        return self._templates.choose(chosen, tools is not None)

    @property
    def has_chat_template(self) -> bool:
        """Whether the checkpoint has a default template."""
        return self._templates.has_default

    @property
    def can_switch_thinking(self) -> bool:
        return self._templates.has_default and self.chat_template().can_switch_thinking

    def opens_thinking(self, prompt: Sequence[int]) -> bool:
        """Whether a raw prompt ends inside a think block: after its last end token, `<think>` is the last tag.

        The prompt of a chat template says this of itself, whatever the messages hold.
        """
        end = next((at for at in range(len(prompt), 0, -1) if prompt[at - 1] in self.stop_ids), 0)
        text = self.decode(prompt[end:])
        return text.rfind(THINK) > text.rfind(END_THINK)

    def _stop_ids(self, config: Mapping[str, Any]) -> frozenset[int]:
        """All end tokens that generation_config.json, config.json and the tokenizer name."""
        text = self.special_tokens.get("eos_token")
        own = None if text is None or text in self._vocabulary.invented else self._backend.token_to_id(text)
        ids = token_ids(config, "eos_token_id")
        ids |= token_ids(self.generation_config, "eos_token_id", "generation_config.json")
        return ids if own is None else ids | {own}


class StreamDecoder:
    """Turns tokens into text one by one. The pieces, joined, are the decoded whole without special tokens.

    Byte-level tokens can split a character. So up to three bytes wait as long as they may still become a character.
    """

    def __init__(self, tokenizer: Tokenizer):
        self._tokenizer = tokenizer
        self.held = b""

    def add(self, token: int) -> str:
        if token in self._tokenizer.special:
            return ""
        data = self.held + self._tokenizer.token_bytes(token)
        end = len(data) - _unfinished(data)
        self.held = data[end:]
        return data[:end].decode("utf-8", "replace")

    def flush(self) -> str:
        """What is left at the end: an incomplete character shows as U+FFFD."""
        text, self.held = self.held.decode("utf-8", "replace"), b""
        return text


def _unfinished(data: bytes) -> int:
    """How many bytes at the end may still become a character, as UTF-8 allows it."""
    for count in range(1, min(3, len(data)) + 1):
        lead = data[-count]
        if lead < 0x80:
            return 0
        if lead >= 0xC0:
            length = 2 if lead < 0xE0 else 3 if lead < 0xF0 else 4
            low, high = SECOND_BYTES.get(lead, (0x80, 0xBF))
            fits = 0xC2 <= lead <= 0xF4 and (count == 1 or low <= data[1 - count] <= high)
            return count if fits and count < length else 0
    return 0


def _byte_letters() -> dict[str, int]:
    """The letters by which byte-level vocabularies write the bytes 0 to 255."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(others)}


BYTES = _byte_letters()
