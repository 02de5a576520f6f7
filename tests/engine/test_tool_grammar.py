"""Bound tool calls: arguments always parse, and are those of the schema."""

import json

import jsonschema
import pytest

from mlx_qwen3 import GrammarCompiler, JsonObject, JsonSchema, ToolChoice, generate, load
from mlx_qwen3.engine.sampling import SamplingParams
from mlx_qwen3.errors import UsageError
from mlx_qwen3.text.tool_calls import CallArguments, CallBegin, CallEnd, Text, ToolCallParser

PLACE = {
    "type": "object",
    "properties": {"x": {"type": "number", "minimum": 0, "maximum": 9}, "in": {"$ref": "#/$defs/place"}},
    "required": ["x"],
    "additionalProperties": False,
}
WEATHER = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "minLength": 2, "maxLength": 9},
        "days": {"type": "integer", "minimum": 0, "maximum": 99},
        "place": {"$ref": "#/$defs/place"},
        "unit": {"enum": ["°C", "F", ""]},
        "note": {"anyOf": [{"type": "string", "description": "a note"}, {"type": "null"}]},
    },
    "required": ["city", "place"],
    "additionalProperties": False,
    "$defs": {"place": PLACE},
}
ODD = {"type": "object", "properties": {"all": {"type": "array", "uniqueItems": True}}, "required": ["all"]}


def tool(name, parameters=None, **more):
    return {"type": "function", "function": {"name": name, "parameters": parameters, **more}}


TOOLS = [tool("weather", WEATHER, strict=True), tool("now"), tool("odd", ODD)]


@pytest.fixture(scope="module")
def demo():
    return load("demo", dtype="fp32")


@pytest.fixture(scope="module")
def compiler(demo):
    return GrammarCompiler(demo[1])


def json_call(name, **arguments):
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments}, ensure_ascii=False)}\n</tool_call>"


def xml_call(name, **arguments):
    texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in arguments.items()}
    parts = "".join(f"<parameter={key}>\n{text}\n</parameter>\n" for key, text in texts.items())
    return f"<tool_call>\n<function={name}>\n{parts}</function>\n</tool_call>"


CALLS = {"json": json_call, "xml": xml_call}


def accepts(demo, grammar, text):
    """Whether the tokens of a reply are allowed; its tags are tokens of their own."""
    match = grammar.begin()
    for token in demo[1].encode(text):
        if not match.allowed()[token]:
            return False
        match.take(token)
    return bool(match.allowed()[list(demo[1].stop_ids)].all())


@pytest.mark.parametrize("style", CALLS)
def test_what_a_choice_allows(demo, compiler, style):
    make = CALLS[style]
    one = make("weather", city="Köln", days=3, place={"x": 1.5, "in": {"x": 2}}, unit="°C", note="x\ny")
    now, text = make("now"), "Let me see.\n"
    single, several = [now, one, f"{text}{one}", "", "a < b"], [f"{one}\n{now}", f"{one}\n{one}", f"{text}{one}\n{now}"]
    table = {
        ("auto", True): single + several,
        ("auto", False): single,
        ("required", True): [now, one, *several[:2]],
        ("required", False): [now, one],
        ("weather", True): [one, several[1]],
        ("weather", False): [one],
        ("now", False): [now],
    }
    texts = {text for allowed in table.values() for text in allowed}
    for (choice, parallel), allowed in table.items():
        grammar = compiler.compile(ToolChoice(TOOLS, choice, parallel, style))
        assert {text for text in texts if accepts(demo, grammar, text)} == set(allowed), (choice, parallel)


@pytest.mark.parametrize("style", CALLS)
@pytest.mark.parametrize("choice", ["auto", "required"])
def test_arguments_are_those_of_the_schema(demo, compiler, style, choice):
    make, grammar = CALLS[style], compiler.compile(ToolChoice(TOOLS, choice, style=style))
    good = {"city": "Köln", "place": {"x": 1}}
    assert accepts(demo, grammar, make("weather", **good))
    assert accepts(demo, grammar, make("odd", all=[1, 1])), "not strict: what a grammar cannot enforce is left out"
    for arguments in (
        {"city": "Köln"},
        {"city": "K", "place": {"x": 1}},
        {"city": "Köln am Rhein", "place": {"x": 1}},
        {"city": "Köln", "days": 100, "place": {"x": 1}},
        {"city": "Köln", "days": "many", "place": {"x": 1}},
        {"city": "Köln", "place": {"x": 1, "in": {}}},
        {"city": "Köln", "place": {"x": 1}, "unit": "K"},
        {"city": "Köln", "place": {"x": 1}, "more": 1},
    ):
        assert not accepts(demo, grammar, make("weather", **arguments)), arguments
    assert not accepts(demo, grammar, make("nobody"))
    assert accepts(demo, grammar, make("odd", all=3)) == (style == "json")
    assert not accepts(demo, grammar, "<tool_call>\n{}\n</tool_call>")


def test_a_tag_in_letters_begins_no_free_call(demo, compiler):
    match = compiler.compile(ToolChoice(TOOLS)).begin()
    for token in demo[1].encode("<tool_call") + demo[1].encode(">"):
        if not match.allowed()[token]:
            break
        match.take(token)
    else:
        pytest.fail("the tag was allowed as text")
    assert match.allowed()[demo[1].encode("x")[0]]


