"""Rewrites a JSON schema with the keywords that llguidance supports.

llguidance refuses a keyword that it cannot enforce. Some of them are rewritten here as other keywords that allow the
same values. Keywords that llguidance would ignore are refused here.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from decimal import Decimal
from itertools import chain, combinations, product
from typing import Any

from ..errors import UsageError
from ..files.reading import short
from .schema_parts import FORMATS, MAPS, SCHEMAS, STANDARD_FORMATS, TYPES, disjoint, draft, types_of

Schema = Any  # an object or a boolean, as JSON has it
LARGEST_MULTIPLE = 100_000  # without the zeros at its end; the automaton of a multipleOf has as many states
CHOICES = 64  # alternatives that one keyword may be rewritten to
DEEP = "the JSON schema is nested too deeply; put its parts under $defs"
REMEDY = "change the schema, or check the reply yourself"


def rewritten(schema: Schema, strict: bool = True) -> Schema:
    """The schema for llguidance. If not `strict`, a `format` that no draft of JSON Schema defines has no effect.

    Raises UsageError that names a keyword which can neither be enforced nor rewritten.
    """
    try:
        plain = json.loads(json.dumps(schema, allow_nan=False))
    except (TypeError, ValueError) as error:
        raise UsageError(f"the JSON schema cannot be written as JSON ({error})") from None
    except RecursionError:
        raise UsageError(DEEP) from None
    if plain is False:
        raise UsageError("the JSON schema is false, which allows no reply")
    try:
        return {} if plain is True else _Rewriter(plain, strict).schema(plain)
    except RecursionError:
        raise UsageError(DEEP) from None
    except (TypeError, AttributeError, KeyError) as error:  # a keyword with a value of another type
        raise UsageError(f"the JSON schema is malformed ({error})") from None


class _Rewriter:
    def __init__(self, root: Schema, strict: bool):
        self._root, self._strict = root, strict
        found = draft(root.get("$schema")) if isinstance(root, dict) else None
        self._rewritings: dict[str, Callable[[Any, Any], dict[str, Any]]] = {  # keyword -> what takes its place
            "$schema": self._dialect,
            "format": self._format,
            "not": self._not,
            "dependencies": self._dependencies,
            "dependentRequired": self._dependencies,
            "dependentSchemas": self._dependencies,
            "oneOf": self._one_of,
            "minProperties": self._least,
            "maxProperties": self._most,
        }
        self._lonely_refs = found is not None and found <= "draft-07"  # there `$ref` hides what stands beside it

    def schema(self, node: Schema) -> Schema:
        if isinstance(node, bool):
            return node
        if not isinstance(node, dict):
            raise UsageError(f"the JSON schema has {short(repr(node))} where a schema belongs; expected an object")
        node = {key: value for key, value in node.items() if key != "x-guidance"}  # llguidance's own settings
        if self._lonely_refs and "$ref" in node:
            node = {key: value for key, value in node.items() if key in ("$ref", "$schema", "definitions", "$defs")}
        self._check_step(node)
        made: dict[str, Any] = {}
        beside: list[Schema] = []  # further conditions, for which the node has no free keyword
        for key, value in node.items():
            value = value if key == "not" else self._value(key, value)
            other = self._rewritings[key](node, value) if key in self._rewritings else {key: value}
            for name, item in other.items():
                if name == key or name not in node:
                    made[name] = item
                else:
                    beside.append({name: item})
        if beside:
            made["allOf"] = [*made.get("allOf", []), *beside]
        return made

    def _value(self, key: str, value: Any) -> Any:
        """The value of a keyword, with the schemas in it rewritten."""
        if key in MAPS and isinstance(value, dict):
            return {name: item if isinstance(item, list) else self.schema(item) for name, item in value.items()}
        if key in SCHEMAS and isinstance(value, list):
            return [self.schema(item) for item in value]
        return self.schema(value) if key in SCHEMAS and isinstance(value, dict) else value

    def _check_step(self, node: dict[str, Any]) -> None:
        if isinstance(step := node.get("multipleOf"), int | float) and not isinstance(step, bool):
            _, digits, _ = Decimal(str(step)).normalize().as_tuple()
            if int("".join(map(str, digits))) > LARGEST_MULTIPLE:
                raise UsageError(f"the JSON schema has multipleOf {step}, too fine for a grammar; {REMEDY}")

    def _least(self, node: Mapping[str, Any], least: Any) -> dict[str, Any]:
        """minProperties 1 as alternatives: one of the listed names is present, or another name."""
        if not isinstance(least, int):
            return {"minProperties": least}
        required, names = set(node.get("required", [])), node.get("properties", {})
        if least - len(required) >= 2 and not _closed(node):
            # A grammar cannot see that a free name is repeated, and a repeated name counts once.
            raise UsageError(f"the JSON schema has minProperties {least} for names that it does not list; {REMEDY}")
        if least <= len(required):
            return {}
        if least > 1 or not names or len(names) > CHOICES:
            return {"minProperties": least}
        others = [] if _closed(node) else [{"properties": dict.fromkeys(names, False), "minProperties": 1}]
        return {"anyOf": [{"type": list(TYPES[:-1])}, *({"type": "object", "required": [n]} for n in names), *others]}

    def _most(self, node: Mapping[str, Any], most: Any) -> dict[str, Any]:
        """No limit is needed if no more names are listed, and no others are allowed."""
        more = not _closed(node) or not isinstance(most, int) or most < len(node.get("properties", {}))
        return {"maxProperties": most} if more else {}

    def _dialect(self, node: Mapping[str, Any], uri: Any) -> dict[str, Any]:
        found = draft(uri)
        place = "https" if found is None or "/" in found else "http"
        return {} if found is None else {"$schema": f"{place}://json-schema.org/{found}/schema"}

    def _format(self, node: Mapping[str, Any], name: Any) -> dict[str, Any]:
        if isinstance(name, str) and name in FORMATS:
            return {"pattern": f"^(?:{FORMATS[name]})$"}
        return {"format": name} if self._strict or name in STANDARD_FORMATS else {}

    def _not(self, node: Mapping[str, Any], denied: Schema) -> dict[str, Any]:
        other = negated(denied)
        return {"not": self._value("not", denied)} if other is None else {"allOf": [self.schema(other)]}

    def _dependencies(self, node: Mapping[str, Any], entries: Any) -> dict[str, Any]:
        """{a: [b]} and {a: schema} as alternatives: a is absent, or the condition holds."""
        if not isinstance(entries, dict):
            raise UsageError(f"the JSON schema has dependencies {short(repr(entries))}; expected an object")
        return {
            "allOf": [
                {"anyOf": [{"properties": {name: False}}, {"required": other} if isinstance(other, list) else other]}
                for name, other in entries.items()
            ]
        }

    def _one_of(self, node: Mapping[str, Any], options: Any) -> dict[str, Any]:
        if not isinstance(options, list) or not options:
            raise UsageError(f"the JSON schema has oneOf {short(repr(options))}; expected a list of schemas")
        types = types_of({"type": node["type"]}, self._root) if "type" in node else None
        if all(disjoint(a, b, self._root, types) for a, b in combinations(options, 2)):
            return {"anyOf": options}
        if types == {"object"} and all(map(_only_requires, options)):
            chosen = _exactly_one([option["required"] for option in options])
            return {"oneOf": options} if chosen is None else {"anyOf": chosen}
        return {"oneOf": options}


def negated(schema: Schema) -> Schema | None:
    """A schema that is valid exactly if this one is not; None if there is no such schema."""
    if isinstance(schema, bool) or not schema:
        return schema is False
    keys = set(schema)
    if keys == {"not"}:
        return schema["not"]
    for keyword, opposite in (("anyOf", "allOf"), ("allOf", "anyOf")):
        if keys == {keyword}:
            parts = [negated(option) for option in schema[keyword]]
            return None if None in parts else {opposite: parts}
    if keys == {"type"}:
        denied = {schema["type"]} if isinstance(schema["type"], str) else set(schema["type"])
        left = [name for name in TYPES if name not in denied]
        return (
            None if "integer" in denied - {"number"} and "number" not in denied else {"type": left} if left else False
        )
    if keys in ({"required"}, {"required", "type"}) and schema.get("type", "object") == "object":
        absent: list[Schema] = [{"type": "object", "properties": {name: False}} for name in schema["required"]]
        others = [{"type": [name for name in TYPES if name != "object"]}] if "type" in keys else []
        return {"anyOf": [*absent, *others]} if absent or others else False
    return None


def _closed(node: Mapping[str, Any]) -> bool:
    return node.get("additionalProperties") is False and not node.get("patternProperties")


def _only_requires(option: Schema) -> bool:
    return isinstance(option, dict) and set(option) in ({"required"}, {"required", "type"}) and bool(option["required"])


def _exactly_one(groups: Sequence[Sequence[str]]) -> list[Schema] | None:
    """Alternatives for "all names of exactly one group are present"; None if they are too many."""
    found = []
    for group in groups:
        others = [[name for name in other if name not in group] for other in groups if other is not group]
        for absent in _choices(others):
            found.append({"required": list(group), "properties": dict.fromkeys(absent, False)})
            if len(found) > CHOICES:
                return None
    return found


def _choices(groups: Sequence[Sequence[str]]) -> Iterator[frozenset[str]]:
    """Every way to take a name of each group."""
    return iter(dict.fromkeys(map(frozenset, product(*groups)))) if all(groups) else chain()
