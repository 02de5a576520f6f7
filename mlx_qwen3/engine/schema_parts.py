"""Keywords, drafts and formats of JSON Schema, and whether two schemas exclude each other."""

import json
from typing import Any

from ..errors import UsageError

Schema = Any
TYPES = ("null", "boolean", "number", "string", "array", "object")
# Keywords whose value is a schema or a list of schemas, and those whose value has a schema for each name.
SCHEMAS = frozenset(
    "additionalItems additionalProperties allOf anyOf contains else if items not oneOf prefixItems propertyNames then "
    "unevaluatedItems unevaluatedProperties".split()
)
MAPS = frozenset("$defs definitions dependencies dependentSchemas patternProperties properties".split())
DRAFTS = ("draft-04", "draft-06", "draft-07", "draft/2019-09", "draft/2020-12")
STANDARD_FORMATS = frozenset(
    "date date-time time duration email idn-email hostname idn-hostname ipv4 ipv6 uri uri-reference iri iri-reference "
    "uuid uri-template json-pointer relative-json-pointer regex".split()
)
MAX_DEPTH = 16  # of references that are followed

_YEAR = "(?:[0-9]{3}[1-9]|[0-9]{2}[1-9]0|[0-9][1-9]00|[1-9]000)"
_LEAP = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
_DATE = (
    f"(?:{_YEAR}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    f"|02-(?:0[1-9]|1[0-9]|2[0-8]))|{_LEAP}-02-29)"
)
_ZONE = r"(?:[zZ]|[+\-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
_TIME = rf"(?:(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]+)?{_ZONE}|23:59:60(?:\.[0-9]+)?[zZ])"
_POINTER = "(?:/(?:[^~/]|~[01])*)*"
# Patterns of formats that llguidance does not know, or for which it allows impossible dates.
FORMATS = {
    "date": _DATE,
    "date-time": f"{_DATE}[tT]{_TIME}",
    "time": _TIME,
    "json-pointer": _POINTER,
    "relative-json-pointer": f"(?:0|[1-9][0-9]*)(?:#|{_POINTER})",
}


def draft(uri: Any) -> str | None:
    """The draft that `$schema` names, one of DRAFTS; None for a text that validators read as the newest draft.

    Raises UsageError for a draft before 4, whose keywords have other meanings.
    """
    if not isinstance(uri, str):
        return None
    name = uri.rstrip("#").removeprefix("https://").removeprefix("http://").removeprefix("json-schema.org/")
    if name.startswith(("draft-00", "draft-01", "draft-02", "draft-03")):
        raise UsageError(f"the JSON schema is of {name}; write it in draft 4 or a later one")
    return next((known for known in DRAFTS if name == f"{known}/schema"), None)


def resolved(schema: Schema, root: Schema) -> Schema:
    """The schema that a local `$ref` points to, if there are only notes beside the `$ref`."""
    for _ in range(MAX_DEPTH):
        reference = schema.get("$ref") if isinstance(schema, dict) else None
        if not isinstance(reference, str) or not reference.startswith("#"):
            return schema
        found = root
        for part in reference.removeprefix("#").split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            if not isinstance(found, dict) or key not in found:
                return schema
            found = found[key]
        schema = found
    return schema


def types_of(schema: Schema, root: Schema) -> set[str] | None:
    """The types that a schema allows, integers as numbers; None if it does not say."""
    schema = resolved(schema, root)
    if not isinstance(schema, dict):
        return None
    if "type" in schema:
        names = [schema["type"]] if isinstance(schema["type"], str) else list(schema["type"])
        return {"number" if name == "integer" else name for name in names}
    values = _values(schema)
    return None if values is None else {_type(value) for value in values}


def disjoint(a: Schema, b: Schema, root: Schema, types: set[str] | None = None, depth: int = 0) -> bool:
    """Whether it is certain that no value is valid for both; `types` are those that the value can have at all."""
    a, b = resolved(a, root), resolved(b, root)
    if a is False or b is False:
        return True
    if not isinstance(a, dict) or not isinstance(b, dict) or depth > MAX_DEPTH:
        return False
    for one, other in ((a, b), (b, a)):
        for keyword in ("anyOf", "oneOf"):
            options = one.get(keyword)
            if isinstance(options, list) and all(disjoint(x, other, root, types, depth + 1) for x in options):
                return True
    first, second = _values(a), _values(b)
    if first is not None and second is not None:
        return not {*map(_key, first)} & {*map(_key, second)}
    kinds = types_of(a, root) or types, types_of(b, root) or types
    if kinds[0] and kinds[1] and not kinds[0] & kinds[1]:
        return True
    objects = kinds[0] == {"object"} or kinds[1] == {"object"}
    return objects and any(_differ_in(name, a, b, root, depth) for name in {*_required(a), *_required(b)})


def _differ_in(name: str, a: dict[str, Any], b: dict[str, Any], root: Schema, depth: int) -> bool:
    """Whether no value of a name is valid for both objects, one of which must have it."""
    return disjoint(_property(a, name), _property(b, name), root, depth=depth + 1)


def _property(schema: dict[str, Any], name: str) -> Schema:
    properties = schema.get("properties")
    if isinstance(properties, dict) and name in properties:
        return properties[name]
    return not (schema.get("additionalProperties") is False and not schema.get("patternProperties"))


def _required(schema: dict[str, Any]) -> list[str]:
    found = schema.get("required")
    return [name for name in found if isinstance(name, str)] if isinstance(found, list) else []


def _values(schema: dict[str, Any]) -> list[Any] | None:
    """The values that a schema lists; None if it lists none."""
    if "const" in schema:
        return [schema["const"]]
    return schema["enum"] if isinstance(schema.get("enum"), list) else None


def _type(value: Any) -> str:
    kinds: dict[type, str] = {type(None): "null", bool: "boolean", int: "number", float: "number", str: "string"}
    return kinds.get(type(value), "array" if isinstance(value, list) else "object")


def _key(value: Any) -> str:
    """A text that is the same for equal values: 1 and 1.0 are equal."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return json.dumps(value, sort_keys=True)
