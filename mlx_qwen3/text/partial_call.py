"""A tool call in Qwen3's style that is still being written."""

import re
from dataclasses import dataclass

BEFORE_ARGUMENTS = re.compile(r'\s*\{\s*"name"\s*:\s*"([^"\\]+)"\s*,\s*"arguments"\s*:\s*(?=\{)')


def beginning(body: str) -> tuple[str | None, int]:
    """(the name of the tool, where its arguments begin), once both are there; the name is None before."""
    found = BEFORE_ARGUMENTS.match(body)
    return (found[1], found.end()) if found else (None, 0)


@dataclass
class PartialCall:
    """The call `index` of a reply. Its arguments, a JSON object, have been read up to the place `at` of the body."""

    index: int
    at: int
    over: bool = False  # the arguments are complete
    _depth: int = 0
    _text: bool = False
    _escaped: bool = False

    def read(self, body: str) -> str:
        """The next piece of the arguments: to their end, or to that of the body."""
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
