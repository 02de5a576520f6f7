"""Keeps the text that a caller typed apart from the text of the chat template.

Both become one text, in which a typed `<|im_end|>` looks like the template's own. So each control token in a typed text
is put between two marks before the template sees it. Marks are characters that occur nowhere else. Afterwards the
rendered text is cut at the marks: text between two of them was typed. Templates can cut texts too: even a single mark
still shows where two texts meet.

A mark can keep a template from trimming a text, such as the line breaks after the `</think>` of an earlier reply. So
the prompt is the text that the template makes without marks, if it differs by nothing but white space.
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
        self.exact, self._any_case = re.compile(choice), re.compile(choice, re.IGNORECASE)
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
        return [token for text, typed in pieces if not typed for token in self.exact.findall(text)]

    @property
    def clash(self) -> bool:
        """Whether a typed text contains one of the characters that serve as marks."""
        return not self.used.isdisjoint((self._open, self._close))

    def _mark(self, text: str) -> str:
        self.used.update(_PRIVATE.findall(text))
        begins, ends = text.startswith(self._tails), text.endswith(self._heads)
        marked = (self._any_case if self._strict else self.exact).sub(f"{self._open}\\g<0>{self._close}", text)
        self.near = self.near or begins or ends or len(self._any_case.findall(text)) > len(self.exact.findall(text))
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
            pieces = others
    if len(pieces) > 1:  # there are marks
        pieces = _retold(pieces, render(Marks(())), marks.exact)
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


def _retold(pieces: list[Piece], text: str, token: re.Pattern[str]) -> list[Piece]:
    """The pieces of a text that differs from theirs by nothing but white space; else the pieces themselves."""
    marked, plain = _places(pieces, token), _places([(text, False)], token)
    if [place for place, _ in marked] != [place for place, _ in plain]:
        return pieces
    found, at = list[Piece](), 0
    for match, (_, typed) in zip(token.finditer(text), marked, strict=False):  # the last place is that of the end
        if typed:
            found += [(text[at : match.start()], False), (match[0], True)]
            at = match.end()
    return [(part, typed) for part, typed in [*found, (text[at:], False)] if part]


def _places(pieces: Sequence[Piece], token: re.Pattern[str]) -> list[tuple[tuple[str, str], bool]]:
    """Each control token with the text before it, without white space, and whether it was typed; then the end."""
    places, before = list[tuple[tuple[str, str], bool]](), ""
    for text, typed in pieces:
        at = 0
        for match in token.finditer(text):
            places.append(((_packed(before + text[at : match.start()]), match[0]), typed))
            before, at = "", match.end()
        before += text[at:]
    return [*places, ((_packed(before), ""), False)]


def _packed(text: str) -> str:
    return "".join(text.split())


def _written(mark: str) -> str:
    """A pattern of the ways in which a template may write a mark: as it is, in JSON, in a list of Python, in a URL."""
    forms = (mark, json.dumps(mark)[1:-1], repr(mark)[1:-1], quote(mark))
    return f"(?:{'|'.join(map(re.escape, forms))})"
