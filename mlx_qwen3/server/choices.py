"""One choice of a chat completion: what its tokens add to the message, piece by piece and as a whole."""

from collections.abc import Sequence

from msgspec import UNSET

from ..engine.reply import Chunk
from ..text.tokenizer import Tokenizer
from .answers import (
    Alternative,
    ChatChoice,
    ChatChunkChoice,
    ChatDelta,
    ChatLogprobs,
    ChatMessage,
    Finish,
    TokenLogprob,
)


class Trimmed:
    """Text without the line breaks at its ends, in pieces."""

    def __init__(self) -> None:
        self._held = ""
        self._begun = False

    def feed(self, text: str) -> str:
        text = self._held + text if self._begun else text.lstrip("\n")
        kept = text.rstrip("\n")
        self._held = text[len(kept) :]
        self._begun = self._begun or bool(kept)
        return kept


class Choice:
    """Takes chunks; gives what each adds (`feed`), and the whole (`whole`), which is the sum of it."""

    def __init__(self, index: int, tokenizer: Tokenizer):
        self._index, self._tokenizer = index, tokenizer
        self._thinking = Trimmed()
        self._entries: list[TokenLogprob] = []  # of tokens that are not sent yet
        self._open: list[TokenLogprob] = []  # of tokens that may be of the answer or not
        self.content = self.reasoning = ""
        self.logprobs: list[TokenLogprob] = []
        self.finish: Finish | None = None

    def feed(self, chunk: Chunk) -> ChatChunkChoice | None:
        """What a chunk adds; None if that is nothing to be seen yet."""
        thinking = self._thinking.feed(chunk.thinking)
        self.content += chunk.text
        self.reasoning += thinking
        self._note(chunk)
        self.finish = self._finish(chunk)
        if not (thinking or chunk.text or self.finish):
            return None
        delta = ChatDelta()
        if thinking:
            delta.reasoning_content = delta.reasoning = thinking
        if chunk.text:
            delta.content = chunk.text
        entries, self._entries = self._entries, []
        return ChatChunkChoice(self._index, delta, self.finish, ChatLogprobs(entries) if entries else None)

    def first(self) -> ChatChunkChoice:
        return ChatChunkChoice(self._index, ChatDelta("assistant", ""))

    def whole(self, logprobs: bool) -> ChatChoice:
        assert self.finish is not None, "the reply has ended"
        thinking = self.reasoning or UNSET
        message = ChatMessage(content=self.content, reasoning_content=thinking, reasoning=thinking)
        return ChatChoice(self._index, message, self.finish, ChatLogprobs(self.logprobs) if logprobs else None)

    def _finish(self, chunk: Chunk) -> Finish | None:
        return chunk.finish_reason  # type: ignore[return-value]

    def _note(self, chunk: Chunk) -> None:
        """Log-probabilities are those of the answer's tokens, without tags and end tokens."""
        if chunk.logprobs is None:
            return
        if chunk.part == "answer" or not chunk.part:
            self._open.append(entry(self._tokenizer, chunk.token, chunk.logprobs.logprob, chunk.logprobs.top))
        if chunk.part == "answer" or (chunk.finish_reason and chunk.text):
            self._entries += self._open
            self.logprobs += self._open
        if chunk.part:
            self._open = []


def entry(tokenizer: Tokenizer, token: int, logprob: float, top: Sequence[tuple[int, float]]) -> TokenLogprob:
    others = [Alternative(*_text(tokenizer, index, value)) for index, value in top]
    return TokenLogprob(*_text(tokenizer, token, logprob), others)


def _text(tokenizer: Tokenizer, token: int, logprob: float) -> tuple[str, float, list[int]]:
    data = tokenizer.token_bytes(token)
    return data.decode("utf-8", "replace"), logprob, list(data)
