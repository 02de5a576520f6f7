"""Keeps the text that a caller typed apart from the text of the chat template.

Both become one text, in which a typed `<|im_end|>` looks like the template's own. So each control token in a typed text
is put between two marks before the template sees it. Marks are characters that occur nowhere else. Afterwards the
rendered text is cut at the marks: text between two of them was typed. Templates can cut texts too: even a single mark
still shows where two texts meet.
"""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any
from urllib.parse import quote

from ..errors import PromptError

Piece = tuple[str, bool]  # text, and whether it is a control token that was typed
PRIVATE = range(0x100000, 0x10FFFE)  # characters to which Unicode gives no meaning
_PRIVATE = re.compile(f"[{chr(PRIVATE[0])}-{chr(PRIVATE[-1])}]")


class LiteralText(str):
    """A prompt in which typed control tokens are text.

    pieces: the same text, cut where typed control tokens begin and end, for `Tokenizer.encode`. The result of + or of a
    slice has no pieces: encode the whole text.
    """

    pieces: tuple[Piece, ...]

    def __new__(cls, pieces: Sequence[Piece]) -> "LiteralText":
        text = super().__new__(cls, "".join(part for part, _ in pieces))
        text.pieces = tuple(pieces)
        return text


class Marks:
    """Puts marks around the control tokens in typed values, and cuts the rendered text at the marks.

    `used`: characters that may not be marks. `strict` also marks tokens in upper or lower case, which a template may
    change, and texts that begin or end with a part of a token, so that two parts cannot be joined to one. Such a mark
    may change how a template trims a text.
    """

    def __init__(self, tokens: Iterable[str], used: Iterable[str] = (), strict: bool = False):
        longest_first = sorted(set(tokens), key=len, reverse=True)  # a token before shorter ones inside it
        choice = "|".join(map(re.escape, longest_first)) or "(?!)"
        self._exact, self._any_case = re.compile(choice), re.compile(choice, re.IGNORECASE)
        self._heads = tuple({token[:end] for token in longest_first for end in range(1, len(token))})
        self._tails = tuple({token[start:] for token in longest_first for start in range(1, len(token))})
        self._strict = strict
        self.used = set(used)
        self._open, self._close = free = list(islice((c for c in map(chr, PRIVATE) if c not in self.used), 2))
        opening, closing = map(_written, free)
        flags = re.IGNORECASE if strict else 0
        self._cuts = re.compile(f"{opening}({choice}){closing}|{opening}|{closing}", flags)
        self.near = False  # whether strict mode would have set more marks

    def __call__(self, value: Any) -> Any:
        """The value with every text in it marked, the keys of objects too."""
        if isinstance(value, str):
            return self._mark(value)
        if isinstance(value, dict):
            return {self(key): self(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self(item) for item in value)
        return value

    def cut(self, rendered: str) -> list[Piece]:
        """The rendered text without marks, in pieces."""
        parts = self._cuts.split(rendered)  # text, typed token or None for a single mark, text, ...
        return [(part, index % 2 == 1) for index, part in enumerate(parts) if part]

    def own(self, pieces: Iterable[Piece]) -> list[str]:
        """The control tokens that the template wrote, in order."""
        return [token for text, typed in pieces if not typed for token in self._exact.findall(text)]

    @property
    def clash(self) -> bool:
        """Whether a typed text contains one of the characters that serve as marks."""
        return not self.used.isdisjoint((self._open, self._close))

    def _mark(self, text: str) -> str:
        self.used.update(_PRIVATE.findall(text))
        begins, ends = text.startswith(self._tails), text.endswith(self._heads)
        marked = (self._any_case if self._strict else self._exact).sub(f"{self._open}\\g<0>{self._close}", text)
        self.near = self.near or begins or ends or len(self._any_case.findall(text)) > len(self._exact.findall(text))
        return f"{self._open * (self._strict and begins)}{marked}{self._close * (self._strict and ends)}"


def render_literal(render: Callable[[Marks], str], tokens: Iterable[str], source: str) -> LiteralText:
    """A prompt in which no typed text is a control token, or is joined to one.

    render: renders the template, with typed values marked; source: the template. A template can still make a token out
    of a typed text if it replaces characters inside it.
    """
    tokens = tuple(tokens)
    marks, pieces = _render(render, tokens, source, strict=False)
    if marks.near:
        strict, others = _render(render, tokens, source, strict=True)
        if strict.own(others) != marks.own(pieces):
            return LiteralText(others)
    return LiteralText(pieces)


def _render(
    render: Callable[[Marks], str], tokens: Sequence[str], source: str, strict: bool
) -> tuple[Marks, list[Piece]]:
    """(marks, pieces of the rendered text), with marks that neither the template nor a typed text holds."""
    marks = Marks(tokens, _PRIVATE.findall(source), strict)
    text = render(marks)
    if marks.clash:
        if len(marks.used) > len(PRIVATE) - 2:
            raise PromptError("the messages hold every private character of Unicode; remove them")
        marks = Marks(tokens, marks.used, strict)
        text = render(marks)
    return marks, marks.cut(text)


def _written(mark: str) -> str:
    """A pattern of the ways in which a template may write a mark: as it is, in JSON, in a list of Python, in a URL."""
    forms = (mark, json.dumps(mark)[1:-1], repr(mark)[1:-1], quote(mark))
    return f"(?:{'|'.join(map(re.escape, forms))})"
