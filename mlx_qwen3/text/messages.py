"""The messages of a conversation, checked and converted to plain values, which a chat template may see."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from ..errors import PromptError
from ..files.reading import short

Message = dict[str, Any]
TEXT_PARTS = ("text", "input_text", "output_text")  # the types of a text part in OpenAI's chat and responses APIs
REASONING_FIELDS = ("reasoning_content", "thinking", "reasoning")  # the first is the one that templates read


def read_messages(messages: Iterable[Any]) -> list[Message]:
    """A copy of a conversation in plain values, without fields that are null, with the thinking under every name.

    A message is a mapping with a `role`, a dataclass or a Pydantic model. Raises PromptError that names the message.
    """
    found = []
    for index, message in enumerate(messages):
        role = message.get("role") if isinstance(message, Mapping) else getattr(message, "role", None)
        where = describe(index, role)
        value = plain(message, where)
        if not isinstance(value, dict) or not isinstance(value.get("role"), str):
            fault = "has no role" if isinstance(value, dict) else f"is {shown(value)}"
            raise PromptError(f"{where} {fault}; expected an object with a role and a content")
        value = {key: item for key, item in value.items() if item is not None}
        if has_parts(value):
            for part in value["content"]:
                part_text(part, where)
        found.append(_with_reasoning(value))
    if not found:
        raise PromptError("the conversation is empty; give at least one message")
    return found


def plain(value: Any, where: str) -> Any:
    """A value made only of text, numbers, lists, tuples and dicts: a template could call the methods of other objects.

    NumPy and MLX scalars become numbers, their arrays lists. Raises PromptError that says `where` the value is.
    """
    try:
        return _plain(value, where)
    except RecursionError:
        raise PromptError(f"{where} is nested too deeply for a prompt") from None


def describe(index: int, role: Any) -> str:
    """How an error calls a message: its place and its role."""
    return f"messages[{index}] ({shown(role)})" if isinstance(role, str) else f"messages[{index}]"


def part_text(part: Any, where: str) -> str:
    """The text of a part of a message's content. Raises PromptError if it is an image or anything but text."""
    if isinstance(part, str):
        return part
    kind = part.get("type", "text" if "text" in part else None) if isinstance(part, dict) else None
    if kind not in TEXT_PARTS:
        what = f"a part of type {shown(kind)}" if kind is not None else f"the part {shown(part)}"
        raise PromptError(f"{where} holds {what}; this model reads text only")
    if not isinstance(part.get("text"), str):
        raise PromptError(f"{where} holds a part of text whose text is {shown(part.get('text'))}")
    return str(part["text"])


def has_parts(message: Message) -> bool:
    return isinstance(message.get("content"), list | tuple)


def join_parts(message: Message) -> Message:
    """The message with its parts of text joined to one text, without a separator, as templates that know parts do."""
    if not has_parts(message):
        return message
    return {**message, "content": "".join(part_text(part, "a message") for part in message["content"])}


def completed(message: Message) -> Message:
    """The message with what many templates rely on: a content, and tool calls whose arguments are objects."""
    message = {"role": message["role"], "content": "", **message}
    if isinstance(calls := message.get("tool_calls"), list | tuple):
        message["tool_calls"] = [_with_object(call) for call in calls]
    return message


def _plain(value: Any, where: str) -> Any:
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise PromptError(f"{where} holds a lone surrogate, which is not a character; remove it") from None
    if value is None or type(value) in (str, int, float, bool):
        return value
    for kind in (str, int, float):  # a subclass: an enumeration, a NumPy number
        if isinstance(value, kind):
            return getattr(kind, f"__{kind.__name__}__")(value)
    if isinstance(value, Mapping):
        return {_plain(key, where): _plain(item, where) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item, where) for item in value]
    if isinstance(value, tuple):
        return tuple(_plain(item, where) for item in value)
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name), where) for field in fields(value)}
    for method in ("tolist", "model_dump"):  # arrays and scalars of NumPy, MLX and torch; Pydantic models
        convert: Callable[[], Any] | None = getattr(value, method, None)
        if callable(convert) and not isinstance(value, type):
            return _plain(convert(), where)
    raise PromptError(f"{where} holds a value of type {type(value).__name__}; expected text, numbers, lists or objects")


def _with_reasoning(message: Message) -> Message:
    reasoning = next((message[name] for name in REASONING_FIELDS if message.get(name) is not None), None)
    return message if reasoning is None else {"thinking": reasoning, **message, "reasoning_content": reasoning}


def _with_object(call: Any) -> Any:
    """A tool call with its arguments as an object, if they were a JSON object written as text."""
    if not isinstance(call, dict):
        return call
    if isinstance(call.get("function"), dict):
        return {**call, "function": _with_object(call["function"])}
    try:
        arguments = json.loads(call.get("arguments", ""))
    except (TypeError, ValueError, RecursionError):
        return call
    return {**call, "arguments": arguments} if isinstance(arguments, dict) else call


def shown(value: Any) -> str:
    """A value for a message, cut if it is long."""
    return short(value if isinstance(value, str) else repr(value))
