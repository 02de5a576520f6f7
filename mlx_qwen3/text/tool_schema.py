"""Python functions as tools: the JSON schema that transformers makes from type hints and a Google-style docstring."""

import inspect
import json
import re
import types
from collections.abc import Callable
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from ..errors import PromptError

Schema = dict[str, Any]

SCALARS: dict[Any, str] = {int: "integer", float: "number", str: "string", bool: "boolean", type(None): "null"}
TYPES: dict[Any, Schema] = {
    **{kind: {"type": name} for kind, name in SCALARS.items()},
    list: {"type": "array"},
    tuple: {"type": "array"},
    dict: {"type": "object"},
    Any: {},
}
# The sections of a docstring, and within Args a name, its colon and all lines that are indented deeper.
DESCRIPTION = re.compile(r"^(.*?)[\n\s]*(Args:|Returns:|Raises:|\Z)", re.DOTALL)
ARGS = re.compile(r"\n\s*Args:\n(.*?)[\n\s]*(Returns:|Raises:|\Z)", re.DOTALL)
RETURNS = re.compile(r"\n\s*Returns:\n\s*(.*?)[\n\s]*(Raises:|\Z)", re.DOTALL)
ARGUMENT = re.compile(r"(?:^|\n)([ \t]*)(\w+):\s*(.*?)\s*(?=\n(?!\1[ \t])[ \t]*\w+:|\Z)", re.DOTALL)
CHOICES = re.compile(r"\(choices:\s*(.*?)\)\s*$", re.IGNORECASE)


class _HintError(Exception):
    """A type hint that has no JSON schema."""


def tool_schema(function: Any, where: str = "the tool") -> Schema:
    """`{"type": "function", "function": {name, description, parameters, return}}` of a function or a method.

    Every parameter needs a type hint and a description in the docstring, which may end in `(choices: ["a", "b"])`.
    Raises PromptError that names the tool and what is missing.
    """
    if not inspect.isfunction(function) and not inspect.ismethod(function):
        raise PromptError(f"{where} is of type {type(function).__name__}; expected a JSON schema or a Python function")
    where = f"{where} ({function.__name__})"
    docstring = (inspect.getdoc(function) or "").strip()
    if not docstring:
        raise PromptError(f"{where} has no docstring; it tells the model what the tool is for")
    description, described, returned = _sections(docstring)
    parameters, result = _parameters(function, where)
    for name, schema in parameters["properties"].items():
        if name not in described:
            raise PromptError(f"{where} does not describe {name!r} in the Args section of its docstring")
        _describe(schema, described[name], f"{where}, argument {name!r}")
    made: Schema = {"name": function.__name__, "description": description, "parameters": parameters}
    if result is not None:
        made["return"] = result if returned is None else {**result, "description": returned}
    return {"type": "function", "function": made}


def _sections(docstring: str) -> tuple[str, dict[str, str], str | None]:
    """(what stands before the sections, the arguments' descriptions, what is returned)"""
    description = DESCRIPTION.search(docstring)
    arguments, returned = ARGS.search(docstring), RETURNS.search(docstring)
    described = {}
    if arguments:
        text = "\n".join(line for line in arguments[1].split("\n") if line.strip())
        described = {name: re.sub(r"\s*\n+\s*", " ", body.strip()) for _, name, body in ARGUMENT.findall(text)}
    return description[1].strip() if description else "", described, returned[1].strip() if returned else None


def _describe(schema: Schema, text: str, where: str) -> None:
    """Add the description of an argument, and the choices that it ends in."""
    if choices := CHOICES.search(text):
        try:
            values = json.loads(choices[1])
            schema["enum"] = [value.strip() if isinstance(value, str) else value for value in values]
        except (ValueError, TypeError):
            raise PromptError(f"{where}: its choices are {choices[1]!r}; expected a JSON list") from None
        text = text[: choices.start()].strip()
    schema["description"] = text


def _parameters(function: Callable[..., Any], where: str) -> tuple[Schema, Schema | None]:
    """(the schema of the parameters as one object, that of the result if its hint has one)"""
    try:
        hints = get_type_hints(function)
    except Exception as error:  # a hint that is text can raise anything
        raise PromptError(f"{where} has a type hint that cannot be read ({error})") from None
    properties: Schema = {}
    required = []
    for index, (name, parameter) in enumerate(inspect.signature(function).parameters.items()):
        if parameter.annotation is parameter.empty:
            if index == 0 and name in ("self", "cls"):
                continue
            raise PromptError(f"{where} has no type hint for {name!r}")
        try:
            properties[name] = _schema(hints[name])
        except _HintError as error:
            raise PromptError(f"{where}, argument {name!r}: {error}") from None
        if parameter.default is parameter.empty:
            required.append(name)
    made: Schema = {"type": "object", "properties": properties}
    if required:
        made["required"] = required
    return made, _result(hints)


def _result(hints: dict[str, Any]) -> Schema | None:
    """The model never writes a result, so a hint without a schema is left out."""
    try:
        return _schema(hints["return"]) if "return" in hints else None
    except _HintError:
        return None


def _schema(hint: Any) -> Schema:
    """The JSON schema of a type hint."""
    kind, parts = get_origin(hint), get_args(hint)
    if kind is None:
        return _bare(hint)
    if kind in (Union, types.UnionType):
        return _union(parts)
    if kind is Literal:
        return _enumeration(list(parts), hint)
    if kind is list:
        return {"type": "array", "items": _schema(parts[0])} if parts else {"type": "array"}
    if kind is tuple:
        if len(parts) == 1 or ... in parts:
            raise _HintError(f"{_name(hint)} has no JSON schema; use list[...]")
        return {"type": "array", "prefixItems": [_schema(part) for part in parts]} if parts else {"type": "array"}
    if kind is dict:
        return {"type": "object", **({"additionalProperties": _schema(parts[1])} if len(parts) == 2 else {})}
    raise _HintError(_unknown(hint))


def _bare(hint: Any) -> Schema:
    if isinstance(hint, type) and issubclass(hint, Enum):
        return _enumeration([member.value for member in hint], hint)
    try:
        return dict(TYPES[hint])
    except (KeyError, TypeError):
        raise _HintError(_unknown(hint)) from None


def _union(parts: tuple[Any, ...]) -> Schema:
    schemas = [_schema(part) for part in parts if part is not type(None)]
    if len(schemas) == 1:
        made = schemas[0]
    elif all(schema.keys() == {"type"} and isinstance(schema["type"], str) for schema in schemas):
        found = sorted({schema["type"] for schema in schemas})
        made = {"type": found[0] if len(found) == 1 else found}
    else:
        made = {"anyOf": schemas}
    return {**made, "nullable": True} if type(None) in parts else made


def _enumeration(values: list[Any], hint: Any) -> Schema:
    if not values or any(type(value) not in SCALARS for value in values):
        raise _HintError(f"{_name(hint)} has values that are not text, numbers, booleans or None, or no values at all")
    found = list(dict.fromkeys(SCALARS[type(value)] for value in values))
    return {"type": found[0] if len(found) == 1 else found, "enum": values}


def _unknown(hint: Any) -> str:
    return f"{_name(hint)} has no JSON schema; use text, numbers, lists, dicts, Literal, or give the schema by hand"


def _name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and get_origin(hint) is None else str(hint)
