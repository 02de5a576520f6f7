"""Tool calls that a grammar binds, while they are being written: their arguments as JSON, piece by piece."""

import json
import re
from dataclasses import dataclass
from typing import Any, Protocol

from .streaming import overlap
from .tool_types import typed, types_of

BEFORE_ARGUMENTS = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)+")\s*,\s*"arguments"\s*:\s*(?=\{)')
FUNCTION = re.compile(r"\s*<function=(.+?)>\n", re.DOTALL)
PARAMETER = re.compile(r"<parameter=(.+?)>\n", re.DOTALL)
END_VALUE, END_FUNCTION = "\n</parameter>\n", "</function>"


class PartialCall(Protocol):
    """A call that is told while it is written. The text of its body has been read up to the place `at`."""

    at: int
    over: bool  # the arguments are complete

    def read(self, body: str) -> str:
        """The next piece of the arguments: to their end, or as far as the body is known."""


def begun_json(body: str) -> tuple[str, int] | None:
    """(the name of the tool, where its arguments begin) of a call in Qwen3's style, once both are there."""
    found = BEFORE_ARGUMENTS.match(body)
    return (json.loads(found[1]), found.end()) if found else None


def begun_xml(body: str) -> tuple[str, int] | None:
    """The same of a call in Qwen3-Coder's style."""
    found = FUNCTION.match(body)
    return (found[1], found.end()) if found else None


@dataclass
class PartialJson:
    """A call in Qwen3's style: its arguments are told as they are written."""

    at: int
    over: bool = False
    _depth: int = 0
    _text: bool = False
    _escaped: bool = False

    def read(self, body: str) -> str:
        begin = self.at
        while self.at < len(body) and not self.over:
            self._take(body[self.at])
            self.at += 1
        return body[begin : self.at]

    def _take(self, char: str) -> None:
        if self._text:
            self._text = self._escaped or char != '"'
            self._escaped = not self._escaped and char == "\\"
        elif char == '"':
            self._text = True
        elif char in "{[":
            self._depth += 1
        elif char in "}]":
            self._depth -= 1
            self.over = self._depth == 0


class PartialXml:
    """A call in Qwen3-Coder's style. Its values end as in the grammar: at the first line `</parameter>`.

    Texts, and values that can only be JSON, are told as they are written. A value that may be a text or something else
    is told at its end, because only then it is known which.
    """

    def __init__(self, at: int, schema: dict[str, Any]):
        """`schema` is that of the arguments."""
        self.at, self.over = at, False
        self._schema = schema
        self._types: frozenset[str] | None = None  # of the value that is under way
        self._count = 0

    def read(self, body: str) -> str:
        pieces = []
        while (piece := self._next(body)) is not None:
            pieces.append(piece)
        return "".join(pieces)

    def _next(self, body: str) -> str | None:
        """The next piece; None if more of the body is needed."""
        if self._types is not None:
            return self._value(body, self._types)
        if begin := PARAMETER.match(body, self.at):
            self.at, self._types = begin.end(), types_of(begin[1], self._schema)
            self._count += 1
            quote = '"' if self._types == {"string"} else ""
            return f"{'{' if self._count == 1 else ', '}{_json(begin[1])}: {quote}"
        if body.startswith(END_FUNCTION, self.at) and not self.over:
            self.at, self.over = self.at + len(END_FUNCTION), True
            return "}" if self._count else "{}"
        return None

    def _value(self, body: str, types: frozenset[str]) -> str | None:
        is_text, may_be_text = types == {"string"}, not types or "string" in types
        end = body.find(END_VALUE, self.at)
        over = end >= 0
        end = end if over else len(body) - overlap(body, END_VALUE)
        if not over and (end <= self.at or (may_be_text and not is_text)):
            return None
        text = body[self.at : end]
        self.at, self._types = (end + len(END_VALUE), None) if over else (end, types)
        if is_text:
            return _json(text)[1:-1] + ('"' if over else "")
        return _json(typed(text, types)) if may_be_text else text


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
