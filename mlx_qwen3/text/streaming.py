"""A reply's text as it arrives: stop strings found, thinking and answer told apart, special tokens dropped."""

from collections import deque
from collections.abc import Sequence

from .tokenizer import END_THINK, THINK, StreamDecoder, Tokenizer

Piece = tuple[str, bool]  # text, and whether it is a special token


class MarkerScanner:
    """Finds the first of some markers; holds back what may be the beginning of one."""

    def __init__(self, markers: Sequence[str]):
        self._markers = tuple(markers)
        self._first = {marker[0] for marker in markers}
        self.held = ""
        self.found = ""  # the marker that was found last

    def feed(self, text: str) -> tuple[str, bool]:
        """(text before the first marker, whether a marker follows). The text after the marker stays in `held`."""
        text = self.held + text
        if self._first.isdisjoint(text):  # as in most tokens: nothing can begin in them
            self.held = ""
            return text, False
        places = [(at + len(marker), at, marker) for marker in self._markers if (at := text.find(marker)) >= 0]
        if places:
            end, at, self.found = min(places)  # the one that ends first, so that the pieces' sizes do not matter
            self.held = text[end:]
            return text[:at], True
        keep = max((overlap(text, marker) for marker in self._markers), default=0)
        self.held = text[len(text) - keep :]
        return text[: len(text) - keep], False


class StopScanner:
    """Finds the first stop string in pieces of a reply, special tokens among them.

    A piece is (text, whether it is a special token, which the reader never sees). A special token comes out whole.
    """

    def __init__(self, stops: Sequence[str]):
        self._scanner = MarkerScanner(stops)
        self._special: deque[tuple[int, int, str]] = deque()  # (start, end, text), counted from the first character
        self._fed = self._given = 0

    def feed(self, piece: Piece) -> tuple[list[Piece], bool]:
        """(pieces before any stop string, whether a stop string follows them)"""
        text, special = piece
        if special:
            self._special.append((self._fed, self._fed + len(text), text))
        self._fed += len(text)
        before, found = self._scanner.feed(text)
        return self._pieces(before), found

    def flush(self) -> list[Piece]:
        """What was held back at the end of a reply without a stop string."""
        return self._pieces(self._scanner.held)

    def _pieces(self, text: str) -> list[Piece]:
        """Cut the next characters of the reply into pieces."""
        at, self._given = self._given, self._given + len(text)
        first, result = at, list[Piece]()
        while self._special and self._special[0][0] < self._given:
            start, end, token = self._special[0]
            result += [(text[at - first : start - first], False)] if start > at else []
            at = min(end, self._given)
            if end > self._given:  # the rest is held back
                break
            result.append((token, True))
            self._special.popleft()
        return result + ([(text[at - first :], False)] if at < self._given else [])


class ThinkingSplitter:
    """Splits a reply into (thinking, answer), without the tags and the line breaks after them.

    A reply thinks if it begins with `<think>`, or if the prompt ended inside a think block (`opened`). Only the first
    block counts, because an answer may write about tags. A second `<think>` inside the block is dropped. A tag may be a
    special token or text; other special tokens are dropped. If the reply continues a text (`begun`), leading line
    breaks stay.
    """

    def __init__(self, opened: bool = False, begun: bool = False):
        self._part = "thinking" if opened else "answer" if begun else "beginning"
        self._at_start = opened and not begun  # of a part, where line breaks belong to the tag
        self._held = ""
        self._tags = MarkerScanner([END_THINK, THINK])

    def feed(self, text: str, special: bool = False) -> tuple[str, str]:
        if special:
            return self._feed_special(text)
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
        return ("", self._trim(text)) if self._part == "answer" else self._think(text)

    @property
    def thinks(self) -> bool | None:
        """Whether the next text is thinking; None while nothing but line breaks has come."""
        return None if self._part == "beginning" else self._part == "thinking"

    @property
    def trims(self) -> bool:
        """Whether only line breaks have come since the last tag."""
        return self._at_start

    def flush(self) -> tuple[str, str]:
        """What was held back at the end."""
        return (self._tags.held, "") if self._part == "thinking" else ("", self._held)

    def _think(self, text: str) -> tuple[str, str]:
        thinking = ""
        while True:
            before, found = self._tags.feed(text)
            thinking, text = thinking + self._trim(before), ""
            if not found:
                return thinking, ""
            self._at_start = True
            if self._tags.found == END_THINK:
                self._part = "answer"
                return thinking, self._trim(self._tags.held)

    def _feed_special(self, token: str) -> tuple[str, str]:
        """A tag takes effect, other tokens are dropped. Text that was held back cannot become a tag any more."""
        if self._part == "beginning":
            if self._held.strip():
                self._part, held, self._held = "answer", self._held, ""
                return "", held
            if token == THINK:
                self._part, self._at_start, self._held = "thinking", True, ""
        elif self._part == "thinking":
            thinking, self._tags.held = self._trim(self._tags.held), ""
            self._at_start = self._at_start or token in (THINK, END_THINK)
            self._part = "answer" if token == END_THINK else self._part
            return thinking, ""
        return "", ""

    def _trim(self, text: str) -> str:
        if self._at_start:
            text = text.lstrip("\n")
            self._at_start = not text
        return text


