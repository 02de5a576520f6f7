"""The types of a tool's parameters, and values of these types from text without quotes."""

import json
from typing import Any

WORDS = {"true": True, "false": False, "null": None, "none": None}
SPELLINGS = ("true", "True", "false", "False", "null", "None")  # as JSON and as Python write them


def typed(text: str, types: frozenset[str]) -> Any:
    """The value that a text stands for. Raises ValueError if it is of none of the types."""
    if types == {"string"}:
        return text
    try:
        maybe_text = not types or "string" in types  # then "TRUE" is a text
        known = text in SPELLINGS if maybe_text else text.lower() in WORDS
        value = WORDS[text.lower()] if known else json.loads(text, parse_constant=refuse_constant)
        json.dumps(value, allow_nan=False)
        value = text if isinstance(value, str) else value
    except (ValueError, RecursionError):
        value = text
    kind = _kind(value)
    if not types or kind in types or (kind == "integer" and "number" in types) or _whole(value, types):
        return value
    if "string" in types:
        return text
    raise ValueError(f"{text!r} is not of type {', '.join(sorted(types))}")


def _whole(value: Any, types: frozenset[str]) -> bool:
    return "integer" in types and isinstance(value, float) and value.is_integer()


def _kind(value: Any) -> str:
    names = {bool: "boolean", int: "integer", float: "number", str: "string", dict: "object", list: "array"}
    return names.get(type(value), "null")


def types_of(key: str, schema: dict[str, Any]) -> frozenset[str]:
    """The types that a schema gives a parameter; empty if any or unknown."""
    properties = schema.get("properties")
    found = properties.get(key) if isinstance(properties, dict) else None
    return types_in(found, schema) if isinstance(found, dict) else frozenset()


def types_in(schema: dict[str, Any], root: dict[str, Any], depth: int = 0) -> frozenset[str]:
    """The types that a schema allows, by its references and alternatives too; empty if any or unknown."""
    if isinstance(reference := schema.get("$ref"), str) and depth < 8:
        found: Any = root
        for part in reference.removeprefix("#/").split("/"):
            found = found.get(part) if isinstance(found, dict) else None
        return types_in(found, root, depth + 1) if isinstance(found, dict) else frozenset()
    if isinstance(kind := schema.get("type"), str):
        kinds = {kind}
    elif isinstance(kind, list):
        kinds = set(kind)
    elif options := schema.get("anyOf") or schema.get("oneOf"):
        parts = [types_in(option, root, depth + 1) for option in options if isinstance(option, dict)]
        kinds = set().union(*parts) if all(parts) else set()
    else:
        values = [schema["const"]] if "const" in schema else schema.get("enum") or []
        kinds = {_kind(value) for value in values}
    return frozenset(kinds | {"null"} if schema.get("nullable") and kinds else kinds)


def refuse_constant(constant: str) -> Any:
    """For json.loads, which would read NaN and Infinity."""
    raise ValueError(f"{constant} is not JSON")
