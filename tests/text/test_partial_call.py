"""Bound calls that are still being written: where their arguments begin and end, and the pieces in between."""

import json

import pytest

from mlx_qwen3.text.partial_call import PartialJson, PartialXml, begun_json, begun_xml

ARGUMENTS = '{"a": "}\\\\\\"{", "b": [1, {"c": "]"}], "d": {}}'
BODY = f'\n{{ "name" : "fi\\"nd", "arguments": {ARGUMENTS}}}\n'
SCHEMA = {
    "properties": {
        "text": {"type": "string"},
        "more": {"enum": ["</parameter>", "a"]},
        "maybe": {"type": ["string", "integer"]},
        "any": {},
        "list": {"type": "array"},
        "yes": {"type": "boolean"},
    }
}
TEXT = 'é "\\\n\n</parameter>x<parameter=list>\n</function>\n'
VALUES = {
    **{"text": TEXT, "more": "</parameter>", "maybe": "17", "any": "[1.50]", "list": '[1, "\\n</parameter>"]'},
    **{"yes": "true"},
}
XML_BODY = (
    "\n<function=find>\n"
    + "".join(f"<parameter={name}>\n{value}\n</parameter>\n" for name, value in VALUES.items())
    + "</function>\n"
)
XML_ARGUMENTS = {
    **{"text": TEXT, "more": "</parameter>", "maybe": 17, "any": [1.5], "list": [1, "\n</parameter>"], "yes": True}
}


def pieces(begun, make, body, size):
    """What is told of a body that comes in pieces of a size, and the call."""
    call, told, name = None, [], None
    for end in range(size, len(body) + size, size):
        if call is None:
            if (found := begun(body[:end])) is None:
                continue
            name, at = found
            call = make(at)
        told.append(call.read(body[:end]))
    return name, told, call


def make_xml(at):
    return PartialXml(at, SCHEMA)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_any_division_gives_the_arguments_of_a_json_call(size):
    name, told, call = pieces(begun_json, PartialJson, BODY, size)
    assert (name, "".join(told), call.over) == ('fi"nd', ARGUMENTS, True)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_any_division_gives_the_arguments_of_an_xml_call(size):
    name, told, call = pieces(begun_xml, make_xml, XML_BODY, size)
    assert (name, call.over) == ("find", True)
    assert json.loads("".join(told)) == XML_ARGUMENTS
    assert XML_BODY[call.at :] == "\n"


def test_a_text_is_told_letter_by_letter_and_a_value_of_unknown_type_at_its_end():
    _, told, _ = pieces(begun_xml, make_xml, XML_BODY, 1)
    told = [piece for piece in told if piece]
    assert told[:5] == ['{"text": "', "é", " ", '\\"', "\\\\"]
    assert "17" in told
    assert "[1.5]" in told
    assert told[-4:-1] == ["r", "u", "e"]
    assert told[-1] == "}"


@pytest.mark.parametrize("text", ["", "\n", "\n\n", "</parameter>\n", "\n</parameter", "\n</"])
def test_texts_that_look_like_an_end(text):
    body = f"<function=f>\n<parameter=text>\n{text}\n</parameter>\n</function>"
    for size in (1, 5, 100):
        _, told, call = pieces(begun_xml, make_xml, body, size)
        assert json.loads("".join(told)) == {"text": text}
        assert call.over


def test_no_parameters():
    _, told, call = pieces(begun_xml, make_xml, "<function=f>\n</function>", 1)
    assert ("".join(told), call.over) == ("{}", True)


@pytest.mark.parametrize(
    "body",
    ["", '{"name": "find"', '{"name": "find", "arguments": ', '{"arguments": {}', '{"name": "find", "arguments": "{'],
)
def test_a_json_call_whose_arguments_have_not_begun(body):
    assert begun_json(body) is None


@pytest.mark.parametrize("body", ["", "\n<function=find", "<function=find>", "find>\n"])
def test_an_xml_call_whose_arguments_have_not_begun(body):
    assert begun_xml(body) is None


def test_arguments_that_are_cut_are_not_over():
    call = PartialJson(begun_json(BODY)[1])
    call.read(BODY[:40])
    assert not call.over
    call = PartialXml(begun_xml(XML_BODY)[1], SCHEMA)
    call.read(XML_BODY[: XML_BODY.index("</function>\n", -14)])
    assert not call.over