class ReplyText:
    """The text of one reply, token by token: ended by a stop string, thinking and answer apart.

    Stop strings and tags are found in the text with special tokens. The results have no special tokens, like
    transformers' decoding with `skip_special_tokens`. Each row of a batch has its own ReplyText.
    """

    def __init__(
        self, tokenizer: Tokenizer, stop: Sequence[str] = (), opens_thinking: bool = False, begun: bool = False
    ):
        self._tokenizer = tokenizer
        self._decoder = StreamDecoder(tokenizer)
        self._stops = StopScanner(stop) if stop else None
        self._splitter = ThinkingSplitter(opens_thinking, begun)
        self._answers = False  # whether a token of the answer has come, apart from line breaks after a tag
        self.stopped = False  # whether a stop string ended the reply
        self.part = ""  # what the last token belongs to: "thinking", "answer", "tag", or "" while that is not known

    @property
    def thinks(self) -> bool | None:
        """Whether the next token is in the think block; None while the reply may still begin with one."""
        return self._splitter.thinks

    def add(self, token: int, last: bool = False) -> tuple[str, str]:
        """(thinking, answer) that a token completes. An end token is never shown, but a stop string may contain it.

        `last`: the reply ends with this token, so nothing is held back. After a stop string nothing may be added.
        """
        before = self.thinks
        thinking = answer = ""
        for text, special in self._before_stop(token, last):
            more = self._splitter.feed(text, special)
            thinking, answer = thinking + more[0], answer + more[1]
        self.part = self._part(token, before)
        if last or self.stopped:
            more = self._splitter.flush()
            thinking, answer = thinking + more[0], answer + more[1]
        return thinking, answer

    def _part(self, token: int, before: bool | None) -> str:
        after = self.thinks
        if token in self._tokenizer.special or token in self._tokenizer.stop_ids:
            return "tag"
        if before != after and (before or after):  # it completes a tag
            return "tag"
        if after is None:
            return ""
        if after:
            return "thinking"
        # A part of a character, or of what may be a stop string, belongs to the answer before its text is known.
        if not self._answers:
            self._answers = not self._splitter.trims or self._tokenizer.token_bytes(token).strip(b"\n") != b""
        return "answer" if self._answers else "tag"

    def _before_stop(self, token: int, last: bool) -> list[Piece]:
        pieces = self._pieces(token, last)
        if self._stops is None:
            return pieces
        result: list[Piece] = []
        for piece in pieces:
            before, self.stopped = self._stops.feed(piece)
            result += before
            if self.stopped:
                return result
        return result + (self._stops.flush() if last else [])

    def _pieces(self, token: int, last: bool) -> list[Piece]:
        special = self._tokenizer.special.get(token)
        if special is None and token in self._tokenizer.stop_ids:
            special = self._tokenizer.decode([token])
        text = self._decoder.add(token) if special is None else ""
        text += self._decoder.flush() if last else ""
        pieces = [(text, False)] if text else []
        return pieces if special is None else [*pieces, (special, True)]


def overlap(text: str, marker: str) -> int:
    """Length of the longest end of `text` that is a beginning of `marker`."""
    return next((n for n in range(min(len(text), len(marker) - 1), 0, -1) if marker.startswith(text[-n:])), 0)
