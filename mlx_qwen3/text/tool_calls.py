"""Tool calls in the text of a reply, told apart from the text around them as it arrives.

Two styles: Qwen3's `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, and the XML of Qwen3-Coder,
`<tool_call><function=NAME><parameter=KEY>VALUE</parameter></function></tool_call>`.
"""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from .partial_call import PartialCall, PartialJson, PartialXml, begun_json, begun_xml
from .streaming import MarkerScanner
from .whole_call import CLOSE, OPEN, ends, inside_text, read_json, read_xml

Style = Literal["json", "xml"]
BEGIN_FUNCTION = "<function="
BREAKS = {"json": "\n", "xml": "\n\n"}  # what the templates write between a text and a call


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

    A free call is told when it is complete and its arguments are known to be valid JSON: what has been told cannot be
    taken back. What does not parse, or names a tool that is not among `tools`, is text. If a grammar binds the calls
    (`bound`), their arguments always parse, and they are told as they are written; nothing else is a call then. The
    line breaks that a template writes before a call belong to the call, and white space between calls to nobody.
    Qwen3-Coder sometimes leaves `<tool_call>` out: `<function=` will do in a free reply.
    """

    def __init__(self, tools: Sequence[Mapping[str, Any]] | None, style: Style, bound: bool = False):
        self._tools = None if tools is None else {tool_name(tool): parameters_of(tool) for tool in tools}
        self._style = style
        self._marker = MarkerScanner([OPEN] if bound or style == "json" else [OPEN, BEGIN_FUNCTION])
        self._space = ""  # white space at the end of the text so far
        self._body: str | None = None  # of the call that is under way
        self._opening = ""  # the tag before the body
        self._bound = bound
        self._told: PartialCall | None = None  # of the call that is under way, if it is told as it is written
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
            events += self._begun(self._body) if self._bound else []
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
        if self._told:
            return at if self._told.over and (at := body.find(CLOSE, self._told.at)) >= 0 else None
        while (at := body.find(CLOSE, max(0, self._searched))) >= 0:
            before, after = body[:at], body[at + len(CLOSE) :].lstrip()
            over = not inside_text(before) if self._style == "json" else ends(before, after, self._over)
            if over is None:
                self._searched = at
                return None
            if over:
                return at
            self._searched = at + 1
        self._searched = max(self._searched, len(body) - len(CLOSE) + 1)
        return None

    def _close(self, body: str, closing: str) -> tuple[list[Event], str]:
        """(the events of a call that has ended, the text that is to be read again)"""
        self._body = None
        if told := self._told:
            self._told = None
            index = self._calls - 1
            return [CallEnd(index) if told.over else CallCut(index, self._opening + body + closing)], ""
        call = None if self._bound else read_json(body) if self._style == "json" else read_xml(body, self._tools)
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
            begun = begun_json(body) if self._style == "json" else begun_xml(body)
            if begun is None or (self._tools is not None and begun[0] not in self._tools):
                return []
            name, at = begun
            events = self._begin(name)
            self._told = PartialJson(at) if self._style == "json" else PartialXml(at, (self._tools or {}).get(name, {}))
        new = self._told.read(body)
        return [*events, CallArguments(self._calls - 1, new)] if new else events


def style_of(template_source: str) -> Style:
    """The style in which a chat template writes the calls of earlier replies, and so the model its own."""
    return "xml" if BEGIN_FUNCTION in template_source else "json"


def tool_name(tool: Mapping[str, Any]) -> str:
    name: str = tool.get("function", tool).get("name", "")
    return name


def parameters_of(tool: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON schema of a tool's arguments; empty if it has none."""
    found = tool.get("function", tool).get("parameters")
    return found if isinstance(found, dict) else {}