def parsed(text, style, bound, size):
    """The reply's parts: texts, and calls as (name, arguments)."""
    parser, parts = ToolCallParser(TOOLS, style, bound), []
    events = [event for at in range(0, len(text), size) for event in parser.feed(text[at : at + size])]
    for event in [*events, *parser.end()]:
        if isinstance(event, Text):
            parts.append(event.text)
        elif isinstance(event, CallBegin):
            parts.append((event.name, ""))
        elif isinstance(event, CallArguments):
            parts[-1] = (parts[-1][0], parts[-1][1] + event.delta)
        else:
            assert isinstance(event, CallEnd)
    return parts


@pytest.mark.parametrize("style", CALLS)
def test_sampled_calls_parse_and_are_valid(demo, compiler, style):
    schemas = {"weather": WEATHER, "now": {}, "odd": {"type": "object"}}
    grammar = compiler.compile(ToolChoice(TOOLS, "required", style=style))
    stopped = 0
    for seed in range(6):
        sampling = SamplingParams(temperature=1.5, top_k=0, top_p=1.0, seed=seed)
        result = generate(*demo, "Call tools.", sampling=sampling, thinking=False, grammar=grammar, max_tokens=150)
        if result.finish_reason != "stop":
            continue
        told = parsed(result.text, style, bound=True, size=1)
        if style == "json":  # in the XML style a text may hold tags, which only the grammar can tell
            assert told == parsed(result.text, style, bound=False, size=10**6)
        assert not [event for event in told if isinstance(event, str)], result.text
        for name, arguments in told:
            jsonschema.validate(json.loads(arguments), schemas[name])
        stopped += bool(told)
    assert stopped >= 2


@pytest.mark.parametrize("style", CALLS)
def test_an_answer_of_a_schema_or_calls(demo, compiler, style):
    answer = {
        "type": "object",
        "properties": {"x": {"$ref": "#/$defs/n"}},
        "required": ["x"],
        "$defs": {"n": {"const": 1}},
    }
    grammar = compiler.compile(ToolChoice(TOOLS, style=style, answer=JsonSchema(answer)))
    now = CALLS[style]("now")
    for text in ('{"x": 1}', now, f"{now}\n{now}"):
        assert accepts(demo, grammar, text)
    for text in ("", "text", '{"x": 2}', f'{{"x": 1}}\n{now}', f"text\n{now}"):
        assert not accepts(demo, grammar, text)
    grammar = compiler.compile(ToolChoice(TOOLS, style=style, answer=JsonObject()))
    assert accepts(demo, grammar, '{"any": [1]}')
    assert not accepts(demo, compiler.compile(ToolChoice(TOOLS, "required", style=style, answer=JsonObject())), "{}")


def test_thinking_comes_before_a_bound_call(demo, compiler):
    grammar = compiler.compile(ToolChoice(TOOLS, "now"))
    result = generate(
        *demo, "What is 17 + 25?", sampling=SamplingParams(temperature=0), grammar=grammar, max_tokens=100
    )
    assert result.thinking
    assert result.text.startswith("<tool_call>")


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (ToolChoice([]), "tools is empty"),
        (ToolChoice(TOOLS, "nobody"), "tool_choice names 'nobody'; the tools are weather, now, odd"),
        (ToolChoice(TOOLS, style="yaml"), "the style of tool calls is 'yaml'; expected json or xml"),
        (ToolChoice([tool("f", ODD, strict=True)]), 'tool f: the JSON schema has "uniqueItems"'),
        (ToolChoice([tool("f", ODD, strict=True)], style="xml"), 'tool f: the JSON schema has "uniqueItems"'),
        (
            ToolChoice(
                [tool("f", {"properties": {"a": {"type": "string", "pattern": "x"}}}, strict=True)], style="xml"
            ),
            "tool f: parameter 'a' has pattern, which cannot be enforced in the XML style",
        ),
        (
            ToolChoice([tool("f", {"properties": {"a": {}}, "minProperties": 1}, strict=True)], style="xml"),
            "tool f: its parameters have minProperties, which cannot be enforced in the XML style",
        ),
        (
            ToolChoice(
                [tool("f", {"properties": {"a": {"type": "array", "items": {"$ref": "#"}}}}, strict=True)], style="xml"
            ),
            "tool f: parameter 'a' refers to the whole schema",
        ),
        (ToolChoice([tool("f", {"oneOf": []}, strict=True)]), r"tool f: the JSON schema has oneOf \[\]"),
    ],
    ids=range(9),
)
def test_what_cannot_be_bound_is_refused_by_name(compiler, choice, message):
    with pytest.raises(UsageError, match=message):
        compiler.compile(choice)


def test_references_of_the_arguments_stay_theirs(demo, compiler):
    tree = {"type": "object", "properties": {"kids": {"type": "array", "items": {"$ref": "#"}}}, "required": ["kids"]}
    grammar = compiler.compile(ToolChoice([tool("f", {**tree, "additionalProperties": False}, strict=True)], "f"))
    assert accepts(demo, grammar, json_call("f", kids=[{"kids": []}]))
    assert not accepts(demo, grammar, json_call("f", kids=[{"name": "f", "arguments": {"kids": []}}]))


def test_a_tokenizer_without_the_tag_is_refused(demo, compiler, monkeypatch):
    monkeypatch.setattr(type(demo[1]), "encode", lambda self, text: list(text.encode()))
    with pytest.raises(UsageError, match="binding tool calls needs a tokenizer with the token <tool_call>"):
        compiler.compile(ToolChoice(TOOLS))
