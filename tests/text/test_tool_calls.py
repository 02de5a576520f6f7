"""Tool calls found in replies: any chunking, what is no call stays text, and what a template writes comes back."""

import itertools
import json
import random

import coder
import pytest
from chats import HI, call, render
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_qwen3.text.tool_calls import CallArguments, CallBegin, CallCut, CallEnd, Text, ToolCallParser, style_of

# The calls of Qwen3's template, byte for byte.
QWEN3 = (
    "{%- for m in messages %}{%- if m.role == 'assistant' %}{{- m.content }}{%- for c in m.tool_calls %}"
    "{%- if m.content or not loop.first %}{{- '\\n' }}{%- endif %}"
    '{{- \'<tool_call>\\n{"name": "\' + c.function.name + \'", "arguments": \' }}'
    "{{- c.function.arguments | tojson }}{{- '}\\n</tool_call>' }}{%- endfor %}{%- endif %}{%- endfor %}"
)
KINDS = {
    "text": {"type": "string"},
    "whole": {"type": "integer"},
    "number": {"type": "number"},
    "yes": {"type": "boolean"},
    "list": {"type": "array"},
    "map": {"type": "object"},
    "maybe": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
    "choice": {"enum": ["a", "b c"]},
    "place": {"$ref": "#/$defs/place"},
}
PARAMETERS = {"type": "object", "properties": KINDS, "$defs": {"place": {"type": "object"}}}
TOOLS = [
    {"type": "function", "function": {"name": "find", "parameters": PARAMETERS}},
    {"name": "now", "parameters": {"type": "object", "properties": {}}},
]
JSON_CALL = (
    '<tool_call>\n{"name": "find", "arguments": {"text": "a}</tool_call>b", '
    '"list": [1.50, {"x": "\\"}"}]}}\n</tool_call>'
)
XML_CALL = (
    "<tool_call>\n<function=find>\n<parameter=text>\nif a < b:\n  print('</parameter>')\n\n</parameter>\n"
    "<parameter=yes>\nTrue\n</parameter>\n<parameter=map>\n"
    '{"a": [1]}\n</parameter>\n</function>\n</tool_call>'
)


def parsed(text, style="json", tools=TOOLS, cuts=()):
    """The reply's parts: texts, and calls as (name, arguments)."""
    parser = ToolCallParser(tools, style)
    places = [0, *sorted(cuts), len(text)]
    events = [event for a, b in itertools.pairwise(places) for event in parser.feed(text[a:b])]
    return collected([*events, *parser.end()])


def collected(events):
    parts, ids = [], []
    for event in events:
        if isinstance(event, Text):
            assert event.text
            if parts and isinstance(parts[-1], str):
                parts[-1] += event.text
            else:
                parts.append(event.text)
        elif isinstance(event, CallBegin):
            assert event.index == len(ids)
            ids.append(event.id)
            parts.append((event.name, ""))
        elif isinstance(event, CallArguments):
            assert event.index == len(ids) - 1
            name, arguments = parts[-1]
            parts[-1] = (name, arguments + event.delta)
        else:
            assert event == CallEnd(len(ids) - 1)
            json.loads(parts[-1][1])
    assert len(set(ids)) == len(ids)
    assert all(name.startswith("call_") for name in ids)
    return parts


def test_a_json_call():
    [(name, arguments)] = parsed(JSON_CALL)
    assert name == "find"
    assert arguments == '{"text": "a}</tool_call>b", "list": [1.50, {"x": "\\"}"}]}', "as the model wrote it"


def test_an_xml_call():
    [(name, arguments)] = parsed(XML_CALL, "xml")
    assert name == "find"
    assert json.loads(arguments) == {
        "text": "if a < b:\n  print('</parameter>')\n",
        "yes": True,
        "map": {"a": [1]},
    }


@pytest.mark.parametrize("style", ["json", "xml"])
def test_text_around_calls_is_kept(style):
    text = JSON_CALL if style == "json" else XML_CALL
    gap = "\n" if style == "json" else "\n\n"
    [one] = parsed(text, style)
    assert parsed(f"Let me see.{gap}{text}", style) == ["Let me see.", one]
    assert parsed(f" \n{text}\n{text} \n\n", style) == [one, one]
    assert parsed(f"a  {text}\n\nb {text}c \n", style) == ["a  ", one, "\n\nb ", one, "c \n"]
    assert parsed(f"\nx\n{gap}{text}", style) == ["\nx\n", one]
    assert parsed(" \n", style) == [" \n"]
    assert parsed("", style) == []


