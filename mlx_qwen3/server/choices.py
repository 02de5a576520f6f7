"""One choice of a chat completion: what its tokens add to the message, piece by piece and as a whole."""

from collections.abc import Sequence
from dataclasses import replace

from msgspec import UNSET

from ..engine.reply import Chunk
from ..text.tokenizer import Tokenizer
from ..text.tool_calls import CallBegin, CallCut, CallEnd, Event, Text, ToolCallParser
from .answers import (
    Alternative,
    CalledFunction,
    ChatChoice,
    ChatChunkChoice,
    ChatDelta,
    ChatLogprobs,
    ChatMessage,
    Finish,
    FunctionDelta,
    TokenLogprob,
    ToolCall,
    ToolCallDelta,
)

REPLACEMENT = "\ufffd"


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

    def __init__(self, index: int, tokenizer: Tokenizer, parser: ToolCallParser | None = None):
        """`parser` finds tool calls in the answer; without one they stay text."""
        self._index, self._tokenizer, self._parser = index, tokenizer, parser
        self._thinking = Trimmed()
        self._entries: list[TokenLogprob] = []  # of tokens that are not sent yet
        self._open: list[TokenLogprob] = []  # of tokens that may be of the answer or not
        self.content = self.reasoning = ""
        self.calls: list[ToolCall] = []
        self.logprobs: list[TokenLogprob] = []
        self.finish: Finish | None = None

    def feed(self, chunk: Chunk) -> list[ChatChunkChoice]:
        """What a chunk adds, often nothing that can be seen yet."""
        chunk = visible(chunk)
        deltas = []
        if thinking := self._thinking.feed(chunk.thinking):
            self.reasoning += thinking
            deltas.append(ChatDelta(reasoning_content=thinking, reasoning=thinking))
        deltas += [delta for event in self._events(chunk) if (delta := self._take(event))]
        self._note(chunk)
        self.finish = self._finish(chunk)
        if self.finish and (not deltas or self.calls):
            deltas.append(ChatDelta())
        said = [ChatChunkChoice(self._index, delta) for delta in deltas]
        if said:
            said[-1].finish_reason = self.finish
            entries, self._entries = self._entries, []
            said[0].logprobs = ChatLogprobs(entries) if entries else None
        return said

    def first(self) -> ChatChunkChoice:
        return ChatChunkChoice(self._index, ChatDelta("assistant", ""))

    def whole(self, logprobs: bool) -> ChatChoice:
        assert self.finish is not None, "the reply has ended"
        thinking = self.reasoning or UNSET
        content = None if self.calls and not self.content else self.content
        message = ChatMessage(content=content, reasoning_content=thinking, reasoning=thinking)
        if self.calls:
            message.tool_calls = self.calls
        return ChatChoice(self._index, message, self.finish, ChatLogprobs(self.logprobs) if logprobs else None)

    def _events(self, chunk: Chunk) -> list[Event]:
        if self._parser is None:
            return [Text(chunk.text)] if chunk.text else []
        events = self._parser.feed(chunk.text) if chunk.text else []
        return events + self._parser.end() if chunk.finish_reason else events

    def _take(self, event: Event) -> ChatDelta | None:
        if isinstance(event, CallEnd):
            return None
        if isinstance(event, CallCut):  # a stream cannot take back what it has sent; a whole answer has it as text
            del self.calls[event.index]
            self.content += event.text
            return None
        if isinstance(event, Text):
            self.content += event.text
            return ChatDelta(content=event.text)
        if isinstance(event, CallBegin):
            self.calls.append(ToolCall(event.id, CalledFunction(event.name, "")))
            function = FunctionDelta(event.name, "")
            return ChatDelta(tool_calls=[ToolCallDelta(event.index, function, event.id, "function")])
        self.calls[event.index].function.arguments += event.delta
        return ChatDelta(tool_calls=[ToolCallDelta(event.index, FunctionDelta(arguments=event.delta))])

    def _finish(self, chunk: Chunk) -> Finish | None:
        """A reply that ends by itself after a call has ended for it; one that was cut says so."""
        ended: Finish | None = chunk.finish_reason  # type: ignore[assignment]
        return "tool_calls" if ended == "stop" and self.calls else ended

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


def visible(chunk: Chunk) -> Chunk:
    """The chunk, without a U+FFFD at the end of the reply: it stands for a character that the end has cut."""
    if not chunk.finish_reason:
        return chunk
    return replace(chunk, text=chunk.text.removesuffix(REPLACEMENT), thinking=chunk.thinking.removesuffix(REPLACEMENT))


def entry(tokenizer: Tokenizer, token: int, logprob: float, top: Sequence[tuple[int, float]]) -> TokenLogprob:
    others = [Alternative(*_text(tokenizer, index, value)) for index, value in top]
    return TokenLogprob(*_text(tokenizer, token, logprob), others)


def _text(tokenizer: Tokenizer, token: int, logprob: float) -> tuple[str, float, list[int]]:
    data = tokenizer.token_bytes(token)
    return data.decode("utf-8", "replace"), logprob, list(data)
