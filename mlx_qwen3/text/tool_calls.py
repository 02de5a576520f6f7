"""Tool calls in the text of a reply, told apart from the text around them as it arrives.

Two styles: Qwen3's `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, and the XML of Qwen3-Coder,
`<tool_call><function=NAME><parameter=KEY>VALUE</parameter></function></tool_call>`.
"""

import json
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from .partial_call import PartialCall, beginning
from .streaming import MarkerScanner
from .tool_types import refuse_constant, typed, types_of

Style = Literal["json", "xml"]
OPEN, CLOSE = "<tool_call>", "</tool_call>"
BEGIN_FUNCTION = "<function="
BREAKS = {"json": "\n", "xml": "\n\n"}  # what the templates write between a text and a call
FUNCTION = re.compile(r"<function=([^>\n]+)>")
END_FUNCTION = "</function>"
BEGIN_PARAMETER, END_PARAMETER = "<parameter=", "</parameter>"
PARAMETER = re.compile(r"<parameter=([^>\n]+)>\n?")
# The end of a value stands at the end or before the next parameter: on a line before it, as the template writes them,
# or on the same line if the value began on the line of its name too.
END_OF_LINES = re.compile(r"\n?</parameter>(?:\s*\n\s*(?=<parameter=)|\s*\Z)")
END_OF_INLINE = re.compile(r"\n?</parameter>\s*(?=<parameter=|\Z)")
SPACE = re.compile(r"[ \t\n\r]*")


@dataclass(frozen=True)
class Text:
    text: str


@dataclass(frozen=True)
class CallBegin:
    """A call of a tool; `index` counts the calls of a reply from 0, and `id` is unique."""

    index: int
    id: str
    name: str


@dataclass(frozen=True)
class CallArguments:
    """The next piece of the arguments' JSON text."""

    index: int
    delta: str


@dataclass(frozen=True)
class CallEnd:
    index: int


@dataclass(frozen=True)
class CallCut:
    """The reply has ended within a call of which a part was told; `text` is all that was written of it."""

    index: int
    text: str


Event = Text | CallBegin | CallArguments | CallEnd | CallCut