BROKEN = {
    "json": [
        '<tool_call>\n{"name": "find", "arguments": {\'text\': 1}}\n</tool_call>',
        '<tool_call>\n{"name": "find", "arguments": {"text": "a"}\n</tool_call>',
        '<tool_call>\n{"name": "nobody", "arguments": {}}\n</tool_call>',
        '<tool_call>\n{"name": "find", "arguments": [1]}\n</tool_call>',
        '<tool_call>\n{"name": "find", "arguments": {"text": NaN}}\n</tool_call>',
        '<tool_call>\n{"name": 3, "arguments": {}}\n</tool_call>',
        '<tool_call>\n{"arguments": {}}\n</tool_call>',
        '<tool_call>\n{"name": "find" "arguments": {}}\n</tool_call>',
        '<tool_call>\n{"name": "find", "arguments": {}} more\n</tool_call>',
        '<tool_call>\n{"name": "find", "arguments": "[1]"}\n</tool_call>',
        '<tool_call>\n{3: "find"}</tool_call>',
        "<tool_call>\n[]\n</tool_call>",
        "<tool_call></tool_call>",
        '<tool_call>\n{"name": "find", "arguments": {"text": "cut',
        "<tool_call>",
        "<tool_ca",
        '<tool_call>{"name": "find", "arguments": {"text": "open}}</tool_call> and more',
    ],
    "xml": [
        "<tool_call>\n<function=find>\n<parameter=whole>\nmany\n</parameter>\n</function>\n</tool_call>",
        "<tool_call>\n<function=find>\n<parameter=text>\na\n</function>\n</tool_call>",
        "<tool_call>\n<function=find>\nwhat\n</function>\n</tool_call>",
        "<tool_call>\n<function=nobody>\n</function>\n</tool_call>",
        "<tool_call>\n<function=find>\n<parameter=map>\n[1]\n</parameter>\n</function>\n</tool_call>",
        "<tool_call>\nfind()\n</tool_call> and more",
        "write <function=NAME> there",
        "<functio",
    ],
}


@pytest.mark.parametrize(("style", "text"), [(style, text) for style, texts in BROKEN.items() for text in texts])
def test_what_does_not_parse_is_text(style, text):
    assert parsed(text, style) == [text]
    assert parsed(f"a\n{text}", style) == [f"a\n{text}"]
    good = JSON_CALL if style == "json" else XML_CALL
    assert parsed(f"{text} {good}", style)[-1] == parsed(good, style)[0], "a call after it is found"


def test_a_call_without_its_closing_tag_counts_if_it_is_complete():
    assert parsed('<tool_call>\n{"name": "now"}') == [("now", "{}")]
    assert parsed("<tool_call>\n<function=now>\n</function>", "xml") == [("now", "{}")]
    assert parsed("Hm.\n<function=now>\n</function>\n</tool_call>", "xml") == ["Hm.", ("now", "{}")]


def test_other_spellings_of_models():
    assert parsed('<tool_call>{ "arguments" : "{\\"whole\\": 1}" , "name" : "find" }</tool_call>') == [
        ("find", '{"whole": 1}')
    ]
    assert parsed('<tool_call>{"name": "any", "arguments": {}}</tool_call>', tools=None) == [("any", "{}")]
    [(_, arguments)] = parsed(
        "<tool_call><function=find><parameter=whole>5.0</parameter><parameter=maybe>None</parameter>"
        '<parameter=other>[1, 2]</parameter><parameter=free>"é"</parameter><parameter=choice>b c</parameter>'
        "<parameter=number>3</parameter></function></tool_call>",
        "xml",
    )
    assert json.loads(arguments) == {
        **{"whole": 5.0, "maybe": None, "other": [1, 2]},
        **{"free": '"é"', "choice": "b c", "number": 3},
    }


REPLIES = {
    "json": ["Hi \n", JSON_CALL, "\n", JSON_CALL.replace("find", "nobody"), "<tool", '"', " text "],
    "xml": ["Hi \n\n", XML_CALL, "\n", XML_CALL.replace("True", "sure"), "<function=", "</parameter>", " text "],
}


@given(st.data(), st.sampled_from(["json", "xml"]))
@settings(max_examples=150, deadline=None)
def test_any_chunking_gives_the_same_parts(data, style):
    text = "".join(data.draw(st.lists(st.sampled_from(REPLIES[style]), max_size=5)))
    cuts = data.draw(st.lists(st.integers(0, len(text)), max_size=12))
    whole = parsed(text, style)
    assert parsed(text, style, cuts=cuts) == whole
    assert parsed(text, style, cuts=range(len(text))) == whole


