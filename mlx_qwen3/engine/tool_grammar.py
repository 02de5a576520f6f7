"""The grammar of tool calls, in llguidance's dialect of Lark, as Qwen3's and Qwen3-Coder's templates write them."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..errors import UsageError
from ..files.reading import short
from ..text.tool_calls import parameters_of, tool_name
from ..text.tool_types import types_in
from ..text.whole_call import CLOSE, OPEN
from .json_schema import rewritten
from .specs import JSON_OPTIONS, JsonObject, JsonSchema, ToolChoice

ANY_OBJECT: dict[str, Any] = {"type": "object"}
NOTES = frozenset("type title description default examples nullable deprecated $comment".split())
# What the XML style can enforce of an object and of a text, which it writes without quotes.
OBJECT_KEYS = NOTES | {"properties", "required", "additionalProperties", "$defs", "definitions", "$schema", "$id"}
TEXT_KEYS = NOTES | {"enum", "const", "minLength", "maxLength"}
TEXT_END = r"\n<\/parameter>\n"
CLOSING = "\n</parameter>\n"
PLACE = "https://tools.invalid/arguments"  # names the schema of the arguments inside of another, for its references
Check = Callable[[Any, bool], object]  # of a schema, which may be strict; raises UsageError


def lark(spec: ToolChoice, marker: Callable[[str], str], check: Check) -> str:
    """The grammar of a choice; `marker` gives the Lark of a tag.

    The arguments of a tool follow its schema. If the tool is not `strict` and `check` refuses the schema, they may be
    any object; in the XML style, parameters still have their types.
    Raises UsageError that names the tool.
    """
    tools = _chosen(spec)
    build = {"json": _json_call, "xml": _xml_call}.get(spec.style)
    if build is None:
        raise UsageError(f"the style of tool calls is {short(repr(spec.style))}; expected json or xml")
    rules = []
    for index, tool in enumerate(tools):
        try:
            rules.append(build(f"call{index}", tool, check))
        except UsageError as error:
            raise UsageError(f"tool {short(tool_name(tool))}: {error}") from None
    names = " | ".join(f"call{index}" for index in range(len(tools)))
    calls = 'call ("\\n" call)*' if spec.parallel else "call"
    lines = [f'call: {marker(OPEN)} "\\n" ({names}) "\\n" {marker(CLOSE)}']
    if spec.choice != "auto":
        start = calls
    elif spec.answer is not None:
        start = f"answer | {calls}"
        lines.append(_answer(spec.answer, check))
    else:  # the tag spelled in letters would begin a call that is not bound
        start = f"text ({calls})?"
        lines += ["text: TEXT?", f"TEXT: /(?s:.+)/ & ~/(?s:.*){OPEN}(?s:.*)/"]
    return "\n".join([f"start: {start}", *lines, *rules])


def _answer(spec: JsonObject | JsonSchema, check: Check) -> str:
    if isinstance(spec, JsonObject):
        return f"answer: {_json(ANY_OBJECT)}"
    check(spec.schema, spec.strict)
    return f"answer: {_json(_placed(spec.schema))}"


def _chosen(spec: ToolChoice) -> Sequence[Mapping[str, Any]]:
    """The tools that may be called."""
    names = [tool_name(tool) for tool in spec.tools]
    if not names:
        raise UsageError("tools is empty; give at least one tool to call")
    if spec.choice in ("auto", "required"):
        return spec.tools
    if spec.choice not in names:
        raise UsageError(f"tool_choice names {short(repr(spec.choice))}; the tools are {short(', '.join(names))}")
    return [spec.tools[names.index(spec.choice)]]


def _is_strict(tool: Mapping[str, Any]) -> bool:
    return tool.get("function", tool).get("strict") is True


def _json_call(rule: str, tool: Mapping[str, Any], check: Check) -> str:
    schema = _possible({**parameters_of(tool), **ANY_OBJECT}, _is_strict(tool), check) or ANY_OBJECT
    call = {
        "type": "object",
        "properties": {"name": {"const": tool_name(tool)}, "arguments": _placed(schema)},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }
    return f"{rule}: {_json(call)}"


def _possible(schema: dict[str, Any], strict: bool, check: Check) -> dict[str, Any] | None:
    """The schema, or None if a grammar cannot enforce it. In that case raises UsageError if the tool is strict."""
    try:
        check(schema, strict)
    except UsageError:
        if strict:
            raise
        return None
    return schema


def _placed(schema: Any) -> dict[str, Any]:
    """A schema inside of another one."""
    made = rewritten(schema, strict=False)
    return {"$id": PLACE, **{key: value for key, value in made.items() if key != "$schema"}}


def _json(schema: dict[str, Any]) -> str:
    """A JSON value in Lark."""
    return f"%json {json.dumps({**schema, 'x-guidance': JSON_OPTIONS})}"


def _xml_call(rule: str, tool: Mapping[str, Any], check: Check) -> str:
    """Parameters in the order of the schema; those that it does not list are never written."""
    schema, strict = parameters_of(tool), _is_strict(tool)
    properties, required = schema.get("properties", {}), schema.get("required", [])
    if strict and (
        odd := [*(set(schema) - OBJECT_KEYS), *(f"required {n!r}" for n in required if n not in properties)]
    ):
        raise UsageError(
            f"its parameters have {sorted(odd)[0]}, which cannot be enforced in the XML style of this model"
        )
    lines, parts = [], []
    for index, (name, value) in enumerate(properties.items()):
        part = f"{rule}_{index}"
        kinds = types_in(value, schema) if isinstance(value, dict) else frozenset()
        if kinds and "string" not in kinds:
            lines.append(f"{part}_value: {_json_value(name, schema, kinds, strict, check)} {_literal(CLOSING)}")
        else:  # a text is a terminal of its own, because only terminals can exclude a text
            terminal = f"{part}_value".upper()
            body = _text_value(name, value if isinstance(value, dict) else {}, strict)
            lines += [f"{part}_value: {terminal}", f"{terminal}: {body}"]
        lines.append(f"{part}: {_literal(f'<parameter={name}>' + chr(10))} {part}_value")
        parts.append(part if name in required else f"{part}?")
    begin = _literal(f"<function={tool_name(tool)}>\n")
    return "\n".join([f"{rule}: {' '.join([begin, *parts, _literal('</function>')])}", *lines])


def _json_value(name: str, schema: dict[str, Any], kinds: frozenset[str], strict: bool, check: Check) -> str:
    value = {**{key: schema[key] for key in ("$defs", "definitions") if key in schema}, **schema["properties"][name]}
    whole = '"$ref": "#"' in json.dumps(value)  # would mean the value, and not the object of all parameters
    if strict and whole:
        raise UsageError(f"parameter {name!r} refers to the whole schema; put what it stands for under $defs")
    return _json(_placed((None if whole else _possible(value, strict, check)) or {"type": sorted(kinds)}))


def _text_value(name: str, schema: dict[str, Any], strict: bool) -> str:
    """The terminal of a text and its closing tag. The text must not contain the tag."""
    if strict and (odd := _odd_keys(schema)):
        raise UsageError(f"parameter {name!r} has {odd[0]}, which cannot be enforced in the XML style of this model")
    values = [schema["const"]] if "const" in schema else schema.get("enum")
    if values:
        texts = [value if isinstance(value, str) else json.dumps(value) for value in values]
        return f"{' | '.join(_literal(text + CLOSING) for text in texts)}"
    most, least = schema.get("maxLength", ""), schema.get("minLength", 0)
    return rf"/(?s:.{{{least},{most}}}){TEXT_END}/ & ~/(?s:.*){TEXT_END}(?s:.+)/"


def _odd_keys(schema: dict[str, Any]) -> list[str]:
    options = schema.get("anyOf", [])
    beside = [key for option in options for key in set(option) - NOTES]
    return sorted({*beside, *(set(schema) - TEXT_KEYS - ({"anyOf"} if options else set()))})


def _literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
