"""A tool call whose text is complete: its name and its arguments, and where it ends."""

import json
import re
from collections.abc import Mapping
from typing import Any

from .tool_types import refuse_constant, typed, types_of

FUNCTION = re.compile(r"<function=([^>\n]+)>")
END_FUNCTION = "</function>"
BEGIN_PARAMETER, END_PARAMETER = "<parameter=", "</parameter>"
PARAMETER = re.compile(r"<parameter=([^>\n]+)>\n?")
# The end of a value stands at the end or before the next parameter: on a line before it, as the template writes them,
# or on the same line if the value began on the line of its name too.
END_OF_LINES = re.compile(r"\n?</parameter>(?:\s*\n\s*(?=<parameter=)|\s*\Z)")
END_OF_INLINE = re.compile(r"\n?</parameter>\s*(?=<parameter=|\Z)")
SPACE = re.compile(r"[ \t\n\r]*")
OPEN, CLOSE = "<tool_call>", "</tool_call>"


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


def ends(before: str, after: str, over: bool) -> bool | None:
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


def inside_text(text: str) -> bool:
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