def random_value(rng, kind):
    words = ["", " ", "a", "北京", "🧮", '"q"', "\\", "\n", "<b>&", "</parameter>", "{}", "5", "true", "'"]
    words += ["None", "null", "NaN", "[1, 2]", "1e5", "\t", "\r\n", "<think>", "{{ x }}"]
    text = "".join(rng.choices(words, k=rng.randint(0, 6)))
    scalars = [rng.randint(-(10**20), 10**20), rng.uniform(-1e9, 1e9), 1e-7, text, None, True]
    inner = [rng.choice(scalars), {text: [rng.choice(scalars)]}]
    return {
        "text": text,
        "whole": rng.randint(-(10**12), 10**12),
        "number": rng.choice([1e300, -0.5, 7, rng.uniform(-10, 10)]),
        "yes": rng.random() < 0.5,
        "list": inner,
        "map": {"a": inner, text: rng.choice(scalars)},
        "maybe": rng.choice([None, 5]),
        "choice": rng.choice(["a", "b c"]),
        "place": {text: text},
    }[kind]


def written(source, calls, content=""):
    """What a template writes of a reply with calls, as the model would have written it."""
    message = {"role": "assistant", "content": content, "tool_calls": [call(*each) for each in calls]}
    text = render(source, [*HI, message], add_generation_prompt=False)
    return text.rpartition("<|im_start|>assistant\n")[2].removesuffix("<|im_end|>\n")


def read(text, style, **options):
    """The reply's parts with the arguments as values."""
    return [p if isinstance(p, str) else (p[0], json.loads(p[1])) for p in parsed(text, style, **options)]


@pytest.mark.parametrize(("style", "source"), [("json", QWEN3), ("xml", coder.TEMPLATE)])
def test_a_thousand_calls_come_back_from_the_template(style, source, reference):
    rng = random.Random(5)
    assert style_of(source) == style
    for turn in range(1000):
        calls = []
        for _ in range(rng.randint(1, 3)):
            kinds = rng.sample(list(KINDS), rng.randint(0, 4))
            calls.append(("find", {kind: random_value(rng, kind) for kind in kinds}))
        content = rng.choice(["", "Let me look.", "é <tag>"])
        if turn % 20 == 0:
            message = {"role": "assistant", "content": content, "tool_calls": [call(*each) for each in calls]}
            messages = [*HI, message, *HI]
            assert render(source, messages) == reference(source, messages)
        text = written(source, calls, content)
        cuts = [rng.randint(0, len(text)) for _ in range(3)]
        said = read(text, style, cuts=cuts)
        assert said == [*([content] if content else []), *calls]
        assert [[*map(type, arguments.values())] for _, arguments in said[-len(calls) :]] == [
            [*map(type, arguments.values())] for _, arguments in calls
        ], "True == 1 and 5 == 5.0"


CALL_AS_TEXT = (
    "<tool_call>\n<function=find>\n<parameter=text>\n1\n</parameter>\n<parameter=yes>\nTrue\n</parameter>\n"
    "</function>\n</tool_call>"
)
HARD = [
    *["</tool_call>", "</function>\n</tool_call>", CALL_AS_TEXT, f"{CALL_AS_TEXT}\n{CALL_AS_TEXT}", "<parameter=text>"],
    *["</parameter></function>", "a</parameter><parameter=yes>b", "<tool_call>\n<function="],
    *["", "\n\n", "\r\n", " 5", "NONE"],
]


@pytest.mark.parametrize("text", HARD)
def test_a_value_may_hold_the_tags_of_calls(text):
    calls = [("find", {"text": text, "yes": True}), ("find", {"list": [text], "text": text}), ("now", {})]
    source = coder.TEMPLATE
    for some in (calls[:1], calls[1:]):
        assert read(written(source, some), "xml") == some
        assert read(written(source, some, "Hm."), "xml", cuts=range(1000)) == ["Hm.", *some]


def test_a_broken_call_ends_where_another_follows():
    broken = "<tool_call>\n<function=find>\n<parameter=text>\na\n</function>\n</tool_call>"
    parser = ToolCallParser(TOOLS, "xml")
    assert parser.feed(broken) == [], "its value may go on"
    assert parser.feed("\n<tool_call>") == [Text(broken)]
    assert parsed(f"{broken} and text", "xml") == [f"{broken} and text"]


BOUND = {"json": JSON_CALL, "xml": XML_CALL.replace("True", "true")}