class ToolCallParser:
    """Splits a reply into text and calls, fed piece by piece.

    A call is told when it is complete and its arguments are known to be valid JSON. What does not parse, or names a
    tool that is not among `tools`, is text. If a grammar binds the calls (`bound`), their arguments always parse, and
    those in Qwen3's style are told as they are written. The line breaks that a template writes before a call belong to
    the call, and white space between calls to nobody. Qwen3-Coder sometimes leaves `<tool_call>` out: `<function=` will
    do.
    """

    def __init__(self, tools: Sequence[Mapping[str, Any]] | None, style: Style, bound: bool = False):
        self._tools = None if tools is None else {tool_name(tool): parameters_of(tool) for tool in tools}
        self._style = style
        self._marker = MarkerScanner([OPEN] if style == "json" else [OPEN, BEGIN_FUNCTION])
        self._space = ""  # white space at the end of the text so far
        self._body: str | None = None  # of the call that is under way
        self._opening = ""  # the tag before the body
        self._streams = bound and style == "json"
        self._told: PartialCall | None = None  # of the call that is under way
        self._searched = 0  # characters of the body in which no end was found
        self._over = False  # whether the reply is over
        self._calls = 0
        self._bare = True  # whether nothing but white space stands after the beginning or the last call

    def feed(self, text: str) -> list[Event]:
        """What is known with these characters. Any division of a reply gives the same text and calls."""
        events: list[Event] = []
        while True:
            if self._body is None:
                before, found = self._marker.feed(text)
                events += self._say(before)
                if not found:
                    return events
                text, self._marker.held = self._marker.held, ""
                self._opening = OPEN if self._marker.found == OPEN else ""
                self._body, self._searched = "" if self._opening else BEGIN_FUNCTION, 0
            self._body += text
            events += self._begun(self._body) if self._streams else []
            if (end := self._end()) is None:
                return events
            body, text = self._body[:end], self._body[end + len(CLOSE) :]
            told, again = self._close(body, CLOSE)
            events, text = events + told, again + text

    def end(self) -> list[Event]:
        """What is left when the reply is over; a call without its closing tag counts if it is complete."""
        self._over, self._searched = True, 0
        events = self.feed("")
        while self._body is not None:
            told, again = self._close(self._body, "")
            events += told + self.feed(again)
        events += self._say(self._marker.held)
        self._marker.held = ""
        if self._space and not (self._bare and self._calls):
            events.append(Text(self._space))
        self._space = ""
        return events

    def _say(self, text: str) -> list[Event]:
        """Text outside of calls. White space waits: a call may follow it."""
        text = self._space + text
        said = text.rstrip(" \t\n\r")
        self._space = text[len(said) :]
        if not said:
            return []
        self._bare = False
        return [Text(said)]

    def _end(self) -> int | None:
        """Where the closing tag of the body is, if it is there. One inside of the arguments does not count."""
        body = self._body or ""
        while (at := body.find(CLOSE, max(0, self._searched))) >= 0:
            before, after = body[:at], body[at + len(CLOSE) :].lstrip()
            ends = not _inside_text(before) if self._style == "json" else _ends(before, after, self._over)
            if ends is None:
                self._searched = at
                return None
            if ends:
                return at
            self._searched = at + 1
        self._searched = max(self._searched, len(body) - len(CLOSE) + 1)
        return None

    def _close(self, body: str, closing: str) -> tuple[list[Event], str]:
        """(the events of a call that has ended, the text that is to be read again)"""
        self._body = None
        if told := self._told:
            self._told = None
            return [CallEnd(told.index) if told.over else CallCut(told.index, self._opening + body + closing)], ""
        call = read_json(body) if self._style == "json" else read_xml(body, self._tools)
        if call is None or (self._tools is not None and call[0] not in self._tools):
            before, inner, rest = body.partition(OPEN)  # another call may have begun inside of a broken one
            if not inner:
                return self._say(self._opening + body + closing), ""
            return self._say(self._opening + before), inner + rest + closing
        name, arguments = call
        begin = self._begin(name)
        index = self._calls - 1
        return [*begin, CallArguments(index, arguments), CallEnd(index)], ""

    def _begin(self, name: str) -> list[Event]:
        """The beginning of the next call, and the text before it."""
        breaks = BREAKS[self._style]
        space = self._space.removesuffix(breaks if self._space.endswith(breaks) else "\n")
        spaces: list[Event] = [] if self._bare or not space else [Text(space)]
        self._space, self._bare = "", True
        index, self._calls = self._calls, self._calls + 1
        return [*spaces, CallBegin(index, f"call_{uuid.uuid4().hex[:24]}", name)]

    def _begun(self, body: str) -> list[Event]:
        """What is new of a call that is not complete."""
        events: list[Event] = []
        if self._told is None:
            name, at = beginning(body)
            if name is None or (self._tools is not None and name not in self._tools):
                return []
            events = self._begin(name)
            self._told = PartialCall(self._calls - 1, at)
        new = self._told.read(body)
        return [*events, CallArguments(self._told.index, new)] if new else events


def style_of(template_source: str) -> Style:
    """The style in which a chat template writes the calls of earlier replies, and so the model its own."""
    return "xml" if "<function=" in template_source else "json"


def tool_name(tool: Mapping[str, Any]) -> str:
    name: str = tool.get("function", tool).get("name", "")
    return name


