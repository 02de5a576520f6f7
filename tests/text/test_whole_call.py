"""Whole calls: their names and arguments, what is not a call, and where a call ends."""

import json

import pytest

from mlx_qwen3.text.whole_call import ends, inside_text, read_json, read_xml

PLACE = {"properties": {"city": {"type": "string"}, "days": {"type": "integer"}, "any": {}}}


@pytest.mark.parametrize(
    ("body", "call"),
    [
        ('\n{"name": "f", "arguments": {"a": 1.50}}\n', ("f", '{"a": 1.50}')),
        ('{"arguments": "{\\"a\\": 1}", "name": "f"}', ("f", '{"a": 1}')),
        ('{"name": "f"}', ("f", "{}")),
        ('{"name": "f", "arguments": {}} x', None),
        ('{"name": "", "arguments": {}}', None),
        ('{"name": "f", "arguments": {"a": Infinity}}', None),
        ('{"name": "f", "arguments": ' + "[" * 100_000, None),
        ("", None),
    ],
)
def test_calls_in_the_style_of_qwen3(body, call):
    assert read_json(body) == call


@pytest.mark.parametrize(
    ("rest", "arguments"),
    [
        ("", {}),
        ("<parameter=city>\nParis\n</parameter>\n<parameter=days>\n3\n</parameter>\n", {"city": "Paris", "days": 3}),
        ("<parameter=city>Paris</parameter><parameter=any>[1]</parameter>", {"city": "Paris", "any": [1]}),
        (
            "<parameter=city>\n<parameter=days>\n3\n</parameter>\n</parameter>\n",
            {"city": "<parameter=days>\n3\n</parameter>"},
        ),
        ("<parameter=days>\nsoon\n</parameter>\n", None),
        ("<parameter=city>\nParis", None),
        ("Paris", None),
    ],
)
def test_calls_in_the_style_of_qwen3_coder(rest, arguments):
    found = read_xml(f"\n<function=f>\n{rest}</function>\n", {"f": PLACE})
    assert (found and json.loads(found[1])) == arguments
    assert found is None or found[0] == "f"
    assert read_xml(f"<function=f>{rest}", {"f": PLACE}) is None


def test_where_an_xml_call_ends():
    value = "<function=f>\n<parameter=city>\n</function>"
    assert ends("<function=f>\n</function>\n", "", over=False) is True
    assert ends("<function=f>\n", "", over=True) is False
    assert ends(value, "<tool_", over=False) is None, "another call may follow, and this one be broken"
    assert ends(value, "<tool_call>", over=False) is True
    assert ends(value, "text", over=False) is False, "the value may go on"
    assert ends(value, "text", over=True) is True


@pytest.mark.parametrize(
    ("text", "inside"), [('{"a', True), ('{"a"', False), ('"\\"', True), ('"\\\\"', False), ("\\", False)]
)
def test_inside_quotes(text, inside):
    assert inside_text(text) is inside