@pytest.mark.parametrize("style", BOUND)
@pytest.mark.parametrize("size", [1, 3, 10, 1000])
def test_a_bound_call_is_told_as_it_is_written(size, style):
    gap = "\n" if style == "json" else "\n\n"
    text = f"Let me look.{gap}{BOUND[style]}\n{BOUND[style]}"
    bound, free = ToolCallParser(TOOLS, style, bound=True), ToolCallParser(TOOLS, style)
    told, whole = [], []
    for start in range(0, len(text), size):
        told += bound.feed(text[start : start + size])
        whole += free.feed(text[start : start + size])
    told, whole = told + bound.end(), whole + free.end()
    pieces = [event for event in told if isinstance(event, CallArguments)]
    assert len(pieces) > (60 if size == 1 else 3 if size < 100 else 1)
    for index in range(2):
        [expected] = [event.delta for event in whole if isinstance(event, CallArguments) and event.index == index]
        assert "".join(event.delta for event in pieces if event.index == index) == expected
    others = [[event for event in events if isinstance(event, Text | CallEnd)] for events in (told, whole)]
    assert "".join(e.text for e in others[0] if isinstance(e, Text)) == "Let me look."
    assert [e for e in others[0] if isinstance(e, CallEnd)] == [e for e in others[1] if isinstance(e, CallEnd)]
    assert [event.name for event in told if isinstance(event, CallBegin)] == ["find", "find"]


@pytest.mark.parametrize("text", ["<parameter=text>\n", "<parameter=a>x</tool_call>", CALL_AS_TEXT, *HARD[:3]])
def test_a_bound_xml_value_ends_as_in_the_grammar(text):
    """Tags in it count for nothing: decoding is bound, so the first line `</parameter>` ends the value."""
    text = text.replace("\n</parameter>\n", "</parameter>\n")
    calls = [("find", {"text": text, "yes": True}), ("now", {})]
    reply = written(coder.TEMPLATE, calls).replace("\nTrue\n", "\ntrue\n")
    for size in (1, 7, 1000):
        parser = ToolCallParser(TOOLS, "xml", bound=True)
        events = [event for at in range(0, len(reply), size) for event in parser.feed(reply[at : at + size])]
        assert [(name, json.loads(arguments)) for name, arguments in collected(events)] == calls


def test_a_tag_of_a_function_is_text_in_a_bound_reply():
    """Only after `<tool_call>` is a call bound; this one might not parse."""
    text = "<function=find>\n<parameter=text>\na"
    parser = ToolCallParser(TOOLS, "xml", bound=True)
    assert "".join(event.text for event in [*parser.feed(text), *parser.end()]) == text


@pytest.mark.parametrize("style", ["json", "xml"])
def test_letters_of_a_call_in_a_bound_answer_are_text(style):
    """A JSON answer may hold them in its texts, where no grammar binds what follows."""
    body = "{'name': 'now'}" if style == "json" else "<function=now></function>"
    text = f'{{"note": "<tool_call>{body}</tool_call>", "more": "<tool_call>{{}}"}}'
    for size in (1, 1000):
        parser = ToolCallParser(TOOLS, style, bound=True)
        events = [event for at in range(0, len(text), size) for event in parser.feed(text[at : at + size])]
        assert collected([*events, *parser.end()]) == [text]


def test_a_bound_xml_call_that_the_end_cuts():
    parser = ToolCallParser(TOOLS, "xml", bound=True)
    cut = XML_CALL[: XML_CALL.index("print")]
    begin, arguments = parser.feed(cut)
    assert (begin.name, arguments.delta) == ("find", '{"text": "if a < b:\\n  ')
    assert parser.end() == [CallCut(0, cut)]


def test_a_bound_call_that_the_end_cuts():
    parser = ToolCallParser(TOOLS, "json", bound=True)
    cut = JSON_CALL[: JSON_CALL.index("1.50")]
    begin, arguments = parser.feed(cut)
    assert (begin.name, arguments.delta) == ("find", cut[cut.index('{"text"') :])
    assert parser.end() == [CallCut(0, cut)]


def test_a_bound_call_that_the_end_cuts_after_its_arguments_is_complete():
    parser = ToolCallParser(TOOLS, "json", bound=True)
    parser.feed(JSON_CALL.removesuffix("}\n</tool_call>"))
    assert parser.end() == [CallEnd(0)]


@pytest.mark.parametrize(("call", "style"), [(JSON_CALL, "json"), (XML_CALL, "xml")])
def test_a_free_call_is_told_only_when_it_is_known_to_parse(call, style):
    """Until its end it may turn out not to be a call, and a stream cannot take back what it has sent."""
    parser = ToolCallParser(TOOLS, style)
    early = [event for char in call[:-1] for event in parser.feed(char)]
    assert early == []
    assert [type(event) for event in parser.feed(call[-1])] == [CallBegin, CallArguments, CallEnd]
