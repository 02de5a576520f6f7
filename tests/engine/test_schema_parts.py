"""What is said of JSON schemas, against the validator of jsonschema."""

import re
from datetime import date

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_qwen3.engine.schema_parts import FORMATS, disjoint, draft, resolved, types_of
from mlx_qwen3.errors import UsageError

VALUES = [None, True, 0, 1, 1.5, "", "a", "b", [], [1], {}, {"a": 1}, {"a": "x"}, {"a": 1, "b": 2}, {"b": "x"}]
NODES = [
    *({"type": kind} for kind in ("null", "boolean", "integer", "number", "string", "array", "object")),
    {"type": ["string", "null"]},
    {"const": 1},
    {"enum": ["a", "b"]},
    {"enum": ["a", 1.0]},
    {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]},
    {"type": "object", "properties": {"a": {"type": "string"}}},
    {"type": "object", "properties": {"a": {"const": 1}}},
    {"properties": {"a": {"const": "x"}}, "required": ["a"]},
    {"type": "object", "required": ["b"]},
    {"type": "object", "properties": {"a": {}}, "additionalProperties": False},
    {"anyOf": [{"type": "null"}, {"type": "string"}]},
    {"oneOf": [{"const": True}, {"type": "array"}]},
    {"$ref": "#/$defs/text"},
    {},
    True,
    False,
]
ROOT = {"$defs": {"text": {"type": "string"}, "loop": {"$ref": "#/$defs/loop"}}}


def is_valid(schema, value):
    schema = schema if isinstance(schema, bool) else {**ROOT, **schema}
    return jsonschema.Draft202012Validator(schema).is_valid(value)


@pytest.mark.parametrize("a", NODES, ids=str)
def test_schemas_that_exclude_each_other_share_no_value(a):
    for b in NODES:
        if disjoint(a, b, ROOT):
            assert not [value for value in VALUES if is_valid(a, value) and is_valid(b, value)], b


def test_schemas_are_told_apart_by_type_value_and_name():
    cat = {"type": "object", "properties": {"kind": {"const": "cat"}}, "required": ["kind"]}
    dog = {"type": "object", "properties": {"kind": {"enum": ["dog", "wolf"]}}}
    assert disjoint(cat, dog, ROOT)
    assert disjoint({"$ref": "#/$defs/text"}, {"type": ["null", "integer"]}, ROOT)
    assert disjoint({"anyOf": [cat, {"type": "null"}]}, {"anyOf": [dog, {"type": "string"}]}, ROOT)
    assert disjoint({"type": "object", "required": ["x"]}, {"additionalProperties": False}, ROOT)
    assert not disjoint(dog, dog, ROOT)
    assert not disjoint({"$ref": "#/$defs/loop"}, {"type": "string"}, ROOT)
    assert disjoint({"required": ["a"]}, {"properties": {"a": False}}, ROOT, {"object"})
    assert not disjoint({"required": ["a"]}, {"properties": {"a": False}}, ROOT), "a text is valid for both"


def test_types():
    assert types_of({"type": ["integer", "null"]}, ROOT) == {"number", "null"}
    assert types_of({"enum": [1, "a", None, [], {}, True]}, ROOT) == {
        *("number", "string", "null", "array", "object", "boolean")
    }
    assert types_of({"$ref": "#/$defs/text"}, ROOT) == {"string"}
    assert types_of({"minimum": 3}, ROOT) is None
    assert resolved({"$ref": "#/$defs/none"}, ROOT) == {"$ref": "#/$defs/none"}


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("http://json-schema.org/draft-07/schema#", "draft-07"),
        ("https://json-schema.org/draft-04/schema", "draft-04"),
        ("https://json-schema.org/draft/2019-09/schema", "draft/2019-09"),
        ("http://json-schema.org/schema#", None),
        (7, None),
    ],
)
def test_the_draft_of_a_schema(uri, expected):
    assert draft(uri) == expected


def test_a_draft_whose_keywords_mean_something_else_is_refused():
    with pytest.raises(UsageError, match=r"the JSON schema is of draft-03/schema; write it in draft 4"):
        draft("http://json-schema.org/draft-03/schema#")


@given(st.integers(1, 9999), st.integers(1, 12), st.integers(1, 31))
def test_dates_are_those_of_the_calendar(year, month, day):
    try:
        date(year, month, day)
        there = True
    except ValueError:
        there = False
    assert bool(re.fullmatch(FORMATS["date"], f"{year:04}-{month:02}-{day:02}")) == there


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        ("date", ["2024-02-29", "2000-02-29"], ["1900-02-29", "2023-02-29", "0000-01-01", "2024-2-9", "2024-04-31"]),
        ("time", ["23:59:60Z", "00:00:00.5+01:30"], ["24:00:00Z", "12:00:60Z", "12:00:00", "12:00Z"]),
        ("date-time", ["2024-02-29T01:02:03z"], ["2023-02-29T01:02:03Z", "2024-02-29 01:02:03Z"]),
        ("json-pointer", ["", "/a~0b/", "/é"], ["a", "/~2"]),
        ("relative-json-pointer", ["0", "1/a", "2#"], ["", "01", "/a"]),
    ],
)
def test_formats(name, right, wrong):
    assert all(re.fullmatch(FORMATS[name], text) for text in right)
    assert not any(re.fullmatch(FORMATS[name], text) for text in wrong)