def parameters_of(tool: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON schema of a tool's arguments; empty if it has none."""
    found = tool.get("function", tool).get("parameters")
    return found if isinstance(found, dict) else {}


def read_json(body: str) -> tuple[str, str] | None:
    """(name, arguments as they are written) of a call in Qwen3's style; None if it is not one."""
    try:
        entries = _entries(body)
        name, arguments = json.loads(entries["name"]), entries.get("arguments", "{}")
        value = json.loads(arguments, parse_constant=refuse_constant)
        if isinstance(value, str):  # some models quote the whole object
            arguments = value
            value = json.loads(arguments, parse_constant=refuse_constant)
    except (ValueError, KeyError, RecursionError):
        return None
    return (name, arguments) if isinstance(name, str) and name and isinstance(value, dict) else None


def read_xml(body: str, tools: Mapping[str, dict[str, Any]] | None) -> tuple[str, str] | None:
    """(name, arguments as JSON) of a call in Qwen3-Coder's style, of the types that the tool's schema gives."""
    body = body.strip()
    found = FUNCTION.match(body)
    if found is None or not body.endswith(END_FUNCTION):
        return None
    name, rest = found[1], body[found.end() : -len(END_FUNCTION)].strip()
    schema = (tools or {}).get(name, {})
    arguments, at = {}, 0
    try:
        while at < len(rest):
            begin = PARAMETER.match(rest, at)
            end = begin and _end_of_value(rest, begin)
            if begin is None or end is None:
                return None
            arguments[begin[1]] = typed(rest[begin.end() : end.start()], types_of(begin[1], schema))
            at = end.end()
    except ValueError:
        return None
    return name, json.dumps(arguments, ensure_ascii=False)


def _end_of_value(text: str, begin: re.Match[str]) -> re.Match[str] | None:
    """The tag that ends a value. A value may hold such tags, and whole parameters: the end is the first tag before
    which as many parameters have ended as begun, or else the first."""
    first, at, open_inside = None, begin.end(), 0
    for end in (END_OF_LINES if begin[0].endswith("\n") else END_OF_INLINE).finditer(text, at):
        piece = text[at : end.start()]
        open_inside += piece.count(BEGIN_PARAMETER) - piece.count(END_PARAMETER)
        if open_inside <= 0:
            return end
        first, at, open_inside = first or end, end.end(), open_inside - 1
    return first


def _entries(text: str) -> dict[str, str]:
    """The members of a JSON object, each value as it is written. Raises ValueError."""
    decoder, at = json.JSONDecoder(parse_constant=refuse_constant), _skip(text, 0)
    found: dict[str, str] = {}
    if text[at : at + 1] != "{":
        raise ValueError("not an object")
    at = _skip(text, at + 1)
    while text[at : at + 1] != "}" or not found:
        key, at = decoder.raw_decode(text, at)
        at = _skip(text, at)
        if text[at : at + 1] != ":" or not isinstance(key, str):
            raise ValueError("no name")
        start = _skip(text, at + 1)
        _, at = decoder.raw_decode(text, start)
        found[key] = text[start:at]
        at = _skip(text, at)
        if text[at : at + 1] == ",":
            at = _skip(text, at + 1)
        elif text[at : at + 1] != "}":
            raise ValueError("no comma")
    if text[at + 1 :].strip():
        raise ValueError("something follows the object")
    return found


def _skip(text: str, at: int) -> int:
    found = SPACE.match(text, at)
    return found.end() if found else at


def _ends(before: str, after: str, over: bool) -> bool | None:
    """Whether an XML call ends between these texts; None if more text is needed.

    A value may hold a closing tag, and even a whole call, so as many parameters must have ended as begun. A call in
    which they have not is broken; it ends where another call follows, and wherever it can if the reply is over.
    """
    before = before.rstrip()
    if not before.endswith(END_FUNCTION):
        return False
    inner = before.removesuffix(END_FUNCTION).rstrip()
    begun = inner.count(BEGIN_PARAMETER)
    if over or begun == 0 or (inner.endswith(END_PARAMETER) and inner.count(END_PARAMETER) >= begun):
        return True
    if OPEN in before or not (after.startswith(OPEN) or OPEN.startswith(after)):
        return False
    return True if after.startswith(OPEN) else None


def _inside_text(text: str) -> bool:
    """Whether a JSON text ends inside quotes."""
    inside = escaped = False
    for letter in text:
        if escaped:
            escaped = False
        elif letter == "\\" and inside:
            escaped = True
        elif letter == '"':
            inside = not inside
    return inside
