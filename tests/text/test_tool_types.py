"""Values of a schema's types from text without quotes."""

import pytest

from mlx_qwen3.text.tool_types import typed, types_in, types_of

TEXT, MAYBE_TEXT, ANY = frozenset({"string"}), frozenset({"string", "null"}), frozenset()
VALUES = [
    ("5", TEXT, "5"),
    ("None", TEXT, "None"),
    ("None", MAYBE_TEXT, None),
    ("null", MAYBE_TEXT, None),
    ("NONE", MAYBE_TEXT, "NONE"),
    ("5", MAYBE_TEXT, "5"),
    ("5", ANY, 5),
    ("TRUE", ANY, "TRUE"),
    ("[1, 2]", ANY, [1, 2]),
    ("NaN", ANY, "NaN"),
    ("NONE", frozenset({"null"}), None),
    ("TRUE", frozenset({"boolean"}), True),
    ("1e300", frozenset({"number"}), 1e300),
    ("-0.0", frozenset({"number"}), -0.0),
    ("5.0", frozenset({"integer"}), 5.0),
    ('{"a": "5"}', frozenset({"object"}), {"a": "5"}),
]


@pytest.mark.parametrize(("text", "types", "value"), VALUES)
def test_values(text, types, value):
    found = typed(text, types)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(("text", "kind"), [("many", "integer"), ("5.5", "integer"), ("1", "boolean")])
def test_a_value_of_no_type_is_an_error(text, kind):
    with pytest.raises(ValueError, match=kind):
        typed(text, frozenset({kind}))


def test_types_of_parameters():
    assert types_of("a", {"properties": {"a": {"type": "string"}}}) == {"string"}
    assert types_of("b", {"properties": {"a": {"type": "string"}}}) == types_of("a", {}) == frozenset()
    root = {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"type": ["string", "null"]}, "loop": {"$ref": "#/$defs/loop"}}}
    assert types_in({"$ref": "#/$defs/a"}, root) == {"string", "null"}
    assert types_in({"$ref": "#/$defs/none"}, root) == frozenset()
    assert types_in({"$ref": "#/$defs/loop"}, root) == frozenset()
    assert types_in({"oneOf": [{"const": 1}, {"enum": ["a", None]}]}, root) == {"integer", "string", "null"}
    assert types_in({"anyOf": [{"type": "string"}, {}]}, root) == frozenset()
    assert types_in({"type": "integer", "nullable": True}, root) == {"integer", "null"}
