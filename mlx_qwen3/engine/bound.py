"""Binds the answer of a reply to a grammar; the thinking before it stays free."""

import numpy as np

from ..errors import UsageError
from ..text.streaming import ReplyText
from ..text.tokenizer import END_THINK, THINK, Tokenizer
from .grammar import Grammar

MOST_BREAKS = 2  # line breaks after a think block, which belong to its tag; Qwen3 writes two


class BoundAnswer:
    """Steering that allows only tokens of a grammar.

    A reply that may think begins with `<think>` or with its answer. In the block every token but an end token is
    allowed. Line breaks after the block are not part of the answer.
    """

    def __init__(self, grammar: Grammar, may_think: bool, opens_thinking: bool = False):
        tokenizer = grammar.tokenizer
        self._match = grammar.begin()
        self._stop_ids = tokenizer.stop_ids
        self._think, self._end_think = (_token(tokenizer, tag) for tag in (THINK, END_THINK))
        self._thinking: ReplyText | None = ReplyText(tokenizer, (), opens_thinking) if opens_thinking else None
        self._can_begin = may_think and not opens_thinking and None not in (self._think, self._end_think)
        self._tokenizer = tokenizer
        self._breaks: dict[int, int] = {}  # ids of line breaks that may come now, and how many breaks each is
        self._breaks_left = 0
        self._unended = np.ones(tokenizer.size, bool)
        self._unended[[index for index in self._stop_ids if index < tokenizer.size]] = False

    def waits(self) -> bool:
        return True

    def allowed(self) -> np.ndarray:
        if self._thinking:
            return self._unended
        mask = self._match.allowed()
        if self._can_begin:
            mask[self._think] = True
        for index, breaks in self._breaks.items():
            mask[index] = mask[index] or breaks <= self._breaks_left
        return mask

    def settle(self, token: int) -> int:
        if self._thinking:
            return self._think_on(token)
        if self._can_begin and token == self._think:
            self._thinking = ReplyText(self._tokenizer)
            self._thinking.add(token)
        elif token in self._breaks:
            self._breaks_left -= self._breaks[token]
        else:
            self._match.take(token)
            self._breaks = {}
        self._can_begin = False
        return token

    def _think_on(self, token: int) -> int:
        assert self._thinking
        _, answer = self._thinking.add(token)
        if self._thinking.thinks:
            return token
        self._thinking = None
        self._breaks_left = MOST_BREAKS
        self._breaks = {
            ids[0]: count
            for count in range(1, MOST_BREAKS + 1)
            if len(ids := self._tokenizer.encode("\n" * count)) == 1
        }
        # The last token of a tag in letters may also begin the answer. The tag's own token replaces it.
        return token if not answer or self._end_think is None else self._end_think


def check_thinking(tokenizer: Tokenizer) -> None:
    """Raises UsageError if the tokenizer has no single token that closes a think block."""
    if _token(tokenizer, END_THINK) is None:
        raise UsageError(f"a grammar after thinking needs a tokenizer with the token {END_THINK}; switch thinking off")


def _token(tokenizer: Tokenizer, tag: str) -> int | None:
    ids = tokenizer.encode(tag)
    return ids[0] if len(ids) == 1 else None
