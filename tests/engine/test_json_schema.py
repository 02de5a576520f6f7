"""Rewritten schemas: the same values are valid before and after, by the validator of jsonschema."""

import itertools

import jsonschema
import pytest

from mlx_qwen3.engine.json_schema import negated, rewritten
from mlx_qwen3.errors import UsageError

LATEST = jsonschema.Draft202012Validator
MEMBERS = [dict(zip("abc", row, strict=False)) for n in range(4) for row in itertools.product([1, "x"], repeat=n)]
VALUES = [None, True, 0, 2, 2.5, "", "abc", "2024-02-29", [], [1, "x"], *MEMBERS, {"b": 1}, {"c": 1, "a": 2}]

A, B, AB = {"required": ["a"]}, {"required": ["b"]}, {"required": ["a", "b"]}
SCHEMAS = [
    {"not": {"type": "object"}},
    {"not": {"type": ["number", "null"]}},
    {"not": {"required": ["a", "b"]}},
    {"not": {"type": "object", "required": ["a"]}},
    {"not": {"not": {"type": "string"}}},
    {"not": {"anyOf": [{"type": "string"}, {"required": ["a"]}]}},
    {"not": {"allOf": [{"type": ["string", "object"]}, {"required": ["a"]}]}},
    {"not": {"required": []}},
    {"not": True},
    {"not": False},
    {"not": {}},
    {"type": ["object", "string"], "not": {"type": "string"}, "allOf": [A]},
    {"dependentRequired": {"a": ["b"], "b": ["c"]}},
    {"dependentSchemas": {"a": {"properties": {"b": {"type": "string"}}, "required": ["b"]}}},
    {"type": "object", "oneOf": [A, B]},
    {"type": "object", "oneOf": [A, {"required": ["b", "c"]}]},
    {"type": "object", "oneOf": [A, AB]},
    {"type": "object", "oneOf": [A, A]},
    {"type": "object", "oneOf": [A, B, {"required": ["c"]}], "properties": {"a": {"type": "integer"}}},
    {"oneOf": [{"type": "string"}, {"type": "object", "required": ["a"]}, {"type": "null"}]},
    {"minProperties": 1},
    {"minProperties": 1, "properties": {"a": {"type": "string"}, "b": {}}},
    {"minProperties": 1, "properties": {"a": {"type": "string"}, "b": {}}, "additionalProperties": False},
    {"minProperties": 1, "properties": {"a": {"type": "string"}}, "required": ["a"]},
    {"type": "object", "minProperties": 0, "properties": {"a": {"type": "string"}}},
    {"maxProperties": 2, "properties": {"a": {}, "b": {}}, "additionalProperties": False},
    {"maxProperties": 1, "properties": {"a": {}, "b": {}}, "additionalProperties": False},
    {"maxProperties": 2, "properties": {"a": {}, "b": {}}},
    {"oneOf": [{"type": "string"}, {"type": "number"}], "anyOf": [{"minLength": 1}]},
    {"properties": {"a": {"oneOf": [{"const": 1}, {"const": "x"}]}}},
    {"$ref": "#/$defs/a", "required": ["a"], "$defs": {"a": {"not": {"required": ["b"]}}}},
]


@pytest.mark.parametrize("schema", SCHEMAS, ids=str)
def test_the_same_values_are_valid(schema):
    made = rewritten(schema)
    assert not {"not", "oneOf", "dependentRequired", "dependentSchemas"} & set(str(made).replace("'", " ").split())
    for value in VALUES:
        assert LATEST(made).is_valid(value) == LATEST(schema).is_valid(value), value


@pytest.mark.parametrize("schema", [{"minimum": 1}, {"type": "integer"}, {"anyOf": [{"minimum": 1}]}, {"enum": [1]}])
def test_what_has_no_other_words_stays(schema):
    assert negated(schema) is None
    assert rewritten({"not": schema}) == {"not": schema}


def test_alternatives_that_may_hold_together_stay():
    for schema in ({"oneOf": [A, B]}, {"oneOf": [{"type": "integer"}, {"minimum": 2}]}):
        assert rewritten(schema) == schema
    many = {"type": "object", "oneOf": [{"required": [f"{x}{i}" for x in "abcdefgh"]} for i in range(4)]}
    assert rewritten(many) == many


def test_old_dependencies_and_references_mean_what_their_draft_says():
    schema = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "dependencies": {"a": ["b"], "b": {"properties": {"c": {"type": "string"}}}},
    }
    for value in VALUES:
        assert jsonschema.Draft7Validator(rewritten(schema)).is_valid(value) == jsonschema.Draft7Validator(
            schema
        ).is_valid(value)
    alone = {"$schema": "http://json-schema.org/draft-07/schema", "properties": {"a": {"$ref": "#/x", "type": "null"}}}
    assert rewritten({**alone, "x": {}})["properties"] == {"a": {"$ref": "#/x"}}
    assert rewritten({"properties": alone["properties"]}) == {"properties": alone["properties"]}


def test_what_stands_for_values_is_no_schema():
    schema = {"const": {"not": {}}, "enum": [{"oneOf": []}], "default": {"format": "x"}, "properties": {"not": {}}}
    assert rewritten(schema) == schema


def test_formats():
    day = rewritten({"format": "date", "pattern": "^2"})
    assert day["pattern"] == "^2"
    assert LATEST(day).is_valid("2024-02-29")
    assert not LATEST(day).is_valid("2023-02-29")
    assert rewritten({"format": "url"}) == {"format": "url"}, "to be refused by name"
    assert rewritten({"format": "url"}, strict=False) == {}
    assert rewritten({"format": "iri"}, strict=False) == {"format": "iri"}
    assert rewritten({"x-guidance": {"lenient": True}, "type": "null"}) == {"type": "null"}
    assert rewritten({"$schema": "http://example.org/own", "type": "null"}) == {"type": "null"}
    assert rewritten(True) == {}


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        (False, "is false, which allows no reply"),
        ([], r"has \[\] where a schema belongs; expected an object"),
        ({"properties": {"a": 3}}, "has 3 where a schema belongs"),
        ({"maximum": float("nan")}, "cannot be written as JSON"),
        ({"default": {1, 2}}, "cannot be written as JSON"),
        ({"multipleOf": 99999989}, "has multipleOf 99999989, too fine for a grammar"),
        ({"minProperties": 2}, "has minProperties 2 for names that it does not list"),
        ({"not": {"anyOf": 3}}, "is malformed"),
        ({"oneOf": [{"type": 3}, {}]}, "is malformed"),
        ({"oneOf": []}, r"has oneOf \[\]; expected a list of schemas"),
        ({"dependencies": 3}, "has dependencies 3; expected an object"),
        ({"$schema": "http://json-schema.org/draft-03/schema#"}, "is of draft-03/schema"),
    ],
)
def test_what_cannot_be_a_schema_is_refused(schema, message):
    with pytest.raises(UsageError, match=message):
        rewritten(schema)


def test_deep_nesting_is_refused():
    schema = {}
    for _ in range(5000):
        schema = {"items": schema}
    with pytest.raises(UsageError, match="is nested too deeply"):
        rewritten(schema)


@pytest.mark.parametrize("schema", [{"multipleOf": 1_000_000}, {"multipleOf": 1e-9}, {"multipleOf": 0.25}, A])
def test_counts_that_a_grammar_can_hold(schema):
    assert rewritten(schema) == schema
    closed = {"minProperties": 2, "additionalProperties": False, "properties": {"a": {}, "b": {}}}
    assert rewritten(closed) == closed
