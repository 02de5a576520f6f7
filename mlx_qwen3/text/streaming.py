"""Text that arrives in pieces: stop strings, and thinking told apart from the answer."""

from collections.abc import Sequence

from .tokenizer import END_THINK, THINK


class MarkerScanner:
    """Finds the first of some markers; holds back what may be the beginning of one."""

    def __init__(self, markers: Sequence[str]):
        self._markers = tuple(markers)
        self.held = ""

    def feed(self, text: str) -> tuple[str, bool]:
        """(text that is before any marker, whether a marker follows it); what comes after that stays in `held`."""
        text = self.held + text
        found = [(at + len(marker), at) for marker in self._markers if (at := text.find(marker)) >= 0]
        if found:
            end, at = min(found)  # the first to be complete, however the text was cut
            self.held = text[end:]
            return text[:at], True
        keep = max((_overlap(text, marker) for marker in self._markers), default=0)
        self.held = text[len(text) - keep :]
        return text[: len(text) - keep], False


class ThinkingSplitter:
    """Splits a reply into (thinking, answer), without the tags and the line breaks after them.

    A reply thinks where it begins with `<think>`, or where the prompt ended inside a think block (`opened`). Only
    the first block counts: an answer may write about tags.
    """

    def __init__(self, opened: bool = False):
        self._part = "thinking" if opened else "beginning"
        self._at_start = opened  # of a part, where line breaks belong to the tag
        self._held = ""
        self._closing = MarkerScanner([END_THINK])

    def feed(self, text: str) -> tuple[str, str]:
        if self._part == "beginning":
            text, self._held = self._held + text, ""
            start = text.lstrip()
            if start.startswith(THINK):
                self._part, self._at_start, text = "thinking", True, start.removeprefix(THINK)
            elif THINK.startswith(start):
                self._held = text
                return "", ""
            else:
                self._part = "answer"
        if self._part == "answer":
            return "", self._trim(text)
        thinking, closed = self._closing.feed(text)
        thinking = self._trim(thinking)
        if not closed:
            return thinking, ""
        self._part, self._at_start = "answer", True
        return thinking, self._trim(self._closing.held)

    def flush(self) -> tuple[str, str]:
        """What was held back at the end."""
        return (self._closing.held, "") if self._part == "thinking" else ("", self._held)

    def _trim(self, text: str) -> str:
        if self._at_start:
            text = text.lstrip("\n")
            self._at_start = not text
        return text


def _overlap(text: str, marker: str) -> int:
    """Length of the longest end of `text` that begins `marker`."""
    return next((n for n in range(min(len(text), len(marker) - 1), 0, -1) if marker.startswith(text[-n:])), 0)
